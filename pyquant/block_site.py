# SPDX-License-Identifier: Apache-2.0
"""BlockSite: the quantization point of a weight or table in one of ggml's block formats.

It owns that such a constant has no range to find: its scales follow from its values, or a checkpoint has its blocks.
Every other site is site.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant import ops
from pyquant.errors import OpArgumentError, PhaseError, PolicyError, SpecError
from pyquant.role import Phase, Role
from pyquant.site import Clip, Site, TensorStamp, TreeState, same_or
from pyquant.spec import BlockSpec, QuantSpec

__all__ = ["BlockSite"]


class BlockSite(Site):
    """A constant whose every 32 values carry their own scale. Quantized as soon as its tree is; it has no QParams.

    `blocks` are those of a weight that was decided (decide_blocks): its value is what they stand for, and they are the
    file's, while ggml's rule would find others. Raises SpecError for a role other than weight and embedding.
    """

    blocks: Tensor | None

    def __init__(self, path: str, role: Role, spec: BlockSpec, *, state: TreeState | None = None) -> None:
        if not role.is_kernel:
            raise SpecError(f"{spec} are for the roles weight and embedding; give this site a QuantSpec, or none")
        super().__init__(path, role, None, state=state)
        self.spec = spec
        self.bits = spec.bits
        self.register_buffer("blocks", None)
        self._problem: str | None = "its constant was never seen; the wrapper must pass it through const()"

    @property
    def takes_grid(self) -> bool:
        """No: its scales are part of its blocks."""
        return False

    def decide_blocks(self, spec: BlockSpec, blocks: Tensor, how: str) -> None:
        """Give the weight its blocks now: uint8 (rows, bytes), as `ops.quantize_blocks` has them.

        Its value must be `ops.dequantize_blocks(blocks)` from now on (Weight.decide_blocks). how: as of decide().
        Raises PhaseError for a converted tree, PolicyError for a lookup table.
        """
        if self.state.converted:
            raise PhaseError(f"site {self.path!r}: the tree is converted, and its grids are final; prepare it again")
        if self.role is not Role.WEIGHT:
            raise PolicyError(
                f"site {self.path!r} is a {self.role.value}'s; the blocks of weights alone can be decided"
            )
        self.adopt(spec, how)
        self.blocks, self._problem = blocks, None

    def adopt(self, spec: QuantSpec, how: str) -> None:
        """Take the format of decided blocks that follow (loading)."""
        assert isinstance(spec, BlockSpec), f"site {self.path!r} has blocks, got {spec}"
        super().adopt(spec, how)
        self.bits = spec.bits

    def forward(self, x: Tensor, *, clip: Clip | None = None, observed: Tensor | None = None) -> Tensor:
        raise AssertionError(f"site {self.path!r} is a constant's; its wrapper must pass it through const()")

    def quantize(self, x: Tensor, *, clip: Clip | None = None, constant: bool = True) -> Tensor:
        """`x` rounded to its blocks, in every phase; as it is, where these were decided."""
        return x if self.blocks is not None else ops.fake_quantize_blocks(x, self.bits)

    def _constant(self, value: Tensor) -> Tensor:
        """`value` rounded to its blocks, once the tree is quantized; see Site.constant."""
        if self._phase is not Phase.QUANTIZED:
            return value
        if self.blocks is not None:
            return as_dtype(ops.dequantize_blocks(self.blocks, self.bits), value) if self.state.explicit else value
        if self.state.explicit or (self.training and torch.is_grad_enabled()):
            return ops.fake_quantize_blocks(value, self.bits)
        if self.state.kept == "values":
            return self._cache.get((value,), lambda: same_or(value, ops.fake_quantize_blocks(value, self.bits)))
        with torch.no_grad():
            if self.state.kept == "nothing":
                return ops.fake_quantize_blocks(value, self.bits).detach()
            blocks = self._cache.get(
                (value,), lambda: ops.quantize_blocks(ops.fake_quantize_blocks(value, self.bits), self.bits)
            )
            return as_dtype(ops.dequantize_blocks(blocks, self.bits), value)

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of constant(table); see Site.rows."""
        if self._phase is not Phase.QUANTIZED or self._taps or self.state.explicit:
            return F.embedding(ids, self.constant(table))
        return ops.fake_quantize_blocks(F.embedding(ids, table), self.bits)

    def part(self, value: Tensor, rows: slice, columns: slice) -> Tensor:
        """These rows and columns of constant(value); see Site.part. Columns are whole blocks, or all are rounded."""
        cut = any((end or 0) % ops.BLOCK_LENGTH for end in (columns.start, columns.stop))
        if self._phase is not Phase.QUANTIZED or self._taps or cut:
            return self.constant(value)[rows, columns]
        if self.blocks is not None:
            return self._decided_part(self.blocks, value, rows, columns)
        return ops.fake_quantize_blocks(value[rows, columns], self.bits)

    def _decided_part(self, blocks: Tensor, value: Tensor, rows: slice, columns: slice) -> Tensor:
        if not self.state.explicit:
            return value[rows, columns]
        size = ops.block_bytes(self.bits)
        ends = [None if end is None else end // ops.BLOCK_LENGTH * size for end in (columns.start, columns.stop)]
        return as_dtype(ops.dequantize_blocks(blocks[rows, slice(*ends)].contiguous(), self.bits), value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Site:
        """Blocks move with the model and stay bytes."""
        super()._apply(fn, recurse)
        if self.blocks is not None:
            self._buffers["blocks"] = self.blocks.to(fn(self.blocks).device)
        return self

    def scan(self, value: Tensor) -> None:
        """Look whether `value` has this form. Raises PolicyError when its rows are not made of blocks."""
        if self.blocks is not None or self._scanned.is_of(value):
            return
        if value.dim() == 0 or value.shape[-1] % ops.BLOCK_LENGTH:
            raise PolicyError(
                f"site {self.path!r} cannot have its format: {self.spec} take rows of a multiple of "
                f"{ops.BLOCK_LENGTH} values, got shape {tuple(value.shape)}; give it another one by a rule"
            )
        self._problem = None
        try:
            for rows in ops.row_slices(value.shape):
                ops.fake_quantize_blocks(value.detach()[rows], self.bits)
        except OpArgumentError as error:
            self._problem = f"its constant has no {self.spec}: {error}; repair the model"
        self._scanned = TensorStamp(value)

    def compute_qparams(self) -> str | None:
        """What is wrong with the constant, if something is."""
        return self._problem


def as_dtype(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the type of `like`; without a node in a graph where it is that already."""
    return x if x.dtype == like.dtype else x.to(like.dtype)
