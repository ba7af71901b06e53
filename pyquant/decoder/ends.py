# SPDX-License-Identifier: Apache-2.0
"""The graphs at both ends of a text model: the token embedding, and the final norm with the head.

It owns their profiles, names and shapes. The graphs between them are graphs.py; which graphs make a
bundle is bundle.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyquant.decoder.graphs import float_type
from pyquant.decoder.model import DecoderModel
from pyquant.errors import ProfileError
from pyquant.exporter.profile import ExportProfile, TensorSpec
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule

_TRACED_LENGTH = 16  # of an open length; any would do


class Counts:
    """A profile whose fields in `COUNTS` are integers of at least 1. Raises ProfileError."""

    COUNTS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in self.COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ProfileError(f"{type(self).__name__}.{name} is an integer of at least 1, got {value!r}")


@dataclass(frozen=True)
class HeadProfile(Counts):
    """The final norm and the head: hidden_states (B, S, D) -> logits (B, S, vocabulary)."""

    batch_size: int
    seq_len: int = 1
    name = "lm_head"
    COUNTS = ("batch_size", "seq_len")


def embedding_profile(
    batch_size: int, seq_len: int | None = None, name: str = "token_embedding", output: str = "inputs_embeds"
) -> ExportProfile:
    """input_ids int32 (B, S) -> `output` (B, S, D); an open length without `seq_len`."""
    if seq_len is None:
        spec = TensorSpec((batch_size, _TRACED_LENGTH), torch.int32, dynamic=1)
        return ExportProfile({"input_ids": spec}, (output,), name=name)
    spec = TensorSpec((batch_size, seq_len), torch.int32)
    return ExportProfile({"input_ids": spec}, (output,), name=f"{name}_s{seq_len}")


def head_graph(
    module: QModule, text: DecoderModel, head: QModule, scores: Callable[[Tensor], Tensor], profile: HeadProfile
) -> GraphAdapter:
    """The norm of `text` and the `scores` of `module`, which has them both and uses `head` and sites of its own."""

    def call(hidden: Tensor, *, norm: QModule, **_: nn.Module) -> Tensor:
        return scores(norm(hidden))

    spec = TensorSpec((profile.batch_size, profile.seq_len, text.config.hidden_size), float_type(text))
    parts: dict[str, nn.Module] = {"norm": text.norm, "lm_head": head}
    if len(module.sites):
        parts["sites"] = module.sites
    return GraphAdapter(
        module, call, inputs={"hidden_states": spec}, outputs=("logits",), name=profile.name, parts=parts
    )
