# SPDX-License-Identifier: Apache-2.0
"""State dicts of trees: what may be loaded into one, and what is computed again after that.

It owns refusing the state dict of a tree with other formats before anything is written. Folders with everything in
them are checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyquant.errors import CheckpointError, SpecError
from pyquant.qparams import QParams
from pyquant.site import Site, TreeState

__all__ = ["follow_state_dict"]


class _Tree(Protocol):
    path: str

    @property
    def state(self) -> TreeState: ...

    def loaded(self) -> None: ...


def follow_state_dict(module: nn.Module) -> None:
    """Have the wrapper `module` check every state dict before it is loaded, and compute what follows from it after.

    In a state dict are the tensors of the model and the scales and zero points of its sites. Not in it are a site's
    format, which must be that of the tree it came from, and what QModule.loaded computes: bias scales, clip bounds.
    """
    module.register_load_state_dict_pre_hook(_check)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_post_hook(_compute)  # type: ignore[no-untyped-call]


def _compute(module: Any, _: Any) -> None:
    tree: _Tree = module
    with torch.inference_mode(False), torch.no_grad():
        tree.loaded()


def _check(module: Any, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    tree: _Tree = module
    if prefix and tree.path:
        return  # the module that it is a part of looked through everything
    formats: Mapping[str, Mapping[str, str]] = getattr(state_dict, "_metadata", None) or {}
    faults = [*_faults(module, state_dict, prefix, formats, tree.state.converted), *_ties(module, state_dict, prefix)]
    if faults:
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            "load_state_dict: the state dict does not fit this tree, and nothing of it was loaded; prepare and convert "
            "with the policy that it was made with, or use pyquant.save_quantized and load_quantized\n"
            + "\n".join(f"  {fault}" for fault in faults[:5])
            + more
        )


def _faults(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    formats: Mapping[str, Mapping[str, str]],
    converted: bool,
) -> Iterator[str]:
    for name, site in module.named_modules():
        scale, zero_point = (state_dict.get(f"{prefix}{name}.{part}") for part in ("scale", "zero_point"))
        if not isinstance(site, Site) or not (isinstance(scale, Tensor) and isinstance(zero_point, Tensor)):
            continue
        there = formats.get(prefix + name, {}).get("format", str(site.spec))
        if not converted and site.scale is None:
            yield f"site {site.path!r} has a scale there, and this tree is not converted yet"
        elif there != str(site.spec):
            yield f"site {site.path!r} is {there} there, {site.spec or 'float'} here"
        elif site.spec is not None and site.scale is not None and scale.shape == site.scale.shape and not scale.is_meta:
            try:
                QParams(site.spec, scale, zero_point)
            except SpecError as error:
                yield f"site {site.path!r}: {error}"


def _ties(module: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Tensors that are one in this tree and differ in the state dict: one would overwrite the other."""
    first: dict[int, str] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(tensor), name)
        one, two = (state_dict.get(prefix + key) for key in (other, name))
        if other == name or not (isinstance(one, Tensor) and isinstance(two, Tensor)) or one.is_meta or two.is_meta:
            continue
        if one.shape != two.shape or not torch.equal(one.to(two.device), two):
            yield f"{other!r} and {name!r} are one tensor here and differ there: that model was not tied"
