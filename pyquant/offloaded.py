# SPDX-License-Identifier: Apache-2.0
"""Float models whose weights accelerate keeps elsewhere (`device_map` with "disk" or "cpu", disk_offload, cpu_offload).

It owns reading accelerate's hooks, by the attributes that it documents, so that it need not be installed, and a model
of the same modules whose weights are there. Where they lie is stream.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyquant import pages
from pyquant.stream import Stream

__all__ = ["is_offloaded", "present"]


def is_offloaded(fp: nn.Module) -> bool:
    """Whether weights of `fp` are in memory only while the module that has them runs."""
    return any(_maps(module) for module in fp.modules())


def present(fp: nn.Module, stream: Stream) -> nn.Module:
    """A model of copies of the modules of `fp`, without accelerate's hooks and with all weights on the CPU.

    Weights that lie in safetensors files stay there, others go to files of `stream`; tied ones are one tensor again.
    Those that accelerate has nowhere stay on the meta device. `fp` is not changed.
    """
    new = _copied(fp, stream, {}, {})
    tie = getattr(new, "tie_weights", None)
    if callable(tie):
        tie()
    return new


def _copied(
    module: nn.Module, stream: Stream, modules: dict[int, nn.Module], tensors: dict[int, tuple[Tensor, Tensor]]
) -> nn.Module:
    if id(module) in modules:
        return modules[id(module)]
    new = modules[id(module)] = copy.copy(module)
    maps = _maps(module)
    own = vars(new)
    if "_hf_hook" in own:
        for name in ("_hf_hook", "_old_forward", "forward"):
            own.pop(name, None)
    for kind in ("_parameters", "_buffers"):
        own[kind] = {name: _found(name, value, maps, stream, tensors) for name, value in own[kind].items()}
    own["_modules"] = {
        name: None if child is None else _copied(child, stream, modules, tensors)
        for name, child in own["_modules"].items()
    }
    return new


def _found(
    name: str,
    old: Tensor | None,
    maps: list[Mapping[str, Tensor]],
    stream: Stream,
    tensors: dict[int, tuple[Tensor, Tensor]],
) -> Tensor | None:
    """The tensor `name` of a module that has `old`, with its values."""
    if old is None:
        return None
    if id(old) not in tensors:
        tensors[id(old)] = old, _read(name, old, maps, stream)
    return tensors[id(old)][1]


def _read(name: str, old: Tensor, maps: list[Mapping[str, Tensor]], stream: Stream) -> Tensor:
    value = old if not old.is_meta else next((one[name] for one in maps if name in one), None)
    if value is None or (value is old and old.device.type == "cpu"):
        return old
    if not (pages.is_mapped(value) and value.dtype == old.dtype):
        value = stream.keep(value, old.dtype)
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def _maps(module: nn.Module) -> list[Mapping[str, Tensor]]:
    """Where the hooks of this module read its weights."""
    hook: Any = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # several in a row
    return [one.weights_map for one in hooks if getattr(one, "offload", False) and one.weights_map is not None]
