# SPDX-License-Identifier: Apache-2.0
"""Owns the digits classifier: Hugging Face's Gemma4VisionModel with a linear head, its configuration, and its files.
Leaves images to `data.py` and optimisation to `train_classifier.py`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionModel

CHECKPOINT = Path(__file__).parent / "classifier"
MODEL_TYPE = "digits_classifier"

VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "pooling_kernel_size": 2,
    "patch_size": 2,
    "position_embedding_size": 16,
    "use_clipped_linears": False,
    "standardize": True,
}


@dataclass(frozen=True)
class DigitsConfig:
    """A square image of `image_size` pixels, `num_classes` answers, and the arguments of HF's Gemma4VisionConfig."""

    image_size: int = 16
    num_classes: int = 10
    vision: dict[str, Any] = field(default_factory=lambda: dict(VISION))

    def __post_init__(self) -> None:
        cells, left = divmod(self.image_size, self.patch_size)
        if left or cells % self.vision["pooling_kernel_size"] or cells > self.vision["position_embedding_size"]:
            raise ValueError(
                "the image must cut into whole patches and pools that have position embeddings: "
                f"{self.image_size = }, {self.vision = }"
            )

    @property
    def patch_size(self) -> int:
        return int(self.vision["patch_size"])

    @property
    def hidden_size(self) -> int:
        return int(self.vision["hidden_size"])

    def vision_config(self) -> Gemma4VisionConfig:
        """The HF configuration, with eager attention (the form that exports)."""
        config = Gemma4VisionConfig(**self.vision)
        config._attn_implementation = "eager"
        return config


class DigitsClassifier(nn.Module):
    """Patches of a digit -> logits; the soft tokens of the vision tower are averaged and read by one linear layer."""

    def __init__(self, config: DigitsConfig | None = None) -> None:
        super().__init__()
        self.config = config or DigitsConfig()
        self.vision = Gemma4VisionModel(self.config.vision_config())
        self.head = nn.Linear(self.config.hidden_size, self.config.num_classes)

    def forward(self, pixel_values: Tensor, pixel_position_ids: Tensor) -> Tensor:
        """pixel_values (B, P, 3 * patch**2) in [0, 1], pixel_position_ids (B, P, 2), (x, y) -> logits (B, num_classes).

        Every image of a batch must have the same number of valid patches: HF strips padding and returns one
        (sum of valid tokens, hidden) tensor, which is cut back into B equal parts here.
        """
        tokens = self.vision(pixel_values=pixel_values, pixel_position_ids=pixel_position_ids).last_hidden_state
        tokens = tokens.reshape(pixel_values.shape[0], -1, self.config.hidden_size)
        return self.head(tokens.mean(dim=1))

    @torch.no_grad()
    def initialize_(self, generator: torch.Generator) -> None:
        """Starting weights that train: HF's leave the position table constant and the attention logits far too sharp.

        Matrices are normal with variance 1 / fan_in; position rows are small normal noise; the q and k norms start at
        head_dim ** -0.25, because Gemma4 has no 1 / sqrt(head_dim) in its attention (scaling is 1). The head starts at
        zero, which any standardization leaves alone.
        """
        head_dim = self.config.vision["head_dim"]
        for name, parameter in self.named_parameters():
            if name.endswith("position_embedding_table"):
                parameter.normal_(0.0, 0.2, generator=generator)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(head_dim**-0.25)
            elif name.startswith("head."):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[-1]), generator=generator)

    @torch.no_grad()
    def standardize_(self, inputs: dict[str, Tensor], floor: float = 1e-3) -> None:
        """Sets std_bias, std_scale to the mean and 1 / std, per channel, of the pooled tokens of `inputs`.

        The head takes up the difference, so that the function which the classifier computes stays as it was.
        """
        pooled: list[Tensor] = []
        hook = self.vision.pooler.register_forward_hook(
            lambda module, args, output: pooled.append(output[0][output[1]])
        )
        was_training = self.training
        try:
            self.eval()
            for start in range(0, len(inputs["pixel_values"]), 256):
                self(**{name: value[start : start + 256] for name, value in inputs.items()})
        finally:
            hook.remove()
            self.train(was_training)
        tokens = torch.cat(pooled).double()
        bias, scale = tokens.mean(dim=0), 1 / tokens.std(dim=0).clamp(min=floor)
        # With z = (t - bias) * scale:
        # (t - old_bias) * old_scale = z * old_scale / scale + (bias - old_bias) * old_scale
        old_bias, old_scale = self.vision.std_bias.double(), self.vision.std_scale.double()
        weight = self.head.weight.double()
        self.head.bias.copy_(self.head.bias.double() + weight @ ((bias - old_bias) * old_scale))
        self.head.weight.copy_(weight * (old_scale / scale))
        self.vision.std_bias.copy_(bias)
        self.vision.std_scale.copy_(scale)

    def save(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and `config.json` into `folder`, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")
        config = {
            "model_type": MODEL_TYPE,
            "image_size": self.config.image_size,
            "num_classes": self.config.num_classes,
            "vision_config": {"model_type": "gemma4_vision", **self.config.vision},
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path = CHECKPOINT) -> DigitsClassifier:
        """The classifier that `save` wrote, in eval mode; by default the trained one that comes with the repository."""
        folder = Path(folder)
        missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} has no {' and no '.join(missing)}; make one with examples/digits/train_classifier.py"
            )
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if stored.get("model_type") != MODEL_TYPE:
            raise ValueError(
                f"{folder / 'config.json'} has model_type {stored.get('model_type')!r}, expected {MODEL_TYPE!r}"
            )
        vision = {name: value for name, value in stored["vision_config"].items() if name != "model_type"}
        model = cls(DigitsConfig(stored["image_size"], stored["num_classes"], vision))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()


@torch.no_grad()
def predict(model: nn.Module, inputs: dict[str, Tensor], batch_size: int = 128) -> Tensor:
    """Logits (N, num_classes) of `model` on `patchify`'s inputs, in batches and without gradients."""
    count = len(inputs["pixel_values"])
    parts = [model(**{k: v[i : i + batch_size] for k, v in inputs.items()}) for i in range(0, count, batch_size)]
    return torch.cat(parts)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows (N, num_classes) whose largest logit is at the label (N,), in [0, 1]."""
    return float((logits.argmax(dim=-1) == labels).double().mean())
