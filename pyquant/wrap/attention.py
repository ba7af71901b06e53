# SPDX-License-Identifier: Apache-2.0
"""The attention core that models share: scores, mask, softmax, weighted sum, with grouped-query heads.

It owns these sites and the form of a mask. Projections, norms, rotary and the KV cache belong to the model's wrapper.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.wrap import products
from pyquant.wrap.bands import bands_of, joined
from pyquant.wrap.base import Phase, QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype, as_float32

# What is added to a masked logit. Finite, because -inf has no grid; far below any logit, so that exp() of it is 0 in
# float32; and within float16. Models' own masks use the dtype's minimum, which would leave the grid one useful value.
FILL = -1e4


class AdditiveMask(NamedTuple):
    """0 where a query may look, FILL where it may not: (batch, 1 or heads, 1 or queries, keys).

    With `block`, of attention in bands: (batch, 1 or heads, queries, 2 * block); see bands.py.
    """

    values: Tensor
    block: int | None = None

    @classmethod
    def of(cls, mask: Tensor | AdditiveMask | None, dtype: torch.dtype, *, keep: bool = False) -> AdditiveMask | None:
        """From any mask that HF passes around; None when nothing is masked, and then no mask operator exists.

        (batch, keys) or 4-D; bool or integer, true where a query may look; or 4-D floating point, added as it is
        (but not below FILL). `keep`: a mask that masks nothing is one too, as a graph with a mask input needs it; pass
        `self.state.explicit`. Raises InputError for another rank, and within torch.export for a mask whose values
        would decide.
        """
        if mask is None or isinstance(mask, AdditiveMask):
            return mask
        if mask.dim() not in (2, 4) or (mask.dim() == 2 and mask.is_floating_point()):
            raise InputError(
                f"attention_mask is {mask.dtype} of shape {tuple(mask.shape)}; expected (batch, keys) of bool or "
                "integer, true where a key is valid, or (batch, 1 or heads, 1 or queries, keys)"
            )
        if mask.is_floating_point():
            values = mask.clamp(min=FILL).to(dtype)
        else:
            values = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask == 0, FILL)
        if values.dim() == 2:
            values = values[:, None, None, :]
        if keep:
            return cls(values)
        if torch.compiler.is_exporting():
            raise InputError(
                f"attention_mask {tuple(mask.shape)} in torch.export: whether it masks anything decides if it counts, "
                "and torch.export has no values; export by pyquant.export(q, profile), pass "
                "AdditiveMask(values), or leave the mask out"
            )
        return cls(values) if bool((values != 0).any()) else None


class AttentionCore(QModule):
    """softmax(query @ key^T * scaling + mask) @ value; key and value have as many heads as the query, or fewer.

    Grouped heads are folded into the rows of one batched product, so that keys and values are never repeated.

    `masked_logits` saturates: its range is that of the logits that are not masked plus a margin below them, so every
    masked logit ends on the lower end of the grid, wherever FILL is. Unpadded calibration data teaches it too: a
    padded profile needs no padded batch.
    """

    SITES = {
        "logits": Role.ACTIVATION,
        "mask": Role.CONSTANT,
        "masked_logits": Role.ACTIVATION,
        "probs": Role.SOFTMAX,
        "attn_out": Role.ACTIVATION,
    }

    def __init__(self, ctx: WrapContext, *, scaling: float = 1.0) -> None:
        super().__init__(None, ctx)
        self.scaling = scaling
        if scaling != 1.0:
            self.add_site("scaled_logits", Role.ACTIVATION)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AdditiveMask | None = None, *, per_head: bool = False
    ) -> tuple[Tensor, Tensor]:
        """query (B, H, Sq, D), key and value (B, Hkv, Sk, D) -> output (B, H, Sq, D), probabilities (B, H, Sq, Sk).

        `per_head`: a product for each head, for targets whose matrix unit takes one at a time; the same numbers.
        With a mask in bands, the probabilities are those of the blocks (B * n, H, block, 2 * block).
        """
        if mask is not None and mask.block is not None:
            bands = bands_of(query, key, value, mask.values, mask.block)
            banded, weights = self.forward(
                bands.query, bands.key, bands.value, AdditiveMask(bands.mask), per_head=per_head
            )
            return joined(banded, len(query)), weights
        if not per_head:
            return self._attend(query, key, value, mask)
        heads, group = query.shape[1], query.shape[1] // key.shape[1]
        out, probs = [], []
        for head in range(heads):
            kv = slice(head // group, head // group + 1)
            own = slice(head, head + 1)
            own_mask = mask if mask is None or mask.values.shape[1] == 1 else AdditiveMask(mask.values[:, own])
            head_out, head_probs = self._attend(query[:, own], key[:, kv], value[:, kv], own_mask)
            out.append(head_out)
            probs.append(head_probs)
        return torch.cat(out, dim=1), torch.cat(probs, dim=1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: AdditiveMask | None) -> tuple[Tensor, Tensor]:
        batch, heads, queries, _ = query.shape
        kv_heads, keys = key.shape[1], key.shape[2]
        rows = heads // kv_heads * queries  # a KV head serves the queries of all heads of its group

        grouped_query = _reshape(query, (batch, kv_heads, rows, query.shape[-1]))
        logits = self.q("logits", products.matmul(grouped_query, key.transpose(-1, -2), statistics=self.observes))
        if self.scaling != 1.0:
            logits = self.q("scaled_logits", logits * self.scaling)
        if mask is None:
            self._foresee_mask(logits)
        else:
            logits = self._add_mask(logits, mask.values, (batch, heads, queries, keys))
        probs = self.q("probs", as_dtype(torch.softmax(as_float32(logits), dim=-1), query.dtype))
        grouped_probs = _reshape(probs, (batch, kv_heads, rows, keys))
        out = self.q("attn_out", products.matmul(grouped_probs, value, statistics=self.observes))
        return (
            _reshape(out, (batch, heads, queries, value.shape[-1])),
            _reshape(probs, (batch, heads, queries, keys)),
        )

    def _add_mask(self, logits: Tensor, mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        if mask.shape[1] != 1 or mask.shape[2] != 1:  # it differs by head or query: undo the folding of heads
            logits = _reshape(logits, shape)
        if self.phase is not Phase.CALIBRATE:
            return self.q("masked_logits", logits + self.q("mask", mask))
        masked = logits + self.q("mask", mask, observed=_mask_range(logits))
        dropped = mask < FILL / 2
        lowest = masked.masked_fill(dropped, torch.inf).amin()
        highest = masked.masked_fill(dropped, -torch.inf).amax()
        return self.q("masked_logits", masked, observed=self._saturating_range(lowest, highest))

    def _foresee_mask(self, logits: Tensor) -> None:
        """What `_add_mask` would have observed, had there been a mask that dropped nothing."""
        if self.phase is Phase.CALIBRATE:
            self.q("mask", _mask_range(logits))
            self.q("masked_logits", logits, observed=self._saturating_range(logits.amin(), logits.amax()))

    def _saturating_range(self, lowest: Tensor, highest: Tensor) -> Tensor:
        """The two ends only: an observer that leaves out outliers must not cut the margin off.

        A masked logit ends at least `margin` below its row's largest, so its weight is at most exp(-margin). Half an
        LSB of a probability is 1/510 at 8 bits and 1/65534 at 16. exp(-16) = 1.1e-7 and exp(-24) = 3.8e-11 are so far
        below that even the sum over 16,000 masked keys stays under it (2e-3 and 6e-7).
        """
        spec = self.site("masked_logits").spec
        margin = 24.0 if spec is None or spec.dtype.bits > 8 else 16.0
        return torch.stack([as_float32(lowest) - margin, as_float32(highest)])


def _mask_range(like: Tensor) -> Tensor:
    """All values that a mask has, whichever of them a batch happens to show."""
    return torch.tensor([FILL, 0.0], dtype=like.dtype, device=like.device)


def _reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`x` itself if it has `shape`, so that ungrouped heads export without a RESHAPE."""
    if x.shape == shape:
        return x
    if all(isinstance(size, int) for size in shape):
        return x.reshape(shape)
    # With a length that is not known, torch.export cannot prove that dimensions may be merged and split in one step.
    return x.contiguous().reshape(-1).reshape(shape)
