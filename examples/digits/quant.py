# SPDX-License-Identifier: Apache-2.0
"""Owns the digits classifier's wrapper: a module of your own around one that pyquant supports.
Leaves the vision tower to `pyquant.models.gemma4`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pyquant
from examples.digits.model import DigitsClassifier
from pyquant.models import gemma4
from pyquant.wrap import Phase, QModule, Role, WrapContext


@pyquant.register(DigitsClassifier)
class QuantDigitsClassifier(QModule):
    """Vision tower, mean over the soft tokens, one linear layer."""

    CHILDREN = ("vision", "head")
    SITES = {"mean": Role.ACTIVATION}

    def __init__(self, fp: DigitsClassifier, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.hidden_size = fp.config.hidden_size

    def forward(self, pixel_values: Tensor, pixel_position_ids: Tensor) -> Tensor:
        """pixel_values (B, P, 3 * patch**2), pixel_position_ids (B, P, 2) -> logits (B, classes)."""
        tokens = self.vision(pixel_values=pixel_values, pixel_position_ids=pixel_position_ids).last_hidden_state
        return self.classify(tokens, batch_size=pixel_values.shape[0])

    def classify(self, tokens: Tensor, batch_size: int) -> Tensor:
        """tokens (B * L, hidden) -> logits (B, classes)."""
        return self.head(self.q("mean", tokens.reshape(batch_size, -1, self.hidden_size).mean(dim=1)))

    def as_export_module(self, profile: gemma4.VisionProfile) -> nn.Module:
        """One static graph: pixel_values -> logits."""
        self.require(Phase.QUANTIZED, "export")
        return _Adapter(self, profile)


class _Adapter(nn.Module):
    """The classifier with the positions of one profile; the vision adapter owns what is static."""

    output_names = ("logits",)
    name = "digits_vision"

    def __init__(self, model: QuantDigitsClassifier, profile: gemma4.VisionProfile) -> None:
        super().__init__()
        self.model = model
        self.vision = model.vision.as_export_module(profile)
        self.input_specs = self.vision.input_specs
        self.batch_size = profile.batch_size

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.vision(pixel_values)
        if not isinstance(tokens, torch.Tensor):
            tokens = tokens[0]
        return self.model.classify(tokens, self.batch_size)
