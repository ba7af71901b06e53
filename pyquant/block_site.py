# SPDX-License-Identifier: Apache-2.0
"""BlockSite: the quantization point of a weight or table in one of ggml's block formats.

It owns that such a constant has no range to find: its scales follow from its values. Every other site is site.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant import ops
from pyquant.errors import OpArgumentError, PolicyError, SpecError
from pyquant.role import Phase, Role
from pyquant.site import Clip, Site, TensorStamp, TreeState
from pyquant.spec import BlockSpec

__all__ = ["BlockSite"]


class BlockSite(Site):
    """A constant whose every 32 values carry their own scale. Quantized as soon as its tree is; it has no QParams.

    Raises SpecError for a role other than weight and embedding.
    """

    def __init__(self, path: str, role: Role, spec: BlockSpec, *, state: TreeState | None = None) -> None:
        if not role.is_kernel:
            raise SpecError(f"{spec} are for the roles weight and embedding; give this site a QuantSpec, or none")
        super().__init__(path, role, None, state=state)
        self.spec = spec
        self.bits = spec.bits
        self._problem: str | None = "its constant was never seen; the wrapper must pass it through const()"

    @property
    def takes_grid(self) -> bool:
        """No: its scales are part of its blocks."""
        return False

    def forward(self, x: Tensor, *, clip: Clip | None = None, observed: Tensor | None = None) -> Tensor:
        raise AssertionError(f"site {self.path!r} is a constant's; its wrapper must pass it through const()")

    def quantize(self, x: Tensor, *, clip: Clip | None = None, constant: bool = True) -> Tensor:
        """`x` rounded to its blocks, in every phase."""
        return ops.fake_quantize_blocks(x, self.bits)

    def _constant(self, value: Tensor) -> Tensor:
        """`value` rounded to its blocks, once the tree is quantized; see Site.constant."""
        if self._phase is not Phase.QUANTIZED:
            return value
        if self.state.explicit or (self.training and torch.is_grad_enabled()):
            return ops.fake_quantize_blocks(value, self.bits)
        return self._cache.get((value,), lambda: ops.fake_quantize_blocks(value, self.bits))

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
        return ops.fake_quantize_blocks(value[rows, columns], self.bits)

    def scan(self, value: Tensor) -> None:
        """Look whether `value` has this form. Raises PolicyError when its rows are not made of blocks."""
        if self._scanned.is_of(value):
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
