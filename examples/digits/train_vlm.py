# SPDX-License-Identifier: Apache-2.0
"""Owns the training of the digits Qwen3-VL, from seeded noise to the checkpoint that the repository carries.
Leaves questions to `vlm_data.py`, configuration and judgement to `vlm.py`.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AttentionInterface, Qwen3VLConfig, Qwen3VLForConditionalGeneration

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.digits import vlm_data
from examples.digits.vlm import CHECKPOINT, Score, evaluate, heldout_questions, vlm_config

# HF hands the whole sequence with its segment bounds to implementations with "flash" in their name; for all others it
# calls once per image, which takes most of a step when images are as small as these.
SEGMENTS = "digits_flash_segments"


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults made the committed checkpoint. The first `easy` steps have easy questions only."""

    seed: int = 0
    steps: int = 5200
    easy: int = 800
    warmup: int = 200
    batch_size: int = 32
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    ema: float = 0.998

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.steps or self.batch_size < 1 or not 0 <= self.ema < 1:
            raise ValueError(f"training wants 0 <= warmup < steps, batch_size >= 1, 0 <= ema < 1: {self}")

    def lr_at(self, step: int) -> float:
        """Learning rate of `step` in [0, steps): a linear rise over `warmup` steps, then half a cosine down to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


def segment_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, cu_seq_lens_q: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    """Attention within each segment of (1, heads, S, head_dim) -> (1, S, heads, head_dim); one call per segment length.

    `cu_seq_lens_q` (segments + 1,) are the bounds. Registered as SEGMENTS, for training only: the weights know nothing
    of it, and the checkpoint's own attention is whatever it is loaded with.
    """
    bounds = cu_seq_lens_q.long()
    lengths, starts = bounds.diff(), bounds[:-1]
    out = torch.empty_like(query)
    for length in lengths.unique().tolist():
        rows = starts[lengths == length, None] + torch.arange(length)
        q, k, v = (x[0][:, rows].transpose(0, 1) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=rest["scaling"])
        out = out.index_copy(2, rows.flatten(), mixed.transpose(0, 1).flatten(1, 2)[None])
    return out.transpose(1, 2), None


AttentionInterface.register(SEGMENTS, segment_attention)


@torch.no_grad()
def initialize_(model: nn.Module, generator: torch.Generator) -> None:
    """Starting weights that train: HF's deviation of 0.02 starves a model this narrow.

    Matrices are normal with variance 1 / fan_in, those that write to a residual stream scaled by (2 * layers) ** -0.5;
    embeddings and position rows are small noise, so that the tied head starts with logits near 1.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            parameter.normal_(0.0, 0.1, generator=generator)
        elif name.endswith("pos_embed.weight"):
            parameter.normal_(0.0, 0.2, generator=generator)
        elif parameter.ndim > 1:
            writes = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight"))
            deviation = parameter[0].numel() ** -0.5 * (8**-0.5 if writes else 1.0)
            parameter.normal_(0.0, deviation, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


@dataclass(frozen=True)
class Trained:
    """The averaged weights in HF's model, the loss of each step, and the score on held-out digits."""

    model: Qwen3VLForConditionalGeneration
    losses: list[float]
    heldout: Score


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays matrices only: norms, biases, embeddings and position rows keep their size."""
    named = list(model.named_parameters())
    decays = [p for n, p in named if p.ndim > 1 and "embed" not in n]
    keeps = [p for n, p in named if p.ndim == 1 or "embed" in n]
    groups = [{"params": decays, "weight_decay": recipe.weight_decay}, {"params": keeps, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)


def new_model(config: Qwen3VLConfig, seed: int) -> Qwen3VLForConditionalGeneration:
    """HF's model of `config`, starting weights from `seed`, attention as training wants it."""
    with torch.random.fork_rng():
        model = Qwen3VLForConditionalGeneration(copy.deepcopy(config))
    model.set_attn_implementation("sdpa")
    model.model.visual.config._attn_implementation = SEGMENTS
    initialize_(model, torch.Generator().manual_seed(seed))
    return model


def train(
    recipe: Recipe,
    config: Qwen3VLConfig | None = None,
    *,
    max_steps: int | None = None,
    out: Path | None = None,
    save_every: int = 500,
    heldout: int = 600,
    quiet: bool = False,
) -> Trained:
    """Trains on the `train` digits; the same recipe, number of threads and machine give the same losses.

    Nothing is chosen by the `heldout` digits: what counts is the moving average of the weights after the last step.
    That average is also saved to `out`, if given, every `save_every` steps. `max_steps` stops early (for tests).
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    model = new_model(config or vlm_config(), recipe.seed)
    average = copy.deepcopy(model).eval()
    average.set_attn_implementation("sdpa")
    optimizer = _optimizer(model, recipe)
    heldout_set = heldout_questions(heldout)
    losses: list[float] = []
    steps = min(recipe.steps, max_steps or recipe.steps)
    progress = tqdm(range(steps), disable=quiet, unit="step", mininterval=10)
    model.train()
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        seed = recipe.seed * 1_000_000 + step
        asked = vlm_data.questions("train", recipe.batch_size, seed, easy=step < recipe.easy)
        losses.append(_step(model, optimizer, asked, generator))
        progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        _follow_(average, model, min(recipe.ema, (step + 1) / (step + 10)))
        if (step + 1) % save_every == 0 and step + 1 < steps:
            if out is not None:
                save(average, out)
            if not quiet:
                mean = sum(losses[-save_every:]) / save_every
                progress.write(f"step {step + 1}  loss {mean:.4f}  held-out {evaluate(average, heldout_set[:150])}")
    return Trained(average, losses, evaluate(average, heldout_set))


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, asked: Sequence[vlm_data.Question], generator: torch.Generator
) -> float:
    """One gradient step on freshly distorted digits, by the loss on answer tokens; returns that loss before it."""
    logits = model(**vlm_data.inputs(asked, answers=True, padding="right", generator=generator), use_cache=False).logits
    labels = vlm_data.labels(asked, padding="right")
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _follow_(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def save(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Writes `folder` as HF's `from_pretrained` reads it."""
    model.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, prints, saves; returns 1 when the held-out exact match is below `--at-least`."""
    default = Recipe()
    parser = argparse.ArgumentParser(description="Train the small Qwen3-VL that answers questions about digits.")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--easy", type=int, default=default.easy, help="steps with two digits in one small picture")
    parser.add_argument("--warmup", type=int, default=default.warmup, help="steps of rising learning rate")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--weight-decay", type=float, default=default.weight_decay)
    parser.add_argument("--ema", type=float, default=default.ema, help="decay of the moving average of the weights")
    parser.add_argument("--threads", type=int, default=1, help="matrices this small gain little from more")
    parser.add_argument("--save-every", type=int, default=500, help="steps from one interim checkpoint to the next")
    parser.add_argument("--interim", type=Path, default=None, help="folder for interim checkpoints; none by default")
    parser.add_argument("--at-least", type=float, default=0.95, help="exact match below which nothing is saved")
    chosen = vars(parser.parse_args(arguments))
    out, threads, at_least = chosen.pop("out"), chosen.pop("threads"), chosen.pop("at_least")
    interim, save_every = chosen.pop("interim"), chosen.pop("save_every")

    torch.set_num_threads(threads)
    start = time.monotonic()
    trained = train(Recipe(**chosen), out=interim, save_every=save_every)
    parameters = sum(p.numel() for p in trained.model.parameters())
    print(f"held-out {trained.heldout}; {parameters} parameters, {time.monotonic() - start:.0f} s on {threads} threads")
    if trained.heldout.exact < at_least:
        print(f"not saved: {trained.heldout.exact:.4f} is below --at-least {at_least}", file=sys.stderr)
        return 1
    save(trained.model, out)
    print(f"saved {out / 'model.safetensors'} ({(out / 'model.safetensors').stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
