# SPDX-License-Identifier: Apache-2.0
"""auto16: which activations of an 8-bit policy get 16 bits, and the range of the others, by what rounding them costs.

It owns the choice. The cost of a grid is impact.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pyquant import ops
from pyquant.algorithms.impact import Grids, Impact, Impacts, candidates
from pyquant.algorithms.log import Decision, agree, record
from pyquant.distributed import Group, guarded
from pyquant.errors import InputError, PhaseError
from pyquant.qparams import QParams
from pyquant.role import Role
from pyquant.site import Site
from pyquant.spec import INT16, IntType, PerTensor, QuantSpec
from pyquant.weight import weights
from pyquant.wrap import Phase, QModule

__all__ = ["Widened", "auto16"]

WIDE = QuantSpec(INT16, symmetric=True)
# Ends of a range are the observed ones, divided by these: down to a 128th, in quarters of an octave.
_SHRINK = [2.0 ** (-k / 4) for k in range(29)]


@dataclass(frozen=True)
class Widened:
    """What auto16 chose. paths: of the sites that have 16 bits now. share: of all activation elements of a run.
    before, after: the expected loss of all activations as they were, and as they are: nats a token for a language
    model (see auto16)."""

    paths: tuple[str, ...]
    share: float
    before: float
    after: float


def auto16(
    q: QModule,
    batches: Iterable[Any],
    *,
    loss: float = 0.02,
    share: float = 0.25,
    ranges: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    group: Group | None = None,
) -> Widened:
    """Give 16 bits to the activations that lose most at 8, the dearest for its size first, and a range to the others.

    Run it after calibrate, with weights decided. It runs the tree forwards and backwards on `batches` (2,000 tokens are
    enough), which takes the memory of training without an optimizer, and no parameter gets a gradient. What a grid
    costs a tensor is expected from the squared gradients of the log-likelihood of tokens that the model itself draws:
    1/2 sum g^2 (x - rounded x)^2 (impact.Impact.loss). So a residual stream of 24,000 in one token, or the input
    of a down_proj 18,000 times its deviation, is found by what it costs, not by its name. Where the output is no logits
    the cost is half the mean squared error of a row of the output, relative to its variance.

    loss: stop when the expected loss of all activations is no more than this, in nats for each token. Errors of several
        tensors add up to more than that: on SmolLM2-135M, rotated, .03 became .047 with weights of 8 bits (.06: .083).
    share: at most this part of all elements of activations gets 16 bits.
    ranges: search the range of what stays at 8 bits too, by the same cost; else it stays the observed one. That saves
        elements, and the expectation is less true of values that are clipped: .03 became .072, with 7 % of the elements
        at 16 bits, where the observed ranges had .083 with as many.
    seed: of the tokens that are drawn.
    group: processes with other parts of the data, as of calibrate; rank r draws by seed + r.

    Sites of one tensor (the output of a layer, the input of the next) are changed together, and keep one grid. What the
    policy leaves float or gives 16 bits, decided grids, and sites whose range does not follow from their values (masks,
    masked logits) stay as they are. A linear layer beside 16 bits gets symmetric weights where its weight is not
    decided: no runtime but TICO's multiplies 16 bits with asymmetric ones.

    The choice is recorded: in the log of the tree, in its notes, and in the sites (`decided`), so that it is saved with
    the tree. Raises PhaseError for a tree that is not in the CALIBRATE phase, InputError for a parameter out of range,
    CalibrationError for no batches or a tree that is not calibrated.
    """
    if not (loss >= 0 and 0 <= share <= 1):
        raise InputError(f"auto16 takes a loss of at least 0 and a share between 0 and 1, got {loss = }, {share = }")
    if not isinstance(q, QModule):
        raise PhaseError(f"auto16 takes the tree that pyquant.prepare returned, got {type(q).__name__}")
    q.require(Phase.CALIBRATE, "auto16")
    q.state.require_intact("auto16")
    began = time.perf_counter()
    impacts = Impacts(q, [site for site in q.all_sites() if _counts(site)])
    with guarded(group):
        impacts.measure(batches, seed=seed, progress=progress, group=group)
    seconds = time.perf_counter() - began
    choices = [_Choice.of(impact, impacts.rows, ranges) for impact in impacts.found]
    wide = _choose(choices, loss, share)
    decisions = []
    for choice in choices:
        decisions += choice.apply(choice in wide, ranges, impacts.rows, seconds / len(choices))
    symmetric = _symmetric_weights(q) if wide else []
    record(q, decisions)
    result = _result(choices, wide)
    text = (
        f"auto16: {len(result.paths)} sites at 16 bits, {result.share:.2%} of the activation elements; expected loss "
        f"{result.after:.4g} (nats a token for logits), {result.before:.4g} without"
    )
    text += f"; {len(symmetric)} weights became symmetric" if symmetric else ""
    q.state.notes.append(text)
    agree(q, group, "auto16")
    return result


def _counts(site: Site) -> bool:
    """An activation or small constant with a format."""
    return site.spec is not None and not site.role.is_kernel and isinstance(site.spec.granularity, PerTensor)


def _open(site: Site) -> bool:
    """Whether its format may change."""
    return site.spec is not None and site.scale is None and site.spec.dtype.bits <= 8


def _spec(site: Site) -> QuantSpec:
    """The format of a site that `_counts`, which has one."""
    assert site.spec is not None, f"{site.path} is float"
    return site.spec


@dataclass(eq=False)
class _Choice:
    """One tensor: its expected loss as the policy has it, at 8 bits with the best range, and at 16; for each row."""

    impact: Impact
    given: float
    narrow: float
    wide: float
    grid: tuple[float, float] | None  # the best range, where it is not the observed one

    @classmethod
    def of(cls, impact: Impact, rows: int, ranges: bool) -> _Choice:
        """Rate the grids of one tensor."""
        site = impact.sites[0]
        low, high = _range(site)
        spec = _spec(site)
        given = float(impact.loss(_grids(spec, [low], [high]))) / rows
        if not all(map(_open, impact.sites)) or impact.fixed:
            return cls(impact, given, given, given, None)
        wide = float(impact.loss(_grids(WIDE, [low], [high]))) / rows
        if not ranges or impact.constant or site.observer is None or not site.observer.needs_data:
            return cls(impact, given, given, wide, None)
        grids = _grids(spec, *([end * k for k in _SHRINK] if end else [0.0] for end in (low, high)))
        losses = impact.loss(grids)
        best = int(losses.argmin())
        return cls(impact, given, float(losses[best]) / rows, wide, (float(grids.low[best]), float(grids.high[best])))

    @property
    def gain(self) -> float:
        """What 16 bits save for each element."""
        return (self.narrow - self.wide) / self.impact.elements

    def apply(self, wide: bool, ranges: bool, rows: int, seconds: float) -> list[Decision]:
        """Change the sites; returns what was decided."""
        made = []
        for site in self.impact.sites:
            spec = _spec(site)
            if wide:
                site.reformat(WIDE, "auto16")
            elif self.grid is not None:
                lo, hi = (torch.tensor(end, dtype=torch.float32, device="cpu") for end in self.grid)
                scale, zero_point = ops.choose_qparams(lo, hi, spec.qmin, spec.qmax, spec.symmetric)
                site.decide(QParams(spec, scale, zero_point), "auto16")
            else:
                continue
            note = f"expected loss {self.wide if wide else self.narrow:.3g} ({self.given:.3g} before)"
            made.append(Decision(site.path, "auto16", 16 if wide else spec.dtype.bits, None, rows, seconds, note))
        return made


def _choose(choices: list[_Choice], loss: float, share: float) -> list[_Choice]:
    """The tensors that get 16 bits."""
    left = sum(choice.narrow for choice in choices)
    room = share * _elements(choices)
    wide = []
    for choice in sorted(choices, key=lambda each: each.gain, reverse=True):
        if left <= loss or choice.gain <= 0:
            break
        if choice.impact.elements <= room:
            wide.append(choice)
            room -= choice.impact.elements
            left += choice.wide - choice.narrow
    return wide


def _elements(choices: Iterable[_Choice]) -> int:
    return sum(c.impact.elements for c in choices if not c.impact.constant)


def _result(choices: list[_Choice], wide: list[_Choice]) -> Widened:
    sites = [site for choice in wide for site in choice.impact.sites]
    after = sum(choice.wide if choice in wide else choice.narrow for choice in choices)
    before = sum(choice.given for choice in choices)
    whole = _elements(choices)
    return Widened(tuple(site.path for site in sites), _elements(wide) / whole if whole else 0.0, before, after)


def _range(site: Site) -> tuple[float, float]:
    """The ends of the site's grid as it is: decided, known, or observed."""
    found = site.qparams if site.scale is not None else site.compute_qparams()
    if not isinstance(found, QParams):
        raise InputError(f"auto16: site {site.path!r} has no range ({found}); run pyquant.calibrate first")
    step, zero, spec = float(found.scale), int(found.zero_point), found.spec
    low, high = (spec.qmin - zero) * step, (spec.qmax - zero) * step
    if site.observer is not None and site.role.known_range is None:
        low, high = (float(end) for end in site.observer.range())
    return min(low, 0.0), max(high, 0.0)


