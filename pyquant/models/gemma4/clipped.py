# SPDX-License-Identifier: Apache-2.0
"""A linear layer between two clamps, as the vision and the audio tower have it.

It owns the bounds as numbers. The product is pyquant.wrap.linear's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyquant.likeness import frozen
from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap.base import Clip, Phase, QModule, WrapContext
from pyquant.wrap.registry import register
from pyquant.wrap.snapshot import Snapshot


@register(hf_class("Gemma4ClippableLinear"))
class QuantGemma4ClippableLinear(QModule):
    """A Linear whose input and output are clamped to the checkpoint's bounds.

    The bounds are used as numbers. Quantized, a clamp is the saturation of a site and costs nothing.
    """

    CHILDREN = ("linear",)
    UNTRACED = ("clip_in", "clip_out")
    BOUNDS = ("input_min", "input_max", "output_min", "output_max")
    INFINITE = BOUNDS

    linear: QModule

    def __init__(self, fp: nn.Module, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        for name in self.BOUNDS:  # absent without config.use_clipped_linears; kept so that checkpoints have them
            if hasattr(fp, name):
                self.register_buffer(name, getattr(fp, name))
        self.snapshot = Snapshot.of(fp, ctx.path, *self._buffers.values())
        self._read_bounds()

    def loaded(self) -> None:
        super().loaded()
        self._read_bounds()
        self.snapshot = self.snapshot.again()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QModule:
        super()._apply(fn, recurse)
        self._read_bounds()  # in another type they are other numbers
        return self

    def _read_bounds(self) -> None:
        low_in, high_in, low_out, high_out = (_bound(self._buffers.get(name)) for name in self.BOUNDS)
        self.clip_in: Clip = (low_in, high_in)
        self.clip_out: Clip = (low_out, high_out)

    def traced_state(self) -> Any:
        """The bounds that are clamps in this phase; saturation is the others."""
        ends = (("act_in", self.clip_in), ("act_out", self.clip_out))
        return tuple(frozen(self.linear.site(name).clamp_of(clip)) for name, clip in ends)

    def forward(self, hidden_states: Tensor) -> Tensor:
        ends = (self.linear.site(name) for name in ("act_in", "act_out"))
        if all(site.phase is Phase.FLOAT for site in ends):  # the child's values are HF's, for who traces them
            return _clamped(self.linear(_clamped(hidden_states, self.clip_in)), self.clip_out)
        out: Tensor = self.linear(hidden_states, clip_in=self.clip_in, clip_out=self.clip_out)
        return out


def _clamped(x: Tensor, clip: Clip) -> Tensor:
    return x if clip == (None, None) else torch.clamp(x, *clip)


def _bound(value: Tensor | None) -> float | None:
    """None for no bound: no buffer, an infinite one, or one without a value yet."""
    if value is None or value.is_meta or not math.isfinite(float(value)):
        return None
    return float(value)
