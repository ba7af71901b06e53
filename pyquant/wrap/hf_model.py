# SPDX-License-Identifier: Apache-2.0
"""QModel: the wrapper of a whole transformers model, with what libraries around transformers ask of a model.

It owns these questions (device, dtype, size, names). Language models add embeddings and generate(): decoder/causal_lm.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from pyquant.wrap.base import QModule
from pyquant.wrap.embedding import QuantEmbedding


class QModel(QModule):
    """A wrapper of a PreTrainedModel: evaluation harnesses, pipelines and users' scripts take it in its place.

    `config` is the float model's own object. What transformers does to weights (from_pretrained, save_pretrained,
    resize_token_embeddings) is pyquant.load_quantized and save_quantized, or is done before prepare.
    """

    @property
    def device(self) -> torch.device:
        """Where the first parameter or buffer is; the CPU for a tree without any."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point parameter, in which the tree computes; float32 for a tree without."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def name_or_path(self) -> str:
        """The checkpoint that the float model was loaded from; empty for a model that was made."""
        return str(getattr(self.config, "name_or_path", "") or "")

    @property
    def main_input_name(self) -> str:
        """The first argument of forward: `input_ids`, `pixel_values`."""
        return str(getattr(self.fp_type, "main_input_name", "input_ids"))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Elements of the parameters, those of a tied pair once. What a wrapper derives of them (a folded bias) counts
        too; the embeddings are those of tokens."""
        tables = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, QuantEmbedding)}
        return sum(
            p.numel()
            for name, p in self.named_parameters()
            if not (exclude_embeddings and name in tables) and (p.requires_grad or not only_trainable)
        )

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: tied weights of the float model are one tensor here from the start."""

    def can_generate(self) -> bool:
        """Whether there is generate(): in language models with a head."""
        return False
