# SPDX-License-Identifier: Apache-2.0
"""sensitivity(): the output with one group of sites quantized at a time, against the output with none.

It owns the runs and the measurements. Switching is switch.py, grouping groups.py, the result result.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyquant.batch import call, result_tensors
from pyquant.errors import InputError, PhaseError
from pyquant.metrics import Deviation
from pyquant.sensitivity.formats import SiteFormat
from pyquant.sensitivity.groups import Grouping, Observation
from pyquant.sensitivity.result import Damage, GroupDamage, Sensitivity
from pyquant.sensitivity.switch import Switches
from pyquant.site import Site
from pyquant.wrap.base import QModule

Loss = Callable[[Any, Any], Any]


@torch.no_grad()
def sensitivity(
    q: QModule,
    batches: Iterable[Any],
    *,
    groups: Grouping = "tensor",
    output: Callable[[Any], Any] | None = None,
    loss: Loss | None = None,
    reference: QModule | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Quantize one group of the sites of a converted tree at a time, and measure the damage to the output.

    batches: as calibrate takes them (dicts, tuples, tensors); all are kept, so give a few small ones. One run for each
    group and batch; weights are quantized once, and `q` is restored afterwards.
    groups: `tensor` (sites of one tensor, which must all get a wider format for it to help), `site`,
    `module` (each wrapper's own sites), globs of site paths, or name -> glob or globs.
    output: the part of the model's output that counts (default: its logits, else every floating tensor in it).
    loss: `loss(output, batch)` -> a number, the mean over the batches counts.
    reference: the tree before its weights were decided (an algorithm, a checkpoint of integers): prepared, with the
    folding steps of the recipe (`oneshot.calibrate_by(tree, batches, recipe, only=("fold",))`), not converted. A weight
    of `q` that was decided is its decided integers when it is quantized, and the reference's value when it is not.
    Without a reference these weights, and all of a loaded tree, are measured against themselves; the result says so.
    progress: None shows a bar on a terminal, True always, False never.

    Raises PhaseError before convert, InputError for no batches or an output without floating tensors, PolicyError for
    groups that match nothing or overlap.
    """
    if not isinstance(q, QModule):
        raise PhaseError(f"sensitivity takes the tree that pyquant.prepare returned, converted; got {type(q).__name__}")
    switches = Switches(q, reference)
    if isinstance(batches, Tensor | Mapping | str):
        raise InputError(f"sensitivity takes an iterable of batches, got one {type(batches).__name__}; pass [batch]")
    given = list(batches)
    if not given:
        raise InputError("sensitivity got no batches: the iterable is empty (or a generator that was used up before)")
    run = _Run(q, given, output, loss)
    observation = Observation(switches.sites)
    hide = None if progress is None else not progress
    measured = []
    with switches.off():
        with observation.watching():
            first = run.outputs(given[0])
        run.remember(first)
        found = observation.groups(groups)
        for group in tqdm(found, desc="sensitivity", unit="group", disable=hide):
            with switches.on(group.sites):
                damage = run.damage()
            sites = tuple(_format(site) for site in group.sites)
            measured.append(GroupDamage(group.name, sites, group.parts, damage))
    used = set(observation.used)
    unused = tuple(site.path for site in switches.sites if site not in used)
    name = q.fp_type.__name__ if q.fp_type is not None else type(q).__name__
    return Sensitivity(name, q.policy, run.damage(), tuple(measured), observation.rest(found), unused, switches.settled)


def _format(site: Site) -> SiteFormat:
    assert site.spec is not None, f"{site.path!r} is float"
    return SiteFormat(site.path, site.role, site.spec)


class _Run:
    """Runs the model on all batches; keeps its outputs with no site quantized."""

    def __init__(self, q: QModule, batches: Sequence[Any], output: Callable[[Any], Any] | None, loss: Loss | None):
        self._q, self._batches, self._output, self._loss = q, batches, output, loss
        self._reference: list[list[Tensor]] = []
        self._base_loss = 0.0

    def outputs(self, batch: Any) -> tuple[list[Tensor], Any]:
        """The floating tensors of the output that count, and the whole output."""
        whole = call(self._q, batch)
        counted = whole if self._output is None else self._output(whole)
        tensors = result_tensors(counted)
        if not tensors:
            raise InputError(
                f"the model's output ({type(counted).__name__}) has no floating tensor; choose what counts by output="
            )
        return tensors, whole

    def remember(self, first: tuple[list[Tensor], Any]) -> None:
        """Store the reference; `first` is the result of the first batch."""
        results = [first, *(self.outputs(batch) for batch in self._batches[1:])]
        # Copies: a model may return a tensor that it writes to again (a cache).
        self._reference = [[tensor.detach().clone() for tensor in tensors] for tensors, _ in results]
        if len(counts := {len(tensors) for tensors in self._reference}) > 1:
            raise InputError(
                f"the model returns another number of floating tensors for some batches ({sorted(counts)}); choose "
                "what counts by output="
            )
        self._base_loss = self._mean_loss([whole for _, whole in results])

    def damage(self) -> Damage:
        """How far the outputs are from the reference with the sites that are quantized now."""
        results = [self.outputs(batch) for batch in self._batches]
        tensors = [tensors for tensors, _ in results]
        columns = [Deviation() for _ in self._reference[0]]
        for before, after in zip(self._reference, tensors, strict=True):
            for deviation, x, y in zip(columns, before, after, strict=True):
                if x.shape != y.shape:
                    raise InputError(
                        f"quantizing a group changed the shape of the output from {tuple(x.shape)} to "
                        f"{tuple(y.shape)}; choose outputs of one shape by output="
                    )
                deviation.add(x, y)
        loss = None if self._loss is None else self._mean_loss([whole for _, whole in results]) - self._base_loss
        return Damage(max(c.peir for c in columns), min(c.sqnr for c in columns), loss)

    def _mean_loss(self, outputs: list[Any]) -> float:
        if self._loss is None:
            return 0.0
        return math.fsum(float(self._loss(o, b)) for o, b in zip(outputs, self._batches, strict=True)) / len(outputs)
