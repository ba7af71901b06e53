# SPDX-License-Identifier: Apache-2.0
"""A transformers model as a checkpoint: the folder alone is enough to have it back."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma4VisionConfig, Gemma4VisionModel

import pyquant
from pyquant import Policy, files
from pyquant.errors import CheckpointError
from pyquant.wrap import QModule
from tests import checkpoints

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


OTHERS = {
    "rms_norm_eps": (1e-5, r"rms_norm_eps \(1e-06 there, 1e-05 here\)"),
    "hidden_activation": ("silu", r"hidden_activation \('gelu_pytorch_tanh' there, 'silu' here\)"),
    "pooling_kernel_size": (4, r"pooling_kernel_size \(2 there, 4 here\)"),
    "rope_parameters": (
        {"rope_type": "axial", "rope_theta": 7.0},
        r"rope_parameters.rope_theta \(100.0 there, 7.0 here\)",
    ),
}


class Classifier(torch.nn.Module):
    """A root that is not Hugging Face's, with a dataclass for a configuration."""

    def __init__(self, labels: int, **changes: Any) -> None:
        super().__init__()
        self.config = Settings(labels)
        self.vision = Gemma4VisionModel(Gemma4VisionConfig(**{**CONFIG, **changes})).eval()


@dataclass(frozen=True)
class Settings:
    labels: int


@pyquant.register(Classifier)
class QuantClassifier(QModule):
    CHILDREN = ("vision",)

    def forward(self, pixel_values: Tensor, pixel_position_ids: Tensor) -> Tensor:
        return self.vision(pixel_values, pixel_position_ids).last_hidden_state


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, fp in {"hf": Gemma4VisionModel(Gemma4VisionConfig(**CONFIG)).eval(), "own": Classifier(3)}.items():
        q = pyquant.prepare(fp, Policy.preset("w8a8"))
        pyquant.calibrate(q, [batch()], progress=False)
        pyquant.convert(q)
        found[name] = tmp_path_factory.mktemp(name) / "q"
        pyquant.save_quantized(q, found[name])
    return found


@pytest.mark.parametrize("key", OTHERS)
@pytest.mark.parametrize("root", ["hf", "own"])
def test_a_model_of_another_configuration(folders: dict[str, Path], root: str, key: str) -> None:
    value, message = OTHERS[key]
    changes = {key: value}
    fp = Gemma4VisionModel(Gemma4VisionConfig(**{**CONFIG, **changes})) if root == "hf" else Classifier(3, **changes)
    where = "of another configuration: " if root == "hf" else "of another configuration of 'vision': "
    with pytest.raises(CheckpointError, match=where + message):
        pyquant.load_quantized(folders[root], fp)


def test_a_dataclass_configuration_counts_too(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"of another configuration: labels \(3 there, 4 here\); pass a model"):
        pyquant.load_quantized(folders["own"], Classifier(4))
    pyquant.load_quantized(folders["own"], Classifier(3))


def test_what_a_configuration_says_besides_the_arithmetic_is_free(folders: dict[str, Path]) -> None:
    config = Gemma4VisionConfig(**CONFIG, architectures=["Mine"], name_or_path="elsewhere", dtype="float32")
    config._attn_implementation = "eager"
    config.transformers_version = "5.5.4"
    pyquant.load_quantized(folders["hf"], Gemma4VisionModel(config))


def test_a_config_file_that_builds_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "q"
    shutil.copytree(folders["hf"], path)
    (path / "config.json").write_text('{"hidden_size": "wide"}')
    index = json.loads((path / "quantization.json").read_text())
    index["sha256"]["config.json"] = files.sha256(path / "config.json")
    (path / "quantization.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"is damaged: config.json makes no transformers.*Gemma4VisionModel \("):
        pyquant.load_quantized(path)


HUB = "kernels-community/flash-attn3"


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("where", ["", "text_config", "vision_config"])
def test_a_config_that_names_hub_kernels_is_built_with_eager_attention(where: str, key: str, tmp_path: Path) -> None:
    fp = checkpoints.qwen3_vl_model()
    q = pyquant.prepare(fp, Policy.preset("float"))
    pyquant.calibrate(q, [{"input_ids": torch.arange(10, 18)[None]}], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (data[where] if where else data)[key] = HUB
    (tmp_path / "config.json").write_text(json.dumps(data))
    index = json.loads((tmp_path / "quantization.json").read_text())
    index["sha256"]["config.json"] = files.sha256(tmp_path / "config.json")
    (tmp_path / "quantization.json").write_text(json.dumps(index))
    loaded = pyquant.load_quantized(tmp_path)
    seen = {getattr(m.config, "_attn_implementation", "eager") for m in loaded.all_qmodules()}
    assert seen == {"eager"}
    assert torch.equal(
        loaded(input_ids=torch.arange(10, 18)[None]).logits, q(input_ids=torch.arange(10, 18)[None]).logits
    )