def _grids(spec: QuantSpec, low: list[float], high: list[float]) -> Grids:
    """Grids of every pair of ends; of a symmetric format those with the larger end on both sides."""
    if spec.symmetric:
        ends = max(low, high, key=lambda each: max(map(abs, each)))
        return Grids(*_symmetric([abs(end) for end in ends], spec.qmax))
    return candidates(low, high, spec.qmax - spec.qmin)


def _symmetric(ends: list[float], qmax: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    high = torch.tensor(ends, dtype=torch.float64, device="cpu")
    return -high, high, high.clamp(min=torch.finfo(torch.float32).tiny) / qmax


def _symmetric_weights(q: QModule) -> list[str]:
    """Give symmetric formats to the asymmetric weights, not decided, of modules with 16 bits around the product."""
    changed = []
    for weight in weights(q):
        spec, site = weight.spec, weight.site
        around = [other for name, other in weight.module.own_sites() if name in ("act_in", "act_out")]
        if spec is None or spec.symmetric or site.role is not Role.WEIGHT or not weight.open:
            continue
        if not any(other.spec == WIDE for other in around):
            continue
        new = QuantSpec(IntType(spec.dtype.bits, signed=True), symmetric=True, granularity=spec.granularity)
        site.reformat(new, "auto16")
        changed.append(weight.path)
    return changed
