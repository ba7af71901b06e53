# SPDX-License-Identifier: Apache-2.0
"""Owns the optimisation of a digits VLM, whichever family it is of: recipe, steps, moving average, resumption, script.
Leaves the model and its starting weights to `train_vlm.py` and `train_gemma4.py`, questions to `vlm_data.py`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from examples.digits import vlm_data
from examples.digits.vlm import Inputs, Score, evaluate, heldout_questions


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults made the Qwen3-VL checkpoint. The first `easy` steps have easy questions only."""

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


@dataclass(frozen=True)
class Trained:
    """The averaged weights in HF's model, the loss of each step, and the score on held-out digits."""

    model: PreTrainedModel
    losses: list[float]
    heldout: Score


@dataclass
class _State:
    """What a step changes; all of it is in `state.pt`, from which a run that was stopped goes on to the same end."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    losses: list[float]

    def save(self, file: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        part = file.with_suffix(".part")
        torch.save({**parts, "generator": self.generator.get_state(), "losses": self.losses}, part)
        part.replace(file)

    def load(self, file: Path) -> None:
        stored = torch.load(file)
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(stored[name])
        self.generator.set_state(stored["generator"])
        self.losses[:] = stored["losses"]


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays matrices only: norms, biases, embeddings and position rows keep their size."""
    named = list(model.named_parameters())
    decays = [p for n, p in named if p.ndim > 1 and "embed" not in n]
    keeps = [p for n, p in named if p.ndim == 1 or "embed" in n]
    groups = [{"params": decays, "weight_decay": recipe.weight_decay}, {"params": keeps, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)


def train(
    recipe: Recipe,
    model: PreTrainedModel,
    average: PreTrainedModel,
    inputs: Inputs,
    *,
    max_steps: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    save_every: int = 500,
    heldout: int = 600,
    quiet: bool = False,
) -> Trained:
    """Trains `model` on the `train` digits; the same recipe, number of threads and machine give the same losses.

    Nothing is chosen by the `heldout` digits: what counts is `average`, the moving average of the weights, after the
    last step; it starts as a copy of `model`. It is also saved to `out`, if given, every `save_every` steps, with all
    that `resume` needs to go on from there. `max_steps` stops early (for tests).
    """
    state = _State(model, average, optimizer_for(model, recipe), torch.Generator().manual_seed(recipe.seed), [])
    heldout_set = heldout_questions(heldout)
    if resume and out is not None and (out / "state.pt").is_file():
        state.load(out / "state.pt")
    steps = min(recipe.steps, max_steps or recipe.steps)
    progress = tqdm(range(len(state.losses), steps), disable=quiet, unit="step", mininterval=10)
    model.train()
    for step in progress:
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        seed = recipe.seed * 1_000_000 + step
        asked = vlm_data.questions("train", recipe.batch_size, seed, easy=step < recipe.easy)
        batch = inputs(asked, answers=True, padding="right", generator=state.generator)
        state.losses.append(_step(model, state.optimizer, batch, vlm_data.labels(asked, padding="right")))
        progress.set_postfix(loss=f"{state.losses[-1]:.3f}", refresh=False)
        _follow_(average, model, min(recipe.ema, (step + 1) / (step + 10)))
        if (step + 1) % save_every == 0 and step + 1 < steps:
            if out is not None:
                average.save_pretrained(out)
                state.save(out / "state.pt")
            if not quiet:
                mean = sum(state.losses[-save_every:]) / save_every
                score = evaluate(average, heldout_set[:150], inputs=inputs)
                progress.write(f"step {step + 1}  loss {mean:.4f}  held-out {score}")
    return Trained(average, state.losses, evaluate(average, heldout_set, inputs=inputs))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], labels: Tensor) -> float:
    """One gradient step by the loss on answer tokens; returns that loss before it."""
    logits = model(**batch, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _follow_(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in eval mode, for the moving average; its attention is HF's own whatever `model` trains with."""
    average = copy.deepcopy(model).eval()
    average.set_attn_implementation("sdpa")
    return average


def main(
    describe: str,
    default: Recipe,
    checkpoint: Path,
    train: Callable[..., Trained],
    arguments: Sequence[str] | None = None,
    save: Callable[[PreTrainedModel, Path], None] = lambda model, folder: model.save_pretrained(folder),
) -> int:
    """Trains by `train(recipe, out=, resume=, save_every=)`, prints, saves; returns 1 when the held-out exact match is
    below `--at-least`. `default` has the defaults of the arguments, `checkpoint` that of `--out`; `save` writes it.
    """
    parser = argparse.ArgumentParser(description=describe)
    parser.add_argument("--out", type=Path, default=checkpoint, help="folder for the checkpoint")
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
    parser.add_argument("--resume", action="store_true", help="go on from the state in --interim, if there is one")
    parser.add_argument("--at-least", type=float, default=0.95, help="exact match below which nothing is saved")
    args = parser.parse_args(arguments)
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)})

    torch.set_num_threads(args.threads)
    start = time.monotonic()
    trained = train(recipe, out=args.interim, resume=args.resume, save_every=args.save_every)
    parameters = sum(p.numel() for p in trained.model.parameters())
    seconds = time.monotonic() - start
    print(f"held-out {trained.heldout}; {parameters} parameters, {seconds:.0f} s on {args.threads} threads")
    if trained.heldout.exact < args.at_least:
        print(f"not saved: {trained.heldout.exact:.4f} is below --at-least {args.at_least}", file=sys.stderr)
        return 1
    save(trained.model, args.out)
    print(f"saved {args.out / 'model.safetensors'} ({(args.out / 'model.safetensors').stat().st_size} bytes)")
    return 0
