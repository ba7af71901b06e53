# SPDX-License-Identifier: Apache-2.0
"""Weights of a float model that are computed on each call (pruned, parametrized, normalized), and how to bake them in.

It owns finding them: a wrapper takes a weight as it is, so that prepare refuses what would change behind its back.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["computed_weights"]


def computed_weights(fp: nn.Module) -> list[str]:
    """A line for each computed weight of `fp`: `'layers.0.up.weight' (...)`, and the call that makes it a plain one."""
    found = []
    for path, module in fp.named_modules():
        where = f"model.{path}" if path else "model"
        for name, call in _calls(module, where).items():
            found.append(f"{f'{path}.{name}' if path else name!s}: {call}")
    return found


def _calls(module: nn.Module, where: str) -> dict[str, str]:
    """Name of a computed tensor of this module -> the call that bakes it in."""
    calls = {}
    if parametrize.is_parametrized(module):
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for name in parametrizations:
            calls[name] = (
                f"torch.nn.utils.parametrize.remove_parametrizations({where}, {name!r}, leave_parametrized=True)"
            )
    owned = module._parameters.keys() | module._buffers.keys()
    for name, value in vars(module).items():
        if not isinstance(value, Tensor):
            continue
        if f"{name}_orig" in owned and f"{name}_mask" in owned:
            calls[name] = f"torch.nn.utils.prune.remove({where}, {name!r})"
        elif f"{name}_g" in owned and f"{name}_v" in owned:
            calls[name] = f"torch.nn.utils.remove_weight_norm({where}, {name!r})"
        elif f"{name}_orig" in owned and f"{name}_u" in owned:
            calls[name] = f"torch.nn.utils.remove_spectral_norm({where}, {name!r})"
        elif name in ("weight", "bias") or value.grad_fn is not None:
            calls[name] = f"value = {where}.{name}.detach(); del {where}.{name}; {where}.{name} = nn.Parameter(value)"
    return calls
