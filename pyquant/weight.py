# SPDX-License-Identifier: Apache-2.0
"""Weight: one weight of a tree, its float value, and once it is decided its grid and integers.

It owns the only two ways in which a tree's weight changes: another float value (folding), and a decision (an algorithm,
a checkpoint). The float model is never changed. Which weights a wrapper has is wrap/, algorithms are algorithms/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pyquant import ops
from pyquant.block_site import BlockSite
from pyquant.errors import InputError, PhaseError, PolicyError
from pyquant.qparams import QParams
from pyquant.site import Site
from pyquant.spec import BlockSpec, QuantSpec
from pyquant.wrap import QModule

__all__ = ["Weight", "replace_parameter", "weights"]


class _Watched(Protocol):
    def remove(self) -> None: ...


class See(Protocol):
    """What `Weight.watch` calls: `rows` (N, in) are inputs of the matrix `index` (0, or the number of an expert)."""

    def __call__(self, index: int, rows: Tensor) -> None: ...


@dataclass(frozen=True)
class Weight:
    """The weight at `site` of the wrapper `module`: a kernel or a lookup table that is the parameter `name` there.

    The value is (out, in) for a linear layer; (experts * out, in) for `matrices` linears in one tensor, which see
    different inputs; (rows, width) for a table. It is cheap to make, and holds nothing of its own.
    """

    module: QModule
    name: str

    @property
    def site(self) -> Site:
        """The quantization point."""
        return self.module.site(self.name)

    @property
    def path(self) -> str:
        """The path of the site."""
        return self.site.path

    @property
    def spec(self) -> QuantSpec | None:
        """Its format: of the policy, or of the decided grid. None: it stays float."""
        return self.site.spec

    @property
    def how(self) -> str:
        """Who decided it, in words; "" for nobody (a format alone is no decision)."""
        site = self.site
        return site.decided if site.scale is not None or isinstance(site, BlockSite) else ""

    @property
    def value(self) -> Tensor:
        """The values that the tree computes with: on the grid once it is decided.

        Raises CheckpointError where the file of a streamed one is no longer as it was (Stream.check).
        """
        if self.module.state.stream is not None:
            self.module.state.stream.check()
        return self.module.get_parameter(self.name).detach()

    @property
    def matrices(self) -> int:
        """How many linears are in it: 1, or the number of experts."""
        return int(getattr(self.module, "experts", 1))

    @property
    def open(self) -> bool:
        """Whether an algorithm may decide it: the policy gives it integers, and nobody decided it."""
        return self.spec is not None and not isinstance(self.spec, BlockSpec) and not self.how

    @property
    def qparams(self) -> QParams | None:
        """The grid, once decided or converted."""
        return self.site.qparams

    @property
    def integers(self) -> Tensor:
        """The integers that the file gets, in the type that stores them. Raises PhaseError before there is a grid."""
        grid = self.qparams
        if grid is None:
            raise PhaseError(f"weight {self.path!r} has no grid yet; decide it, or run pyquant.convert")
        spec = grid.spec
        return ops.quantize(
            self.value, grid.scale, grid.zero_point, grid.axis, grid.group, spec.qmin, spec.qmax,
            ops.STORAGE[spec.dtype.name],
        )  # fmt: skip

    def watch(self, see: See) -> _Watched:
        """Let `see` have the rows that this matrix multiplies, until the handle that is returned is removed.

        They are (N, in), in whatever phase the tree is. Raises InputError for a weight that is no matrix of rows
        (a table, a convolution).
        """
        watch = getattr(self.module, "watch_rows", None)
        if watch is None:
            raise InputError(f"weight {self.path!r} of {type(self.module).__name__} multiplies no rows to watch")
        handle: _Watched = watch(see)
        return handle

    @property
    def is_linear(self) -> bool:
        """Whether it multiplies rows of inputs, which `watch` shows."""
        return hasattr(self.module, "watch_rows")

    def replace(self, value: Tensor, *, own: bool = False) -> None:
        """Give the tree another float value, such as one with a scale folded in; a tied tensor is untied here.

        value: of the same shape; it is stored in the type of the old one. own: as of replace_parameter. Raises
        InputError for another shape, PhaseError for a weight that is decided or converted.
        """
        if self.module.state.converted or self.how:
            why = f"decided ({self.how})" if self.how else "converted"
            raise PhaseError(f"weight {self.path!r} is {why}, and stays as it is; fold before weights are decided")
        _store(self.module, self.name, value, own=own)

    def decide(self, qparams: QParams, how: str, integers: Tensor | None = None, *, final: bool = True) -> None:
        """Give it its grid, and with `integers` (of the value's shape) what each value becomes; else the nearest.

        The tree computes with the values on the grid from now on, so activations are calibrated with them. calibrate,
        convert, save and load leave the decision as it is. how: in words for a user ("gptq"). final: see Site.decide;
        an algorithm's choice is not, a checkpoint's integers are.

        Raises PhaseError for a weight that is decided already or a converted tree, PolicyError for one that the policy
        leaves float, SpecError for integers that are not on the grid.
        """
        if self.how:
            raise PhaseError(f"weight {self.path!r} is decided already ({self.how}); decide a weight once")
        if self.module.state.converted:
            raise PhaseError(f"weight {self.path!r}: the tree is converted, and its grids are final; prepare it again")
        spec = qparams.spec
        if integers is None:
            value = ops.fake_quantize(
                self.value, qparams.scale, qparams.zero_point, qparams.axis, qparams.group, spec.qmin, spec.qmax
            )
        else:
            self._check(integers, spec)
            stored = integers.to(ops.STORAGE[spec.dtype.name])
            value = ops.dequantize(stored, qparams.scale, qparams.zero_point, qparams.axis, qparams.group)
        self.site.decide(qparams, how, final=final)
        if not torch.equal(value.to(self.value.dtype), self.value):  # a checkpoint's is there already: no second copy
            self._store(value)

    def decide_blocks(self, spec: BlockSpec, blocks: Tensor, how: str) -> None:
        """Give it ggml's blocks: uint8 (rows, bytes), as `pyquant.ops.quantize_blocks` has them, of any scales.

        For a weight to which the policy gives blocks; where nobody decides them, ggml's rule finds their scales. `how`
        and the rest are as of `decide`. Raises PhaseError for a weight that is decided already or a converted tree,
        PolicyError for one that the policy gives no blocks, and for a lookup table.
        """
        if self.how:
            raise PhaseError(f"weight {self.path!r} is decided already ({self.how}); decide a weight once")
        if not isinstance(self.site, BlockSite):
            raise PolicyError(f"weight {self.path!r}: the policy gives it {self.spec or 'no format'}, and no blocks")
        self.site.decide_blocks(spec, blocks, how)
        value = ops.dequantize_blocks(blocks, spec.bits).to(self.value.dtype)
        if not torch.equal(value, self.value):
            self._store(value)

    def _check(self, integers: Tensor, spec: QuantSpec) -> None:
        if integers.shape != self.value.shape:
            raise InputError(
                f"weight {self.path!r} of shape {tuple(self.value.shape)} got integers of {tuple(integers.shape)}"
            )
        low, high = int(integers.min()), int(integers.max())
        if low < spec.qmin or high > spec.qmax:
            raise PolicyError(
                f"weight {self.path!r}: integers in [{low}, {high}] are not on the grid of {spec}, which has "
                f"[{spec.qmin}, {spec.qmax}]"
            )

    def _store(self, value: Tensor) -> None:
        _store(self.module, self.name, value)


def replace_parameter(module: QModule, name: str, value: Tensor, *, own: bool = False) -> None:
    """As Weight.replace, for a parameter that may have no site: a bias, a table of positions, a norm's gain.

    own: the tree takes `value` itself, which is of the old type, on its device, and nobody else's.
    """
    if name in module.sites:
        Weight(module, name).replace(value, own=own)
    elif module.state.converted:
        raise PhaseError(f"parameter {name!r} of {module.path!r}: the tree is converted; prepare it again")
    else:
        _store(module, name, value, own=own)


@torch.inference_mode(False)
@torch.no_grad()
def _store(module: QModule, name: str, value: Tensor, *, own: bool = False) -> None:
    old = module.get_parameter(name)
    if value.shape != old.shape:
        where = f"{module.path}.{name}" if module.path else name
        raise InputError(f"parameter {where!r} of shape {tuple(old.shape)} got a value of {tuple(value.shape)}")
    stream = module.state.stream
    if own:
        assert value.dtype == old.dtype, f"{name} of {module.path} is {old.dtype}, and its new value {value.dtype}"
        new = value
    elif stream is not None and old.device.type == "cpu":
        new = stream.keep(value, old.dtype)
        stream.touch(old)
    else:
        new = value.detach().to(device=old.device, dtype=old.dtype, copy=True).contiguous()
    module.register_parameter(name, nn.Parameter(new, requires_grad=old.requires_grad))
    if name in module.sites:
        module.site(name).forget()


def weights(q: QModule) -> Iterator[Weight]:
    """Every weight of the tree `q` that is a parameter with a site of its own: kernels and tables, in tree order.

    Layers that a checkpoint has as integers only (wrap/stored.py) are not among them: they are decided.
    """
    for module in q.all_qmodules():
        for name, site in module.own_sites():
            if site.role.is_kernel and isinstance(module._parameters.get(name), nn.Parameter):
                yield Weight(module, name)
