# SPDX-License-Identifier: Apache-2.0
"""NaN and infinite values in tensors that no quantized site looks at: norm gains, biases, tables, buffers.

It owns finding them before they go into a file. A constant with a quantized site is checked by that site.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyquant.block_site import BlockSite
from pyquant.site import Site, TensorStamp

if TYPE_CHECKING:
    from pyquant.wrap.base import QModule

__all__ = ["non_finite"]


def non_finite(tree: QModule) -> list[str]:
    """A line for each such tensor of `tree` with NaN or Inf: its path, and how many values are bad.

    A tensor is looked at once, and again only after an edit. Tensors on the meta device have no values.
    """
    seen, found = tree.checked, []
    for name, value in _unchecked(tree):
        if name in seen and seen[name].is_of(value):
            continue
        if tree.state.stream is not None:
            tree.state.stream.touch(value)
        bad = _count(value)
        if bad:
            found.append(f"{name!r}: {bad} of {value.numel()} values are NaN or infinite")
        else:
            seen[name] = TensorStamp(value)
    return found


def _unchecked(tree: QModule) -> Iterator[tuple[str, Tensor]]:
    skip: set[int] = set()
    for module in tree.all_qmodules():
        skip |= {id(value) for name, value in module.constants().items() if _scans(module.site(name))}
        skip |= {id(t) for name in module.INFINITE if (t := module._buffers.get(name)) is not None and not _nan(t)}
        skip |= {id(t) for _, site in module.own_sites() for t in site.buffers()}
    tensors = [*tree.named_parameters(), *tree.named_buffers()]
    for name, value in tensors:
        if id(value) not in skip and value.is_floating_point() and not value.is_meta and value.numel():
            yield name, value


def _scans(site: Site) -> bool:
    return site.observer is not None or isinstance(site, BlockSite)


def _nan(value: Tensor) -> bool:
    return not value.is_meta and bool(value.isnan().any())


@torch.no_grad()
def _count(value: Tensor) -> int:
    """Elements of `value` that are not finite."""
    plain = value.detach().float() if value.element_size() < 2 else value.detach()
    ends = torch.stack(torch.aminmax(plain))  # NaN in, NaN out; no copy of the tensor
    return 0 if bool(torch.isfinite(ends).all()) else int((~torch.isfinite(plain)).sum())
