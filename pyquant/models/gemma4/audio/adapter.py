# SPDX-License-Identifier: Apache-2.0
"""The graph of a part of the audio tower between subsampling and the end: hidden states and the blocked mask.

It owns that calling convention. The whole tower's is model.py, the arithmetic the wrapper's own forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.audio.chunks import Chunks
from pyquant.models.gemma4.audio.profiles import AudioProfile, require_audio_profile
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import QModule
from pyquant.wrap.dtype import float_parameter


def layer_graph(module: QModule, profile: AudioProfile, chunks: Chunks, width: int, name: str) -> GraphAdapter:
    """`module(hidden_states, attention_mask=mask)`, its first output. `name` is the graph's."""
    require_audio_profile(profile, module)
    blocks = profile.batch_size * chunks.count(profile.tokens)
    dtype = float_parameter(module).dtype
    inputs = {
        "hidden_states": TensorSpec((profile.batch_size, profile.tokens, width), dtype),
        "attention_mask": TensorSpec((1, blocks, chunks.size, chunks.context), torch.float32),
    }

    def call(hidden_states: Tensor, attention_mask: Tensor, *, module: QModule) -> Tensor:
        out = module(hidden_states, attention_mask=AdditiveMask(attention_mask))
        first: Tensor = out if isinstance(out, Tensor) else out[0]
        return first

    return GraphAdapter(
        module, call, inputs=inputs, outputs=("hidden_states_out",), name=name, parts={"module": module}
    )
