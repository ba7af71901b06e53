# SPDX-License-Identifier: Apache-2.0
"""Owns the small Qwen3-VL that answers questions about digits: its configuration, its checkpoint, its evaluation.
Leaves questions and inputs to `vlm_data.py` and optimisation to `train_vlm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from examples.digits import vlm_data
from examples.digits.vlm_data import IGNORE, MAX_ANSWER, TASKS, TOKEN, WORDS, Question

CHECKPOINT = Path(__file__).parent / "vlm"
EOS = TOKEN["<eos>"]

Inputs = Callable[..., dict[str, Tensor]]
"""What makes a family's batch of questions, with the arguments of `vlm_data.inputs`."""

TEXT: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 96,
    "intermediate_size": 288,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "pad_token_id": TOKEN["<pad>"],
    "eos_token_id": EOS,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [7, 5, 4],
        "mrope_interleaved": True,
    },
}

VISION: dict[str, Any] = {
    "depth": 5,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": vlm_data.PATCH,
    "temporal_patch_size": vlm_data.TEMPORAL,
    "spatial_merge_size": vlm_data.MERGE,
    "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [1, 3],
}


def vlm_config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> Qwen3VLConfig:
    """The HF configuration, with entries of `text` and `vision` in the place of the defaults."""
    return Qwen3VLConfig(
        text_config=TEXT | (text or {}),
        vision_config=VISION | (vision or {}),
        image_token_id=TOKEN["<image>"],
        video_token_id=TOKEN["<video>"],
        vision_start_token_id=TOKEN["<vision_start>"],
        vision_end_token_id=TOKEN["<vision_end>"],
        tie_word_embeddings=True,
    )


def load_model(folder: str | Path = CHECKPOINT) -> Qwen3VLForConditionalGeneration:
    """HF's model with the weights in `folder` (by default the trained ones), float32, eager attention, in eval mode."""
    require(folder, "train_vlm.py")
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


def require(folder: str | Path, script: str) -> None:
    """Raises FileNotFoundError when `folder` is no checkpoint, naming the `script` that makes one."""
    missing = [name for name in ("config.json", "model.safetensors") if not (Path(folder) / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {' and no '.join(missing)}; make one with examples/digits/{script}")


@dataclass(frozen=True)
class Score:
    """Shares (0 to 1) of questions whose whole answer is right, in all and per task; `nll` is nats per answer token."""

    exact: float
    by_task: dict[str, float]
    nll: float

    def __str__(self) -> str:
        tasks = ", ".join(f"{task} {share:.4f}" for task, share in self.by_task.items())
        return f"exact match {self.exact:.4f} ({tasks}), answer nll {self.nll:.4f}"


@torch.no_grad()
def answer(
    model: nn.Module, asked: Sequence[Question], *, batch_size: int = 100, inputs: Inputs = vlm_data.inputs
) -> list[tuple[int, ...]]:
    """Greedy answers by `model.generate`, up to and with `<eos>`, at most MAX_ANSWER tokens each.

    `model` is HF's model or pyquant's quantized tree of it, of the family whose batches `inputs` makes. Prompts of a
    batch are padded on the left.
    """
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    found = []
    for start in range(0, len(asked), batch_size):
        batch = inputs(asked[start : start + batch_size])
        ids = generate(**batch, max_new_tokens=MAX_ANSWER, do_sample=False)[:, batch["input_ids"].shape[1] :]
        found += [tuple(row[: row.index(EOS) + 1] if EOS in row else row) for row in ids.tolist()]
    return found


@torch.no_grad()
def answer_nll(
    model: nn.Module, asked: Sequence[Question], *, batch_size: int = 100, inputs: Inputs = vlm_data.inputs
) -> float:
    """Mean negative log likelihood, in nats per token, of the right answers (`<eos>` included), teacher forced."""
    total, count = 0.0, 0
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        logits = model(**inputs(part, answers=True)).logits
        labels = vlm_data.labels(part)
        total += float(F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), labels[:, 1:].flatten(), reduction="sum"))
        count += int((labels != IGNORE).sum())
    return total / count


def evaluate(
    model: nn.Module, asked: Sequence[Question], *, batch_size: int = 100, inputs: Inputs = vlm_data.inputs
) -> Score:
    """Exact match of the greedy answers, overall and per task, and the nll of the right ones."""
    answers = answer(model, asked, batch_size=batch_size, inputs=inputs)
    right = [found == q.answer for q, found in zip(asked, answers, strict=True)]
    by_task = {task: [r for q, r in zip(asked, right, strict=True) if q.task == task] for task in TASKS}
    return Score(
        exact=sum(right) / len(right),
        by_task={task: sum(rows) / len(rows) for task, rows in by_task.items() if rows},
        nll=answer_nll(model, asked, batch_size=batch_size, inputs=inputs),
    )


def heldout_questions(count: int = 600) -> list[Question]:
    """The questions that evaluate the model: digits that it never saw, a third of them for each task."""
    return vlm_data.questions("heldout", count, seed=0)
