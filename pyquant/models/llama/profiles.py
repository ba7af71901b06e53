# SPDX-License-Identifier: Apache-2.0
"""Profile of a bundle of a Llama: `pyquant.export_bundle(q, folder, llama.Profile(max_seq_len=512))`.

It owns naming the models. The graphs and the manifest are pyquant.decoder's.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyquant.decoder.bundle import BundleParts
from pyquant.decoder.profile import DecoderProfile
from pyquant.models.llama.wrappers import QuantLlamaForCausalLM, QuantLlamaModel


class LlamaParts(BundleParts):
    """The graphs and the manifest of a LlamaForCausalLM or a LlamaModel."""

    FAMILY = "llama"
    MODELS = (QuantLlamaForCausalLM, QuantLlamaModel)


@dataclass(frozen=True)
class Profile(DecoderProfile):
    """The lengths and the layout of a bundle; see DecoderProfile."""

    PARTS = LlamaParts
