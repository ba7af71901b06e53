# SPDX-License-Identifier: Apache-2.0
"""Who may look at whom in the audio tower: the local window, and which tokens are of a clip and which padding.

It owns the mask in the blocked form of chunks.py, from the tokens' mask alone, as a part of the graph. Adding it to the
logits is attention.py's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.models.gemma4.audio.chunks import Chunks
from pyquant.wrap.attention import FILL, AdditiveMask
from pyquant.wrap.base import QModule, Role, WrapContext


def far_below(cap: float) -> float:
    """What is added to a masked logit in float32: so much that a logit in [-cap, cap] is rounded away, and a query that
    may look nowhere looks everywhere alike, as it does where HF fills with a constant. Half a unit in the last place of
    2^25 cap is at least cap. On a grid it saturates at the grid's lower end."""
    return -cap * 2.0**25


def blocked(attention_mask: Tensor | AdditiveMask | None, cap: float) -> AdditiveMask | None:
    """HF's mask (B, 1, blocks, size, context) -> (1, B * blocks, size, context), added to logits.

    Bool (releases before 5.8): true where a query may look. Otherwise: 0 where it may. Raises InputError for another
    rank.
    """
    if attention_mask is None or isinstance(attention_mask, AdditiveMask):
        return attention_mask
    if attention_mask.dim() != 5 or attention_mask.shape[1] != 1:
        raise InputError(
            f"attention_mask is {tuple(attention_mask.shape)}; the audio attention takes (batch, 1, blocks, chunk, "
            "context), as Gemma4AudioModel makes it"
        )
    hidden = ~attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    values = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device).masked_fill(hidden, far_below(cap))
    return AdditiveMask(values.reshape(1, -1, *hidden.shape[3:]))


class BlockMask(QModule):
    """The mask of all layers. Its values are 0 and 1 up to the last step, so that every grid has them exactly."""

    SITES = {
        "valid": Role.ACTIVATION,
        "window": Role.CONSTANT,
        "allowed": Role.ACTIVATION,
        "hidden": Role.ACTIVATION,
        "mask": Role.ACTIVATION,
    }

    def __init__(self, ctx: WrapContext, chunks: Chunks, cap: float) -> None:
        super().__init__(None, ctx)
        self.chunks, self.far = chunks, far_below(cap)

    def forward(self, valid: Tensor) -> AdditiveMask:
        """valid (B, S), 1.0 for a token of a clip -> (1, B * blocks, size, context)."""
        whole = None if self.state.explicit else truth(valid)  # a graph observes nothing
        x = self.q("valid", valid, observed=whole)
        seen = self.chunks.contexts(x.unsqueeze(-1)).reshape(1, -1, 1, self.chunks.context)
        window = self.q("window", self.chunks.window(valid.device), observed=whole)
        allowed = self.q("allowed", seen * window, observed=whole)
        hidden = self.q("hidden", 1.0 - allowed, observed=whole)
        return AdditiveMask(self.q("mask", hidden * self.far, observed=None if whole is None else FILL * whole))


def truth(like: Tensor) -> Tensor:
    """Both values that a mask has, whichever of them a batch happens to show."""
    return torch.tensor([0.0, 1.0], dtype=torch.float32, device=like.device)
