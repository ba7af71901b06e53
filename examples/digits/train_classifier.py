# SPDX-License-Identifier: Apache-2.0
"""Owns the training of the digits classifier, from seeded noise to the checkpoint that the repository carries.
Leaves the images to `data.py`, the network and its files to `model.py`.
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

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.digits.data import Digits, load_split, patchify, random_affine
from examples.digits.model import CHECKPOINT, DigitsClassifier, DigitsConfig, accuracy, predict

VIEWS = 7


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults made the committed checkpoint."""

    seed: int = 0
    epochs: int = 60
    warmup_epochs: int = 5
    rise_epochs: float = 3.0
    batch_size: int = 64
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs or self.batch_size < 1 or self.rise_epochs <= 0:
            raise ValueError(f"training wants 0 <= warmup_epochs < epochs, batch_size >= 1, rise_epochs > 0: {self}")

    def lr_at(self, epoch: float) -> float:
        """Learning rate at `epoch` in [0, epochs]: half a cosine down to 0, times a linear rise after each fresh start.

        Training starts afresh at 0 and at `warmup_epochs`, where new standardization buffers rescale the head.
        """
        since = epoch - self.warmup_epochs if epoch >= self.warmup_epochs else epoch
        return self.lr * min(1.0, since / self.rise_epochs) * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


@dataclass(frozen=True)
class Trained:
    """The best model by validation, the loss of each step, and the accuracies of that model."""

    model: DigitsClassifier
    losses: list[float]
    validation: float
    heldout: float


def _optimizer(model: DigitsClassifier, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays matrices only: norms, biases and position rows keep their size."""
    decays = [p for n, p in model.named_parameters() if p.ndim == 2]
    keeps = [p for n, p in model.named_parameters() if p.ndim != 2]
    groups = [{"params": decays, "weight_decay": recipe.weight_decay}, {"params": keeps, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))


def train(
    recipe: Recipe, config: DigitsConfig | None = None, *, max_steps: int | None = None, quiet: bool = False
) -> Trained:
    """Trains a classifier; the same recipe, number of threads and machine give the same losses.

    The best epoch is chosen by accuracy, then by loss, on the `validation` images and `VIEWS` distortions of each
    (alone they are too few to tell two epochs apart). The standardization buffers are set from
    `fit` images for the starting weights, again after the warm-up, and then stay as they are while training goes on;
    the chosen weights get theirs at the end (`standardize_` never changes what the classifier computes).
    `max_steps` stops early (for tests).
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = DigitsClassifier(config)
    model.initialize_(generator)
    fit, validation, heldout = (load_split(name) for name in ("fit", "validation", "heldout"))
    fit_inputs, validation_inputs, heldout_inputs = (
        patchify(part.images, model.config) for part in (fit, validation, heldout)
    )
    if recipe.warmup_epochs:
        model.standardize_(fit_inputs)
    judged_inputs, judged_labels = _judged(validation, model.config, generator)
    optimizer = _optimizer(model, recipe)
    steps = len(fit) // recipe.batch_size
    total = recipe.epochs * steps
    losses: list[float] = []
    best, best_score = copy.deepcopy(model), (-1.0, 0.0)

    progress = tqdm(total=min(total, max_steps or total), disable=quiet, unit="step")
    for epoch in range(recipe.epochs):
        if epoch == recipe.warmup_epochs:
            model.standardize_(fit_inputs)
            # A fresh Adam: its moments belong to the head before it was rescaled.
            optimizer = _optimizer(model, recipe)
        model.train()
        order = torch.randperm(len(fit), generator=generator)[: steps * recipe.batch_size]
        for rows in order.view(steps, recipe.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at((len(losses) + 1) / steps)
            losses.append(_step(model, optimizer, fit.images[rows], fit.labels[rows], recipe, generator))
            progress.update()
            if len(losses) == max_steps:
                break
        model.eval()
        logits = predict(model, judged_inputs)
        score = (accuracy(logits, judged_labels), -float(F.cross_entropy(logits, judged_labels)))
        if epoch >= recipe.warmup_epochs and score > best_score:
            best, best_score = copy.deepcopy(model), score
        if not quiet:
            heldout_accuracy = accuracy(predict(model, heldout_inputs), heldout.labels)
            mean_loss = sum(losses[-steps:]) / len(losses[-steps:])
            progress.write(
                f"epoch {epoch + 1:3d}  loss {mean_loss:.4f}  validation {score[0]:.4f} ({-score[1]:.4f})  "
                f"held-out {heldout_accuracy:.4f}"
            )
        if len(losses) == max_steps:
            break
    progress.close()

    best.standardize_(fit_inputs)
    best.eval()
    return Trained(
        model=best,
        losses=losses,
        validation=accuracy(predict(best, validation_inputs), validation.labels),
        heldout=accuracy(predict(best, heldout_inputs), heldout.labels),
    )


def _judged(validation: Digits, config: DigitsConfig, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and labels of `validation` as it is, followed by `VIEWS` distorted copies of it."""
    images, labels = validation.images.repeat(1 + VIEWS, 1, 1), validation.labels.repeat(1 + VIEWS)
    affine = random_affine(len(images), generator)
    affine[: len(validation)] = torch.eye(2, 3)
    return patchify(images, config, affine), labels


def _step(
    model: DigitsClassifier,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
) -> float:
    """One gradient step on freshly distorted images; returns the loss before it."""
    inputs = patchify(images, model.config, random_affine(len(images), generator))
    loss = F.cross_entropy(model(**inputs), labels, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, prints, saves; returns 1 when the held-out accuracy is below `--at-least`."""
    default = Recipe()
    parser = argparse.ArgumentParser(description="Train the Gemma4 vision classifier of handwritten digits.")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder for model.safetensors and config.json")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument(
        "--warmup-epochs", type=int, default=default.warmup_epochs, help="epochs before std_bias and std_scale are set"
    )
    parser.add_argument("--rise-epochs", type=float, default=default.rise_epochs, help="epochs of rising learning rate")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--weight-decay", type=float, default=default.weight_decay)
    parser.add_argument("--label-smoothing", type=float, default=default.label_smoothing)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--at-least", type=float, default=0.97, help="held-out accuracy below which nothing is saved")
    chosen = vars(parser.parse_args(arguments))
    out, threads, at_least = chosen.pop("out"), chosen.pop("threads"), chosen.pop("at_least")

    torch.set_num_threads(threads)
    start = time.monotonic()
    trained = train(Recipe(**chosen))
    parameters = sum(p.numel() for p in trained.model.parameters())
    print(
        f"held-out accuracy {trained.heldout:.4f}, validation {trained.validation:.4f}, {parameters} parameters, "
        f"{time.monotonic() - start:.0f} s on {threads} threads"
    )
    if trained.heldout < at_least:
        print(f"not saved: {trained.heldout:.4f} is below --at-least {at_least}", file=sys.stderr)
        return 1
    trained.model.save(out)
    print(f"saved {out / 'model.safetensors'} ({(out / 'model.safetensors').stat().st_size} bytes) and config.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
