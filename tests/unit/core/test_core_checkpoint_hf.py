# SPDX-License-Identifier: Apache-2.0
"""A transformers model as a checkpoint: the folder alone is enough to have it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Gemma4VisionConfig, Gemma4VisionModel

import pyquant
from pyquant import Policy
from pyquant.errors import CheckpointError
from pyquant.wrap import QModule

CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "patch_size": 2,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
    "standardize": True,
}


def batch() -> dict[str, Tensor]:
    y, x = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    return {"pixel_values": torch.rand(1, 16, 12), "pixel_position_ids": torch.stack((x, y), -1).reshape(1, 16, 2)}


def output(q: QModule, inputs: dict[str, Tensor]) -> Tensor:
    out = q(**inputs)
    return out if isinstance(out, Tensor) else out[0]


@pytest.mark.parametrize("preset", ["w8a8", "w4a16"])
def test_the_folder_alone_gives_the_model_back(preset: str, tmp_path: Path) -> None:
    fp, inputs = Gemma4VisionModel(Gemma4VisionConfig(**CONFIG)).eval(), batch()
    q = pyquant.prepare(fp, Policy.preset(preset))
    pyquant.calibrate(q, [inputs], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    state = torch.get_rng_state()
    loaded = pyquant.load_quantized(tmp_path / "q")
    assert torch.equal(output(loaded, inputs), output(q, inputs))
    assert torch.equal(torch.get_rng_state(), state)
    assert json.loads((tmp_path / "q" / "config.json").read_text())["hidden_size"] == 16
    with pytest.raises(CheckpointError, match=r"Gemma4VisionModel, got a torch.nn.modules.linear:Linear"):
        pyquant.load_quantized(tmp_path / "q", torch.nn.Linear(1, 1))
