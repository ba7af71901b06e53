# SPDX-License-Identifier: Apache-2.0
"""Block tuning: which way each weight is rounded, and the range of each row, learned against the float block's output.

It owns the steps of the optimization. Where a weight starts is range_search.py and gptq.py, the order of blocks and
what they are called with blocks.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyquant.algorithms.blocks import Block, Samples, run_blocks
from pyquant.algorithms.decide import Choose
from pyquant.algorithms.gptq import Solver
from pyquant.algorithms.learned import Learned
from pyquant.algorithms.log import Decision, agree, record
from pyquant.algorithms.range_search import nearest
from pyquant.algorithms.targets import chosen_weights
from pyquant.distributed import Group
from pyquant.errors import InputError
from pyquant.wrap import QModule

__all__ = ["tune"]

HOW = "tune"
CHECKS = 5  # how often a block's loss is measured on the same samples, the start and the end included
CHECKED = 16  # samples that it is measured on
Start = Literal["nearest", "gptq"]


def tune(
    q: QModule,
    batches: Iterable[Any],
    *,
    match: str | Sequence[str] = "*",
    max_bits: int = 4,
    steps: int = 100,
    batch: int = 4,
    lr: float | None = None,
    start: Start = "nearest",
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool | None = None,
    group: Group | None = None,
) -> list[Decision]:
    """Decide the weights of linears block by block, so that each block returns what it does in the float model:
    W' = s * (clamp(round(W / s + V) + z, qmin, qmax) - z), with offsets V in [-.5, .5] and the factor of s's range in
    [.5, 1.5] learned by signed gradients (AutoRound: Cheng et al. 2023, arXiv 2309.05516).

    A block's inputs are those that the decided blocks before it make; its target is what the float model returns on its
    own inputs. The loss of a place is |y' - y|^2 / |y|^2, so that no attention sink outweighs all other tokens. Of the
    iterates that are compared, the start among them, the best is kept: a block never gets worse on its samples.

    q: a tree in the CALIBRATE phase, before calibrate. batches: as calibrate takes them; 32 or more windows of text.
    match, max_bits: as of gptq. steps: updates of each block. batch: calls of the block that one update sees (a batch
    whose rows run one by one is several). lr: of the first step, falling to 0 linearly; 1 / steps by default. start:
    "nearest" integers on the range of least error, or those of "gptq". seed: of the order of samples; the same seed
    gives the same bits. resume: a folder with a file for each finished block, from which an interrupted run goes on.
    group: processes with other parts of the data, as of calibrate. Their samples are numbered rank after rank, and
    gradients are added in the order in which samples were drawn, as one process adds them.

    Weights in no block, and those that no data reached, are left at their start. Returns a Decision for each weight,
    whose loss is the block's. Raises what gptq raises; InputError for numbers that make no sense; CheckpointError for a
    folder of another run.
    """
    if start not in get_args(Start):
        raise InputError(f"tune starts from {' or '.join(map(repr, get_args(Start)))}, got {start!r}")
    if steps < 1 or batch < 1 or (lr is not None and not 0 < lr <= 1):
        raise InputError(f"tune takes steps >= 1, batch >= 1 and lr in (0, 1], got {steps = }, {batch = }, {lr = }")
    paths = {weight.path for weight in chosen_weights(q, match, max_bits)}
    rate = 1 / steps if lr is None else lr
    solver = _Tuner(steps, batch, rate, Solver("search", 0.01, True, 0.0) if start == "gptq" else nearest, seed, group)
    settings = {"steps": steps, "batch": batch, "lr": rate, "start": start, "seed": seed, "weights": sorted(paths)}
    with q.state.exclusive(HOW):
        log = run_blocks(
            q,
            batches,
            solver,
            propagate="quantized",
            choose=lambda weight: weight.path in paths,
            settings=settings,
            resume=None if resume is None else Path(resume),
            progress=progress,
            verb=HOW,
            group=group,
        )
        agree(q, group, HOW)
    record(q, log)
    return log


class _Tuner:
    """The solver of one run."""

    def __init__(self, steps: int, batch: int, lr: float, start: Choose, seed: int, group: Group | None = None) -> None:
        self.group = None if group is None or group.size == 1 else group
        self.steps, self.batch, self.lr, self.start, self.seed = steps, batch, lr, start, seed

    def __call__(self, block: Block) -> list[Decision]:
        began = time.perf_counter()
        choices = [self.start(weight, block.moments.of(weight)) for weight in block.weights]
        learned = [
            Learned(weight, choice.qparams, block.path, choice.integers)
            for weight, choice in zip(block.weights, choices, strict=True)
        ]
        loss, note = None, "in no block that data reached: as at the start"
        if block.samples is not None:
            first, loss = self._learn(block.samples, learned)
            note = f"loss of the block; {first:.3g} at the start"
        for each in learned:
            each.decide(HOW)
        seconds = (time.perf_counter() - began) / len(learned)
        return [
            replace(
                choice.decision, how=HOW, loss=choice.decision.loss if loss is None else loss, seconds=seconds,
                note="; ".join(filter(None, (note, choice.decision.note))),
            )
            for choice in choices
        ]  # fmt: skip

    def _learn(self, samples: Samples, learned: Sequence[Learned]) -> tuple[float, float]:
        """Tune them in place -> the loss at the start and of what is kept."""
        order = torch.Generator().manual_seed(self.seed)
        counts = [len(samples)] if self.group is None else self.group.gather("samples of a block", len(samples))
        count, before = sum(counts), 0 if self.group is None else sum(counts[: self.group.rank])
        own = range(before, before + len(samples))
        checked = sorted({round(i * (count - 1) / max(1, CHECKED - 1)) for i in range(CHECKED)})
        checks = {round(i * self.steps / (CHECKS - 1)) for i in range(CHECKS)}
        first = best = math.inf
        queue: list[int] = []
        for step in range(self.steps + 1):
            if step in checks:
                loss = self._checked(samples, learned, checked, own)
                first = loss if step == 0 else first
                if loss < best:
                    best = loss
                    for each in learned:
                        each.keep()
            if step == self.steps:
                break
            if len(queue) < self.batch:
                queue += torch.randperm(count, generator=order, dtype=torch.int64, device="cpu").tolist()
            chosen, queue = queue[: self.batch], queue[self.batch :]
            with torch.enable_grad():
                self._backward(samples, {each.name: each.leaf() for each in learned}, chosen, own)
            for each in learned:
                each.step(self.lr * (1 - step / self.steps))
        return first, best

    def _backward(self, samples: Samples, leaves: dict[str, Tensor], chosen: Sequence[int], own: range) -> None:
        """Add the gradients of the losses of the samples of these numbers, of which `own` are here, to the leaves."""
        for sample in chosen:
            if sample in own:
                at = sample - own.start
                loss = _loss(samples.output(at, leaves), samples.target(at))
            if self.group is None:
                torch.autograd.backward(loss)
                continue
            tensors = list(leaves.values())
            found = torch.autograd.grad(loss, tensors, allow_unused=True) if sample in own else None
            sent: _Gradients | None = (
                None if found is None else [None if each is None else each.cpu() for each in found]
            )
            for leaf, each in zip(tensors, self.group.fold("gradients", sent, _either) or (), strict=True):
                if each is not None:
                    each = each.to(leaf.device)
                    leaf.grad = each if leaf.grad is None else leaf.grad + each

    def _checked(self, samples: Samples, learned: Sequence[Learned], numbers: Sequence[int], own: range) -> float:
        weights = {each.name: each.value() for each in learned}
        losses = {
            n: float(_loss(samples.output(n - own.start, weights), samples.target(n - own.start)))
            for n in numbers
            if n in own
        }
        if self.group is not None:
            losses = self.group.fold("losses of a block", losses, lambda some, more: some | more)
        return sum(losses[n] for n in numbers) / len(numbers)


_Gradients = list[Tensor | None]


def _either(one: _Gradients | None, other: _Gradients | None) -> _Gradients | None:
    """Of the gradients of one sample, those of the rank that has it."""
    return other if one is None else one


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """The mean over places of |output - target|^2 / |target|^2."""
    off = (output.float() - target.float()).square().sum(-1)
    size = target.float().square().sum(-1)
    return (off / size.clamp(min=1e-12)).mean()
