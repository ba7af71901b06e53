# SPDX-License-Identifier: Apache-2.0
"""From a tower's width to the text model's: an unscaled norm and a linear layer.

It owns naming the HF class. Both are children.
"""

from __future__ import annotations

from torch import Tensor

from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap.base import QModule
from pyquant.wrap.registry import register


@register(hf_class("Gemma4MultimodalEmbedder"))
class QuantGemma4MultimodalEmbedder(QModule):
    """Soft tokens (n, V) of a tower -> rows (n, D) for the text model."""

    CHILDREN = ("embedding_pre_projection_norm", "embedding_projection")
    FEEDS = {"embedding_pre_projection_norm": ("embedding_projection",)}

    embedding_pre_projection_norm: QModule
    embedding_projection: QModule

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        out: Tensor = self.embedding_projection(self.embedding_pre_projection_norm(inputs_embeds))
        return out
