# SPDX-License-Identifier: Apache-2.0
"""Impact: what rounding the values of an activation site costs the model, expected from gradients, for any grid.

It owns the statistics, one histogram for each tensor, and the estimate. What is done with it is auto16.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant import autocast
from pyquant import progress as shown
from pyquant.batch import call, result_tensors
from pyquant.distributed import Group
from pyquant.errors import CalibrationError
from pyquant.site import Clip, Site
from pyquant.stream import watching
from pyquant.wrap import Phase, QModule, phase

__all__ = ["Grids", "Impact", "Impacts", "candidates"]

_SHIFT = 19  # bits of a float32 that a bin leaves out: it keeps sign, exponent and the first four of the fraction
_BINS = 1 << (32 - _SHIFT)


@dataclass(eq=False)
class Impact:
    """What passed one tensor: how many values lie in each bin, and the sum of their squared gradients there.

    sites: those that round this tensor, the first one first. elements: how many values a run has on average. fixed: its
    range does not follow from its values (masked logits). The gradients are those of the log-likelihood of outputs that
    are drawn from the model itself, so that the mean of g^2 is the diagonal of its Fisher information.
    """

    sites: list[Site]
    weight: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64, device="cpu"))
    count: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.int64, device="cpu"))
    low: float = float("inf")
    high: float = float("-inf")
    elements: int = 0
    fixed: bool = False

    def see(self, x: Tensor, gradient: Tensor) -> None:
        """Take values and their gradients, of one shape, into the statistics."""
        value, slope = x.reshape(-1).float().contiguous(), gradient.reshape(-1).float()
        index = (value.view(torch.int32) >> _SHIFT) & (_BINS - 1)
        self.weight += torch.bincount(index, weights=slope.square(), minlength=_BINS).cpu()
        self.count += torch.bincount(index, minlength=_BINS).cpu()
        low, high = (float(end) for end in value.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.elements += value.numel()

    def loss(self, grids: Grids) -> Tensor:
        """(grids,) float64: the expected loss of each grid, in sum over all runs: 1/2 sum g^2 (x - rounded x)^2.

        The second-order expansion of the divergence from the model that does not round, where the errors of values are
        independent of each other (as in optimal brain damage, LeCun 1990, with the Fisher information as Hessian). An
        error is the distance to the end of the grid beyond it, else that of rounding: step^2 / 12 in square, but x^2
        where that is less.
        """
        used = self.weight > 0
        weight, x = self.weight[used], _centers()[used].clamp(self.low, self.high)
        found = []
        for start in range(0, len(grids.step), 64):
            low, high, step = (each[start : start + 64] for each in (grids.low, grids.high, grids.step))
            beyond = torch.maximum(low[:, None] - x, x - high[:, None]).clamp(min=0).square()
            inside = torch.minimum(x.square(), step.square()[:, None] / 12)
            found.append(torch.where(beyond > 0, beyond, inside) @ weight / 2)
        return torch.cat(found)

    def add(self, other: Impact) -> None:
        """Take the statistics of the same tensor on other data in."""
        self.weight, self.count = self.weight + other.weight, self.count + other.count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.elements, self.fixed = self.elements + other.elements, self.fixed or other.fixed

    @property
    def constant(self) -> bool:
        """Whether it is a small constant of the model, such as the gain of a norm."""
        return self.sites[0].role.is_constant

    def same_values(self, other: Impact) -> bool:
        """Whether both saw the same values, in whatever order."""
        ends = (self.low, self.high, self.elements) == (other.low, other.high, other.elements)
        return ends and torch.equal(self.count, other.count)


@dataclass(frozen=True)
class Grids:
    """Grids as their ends and steps, each (n,) float64."""

    low: Tensor
    high: Tensor
    step: Tensor


class Impacts:
    """The impacts of sites of a tree: `found` after `measure`; `rows` of output were seen in `runs` batches."""

    def __init__(self, q: QModule, sites: Iterable[Site]) -> None:
        self._q, self._sites = q, list(sites)
        self._of: dict[Site, Impact] = {}
        self._memory: dict[tuple[int, int], Impact] = {}
        self._start = torch.zeros((), dtype=torch.float32, device="cpu")
        self.rows = self.runs = 0

    @property
    def found(self) -> list[Impact]:
        """One for each tensor that the output depends on; a copy of a tensor in another order is the same tensor."""
        whole: dict[tuple[float, float, int], list[Impact]] = {}
        reached = dict.fromkeys(self._of[site] for site in self._sites if site in self._of)
        for impact in (impact for impact in reached if impact.elements):
            alike = whole.setdefault((impact.low, impact.high, impact.elements), [])
            twin = None if impact.constant else next((other for other in alike if other.same_values(impact)), None)
            if twin is None:
                alike.append(impact)
            else:
                twin.sites += [site for site in impact.sites if site not in twin.sites]
                twin.fixed |= impact.fixed
        return [impact for alike in whole.values() for impact in alike]

    def measure(
        self, batches: Iterable[Any], *, seed: int = 0, progress: bool | None = None, group: Group | None = None
    ) -> None:
        """Run the tree forwards and backwards on each batch, in the FLOAT phase; no parameter gets a gradient. With a
        group the impacts are those of the batches of all ranks.

        Raises CalibrationError for no batches and for outputs without floating tensors.
        """
        rank = 0 if group is None else group.rank
        generator = torch.Generator().manual_seed(seed + rank)
        show = False if rank else progress
        with ExitStack() as stack:
            stack.enter_context(autocast.off())
            stack.enter_context(watching(self._q.state.stream, self._q))
            stack.enter_context(phase(self._q, Phase.FLOAT))
            stack.enter_context(self._q.state.collecting())
            stack.enter_context(self._watching())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for batch in shown.bar(batches, desc="auto16", unit="batch", show=show):
                self._start = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True)
                score, rows = _score(call(self._q, batch), batch, generator)
                torch.autograd.grad(score, [self._start], allow_unused=True)
                self._memory.clear()
                self.rows, self.runs = self.rows + rows, self.runs + 1
        if not self.runs:
            raise CalibrationError("auto16 got no batches: the iterable is empty (or a generator that was used up)")
        if group is not None and group.size > 1:
            self._merge(group)

    def _merge(self, group: Group) -> None:
        sent = [([site.path for site in impact.sites], replace(impact, sites=[])) for impact in _once(self._of)]
        merged, self.rows, self.runs = group.fold("impacts", (sent, self.rows, self.runs), _added)
        known = {site.path: site for site in self._sites}
        self._of = {}
        for paths, impact in merged:
            impact.sites = [known[path] for path in paths]
            self._of |= dict.fromkeys(impact.sites, impact)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for site in self._sites:
                stack.enter_context(site.tap(self._passed))
            yield

    def _passed(
        self, site: Site, x: Tensor, out: Tensor, *, clip: Clip | None, observed: Tensor | None, constant: bool
    ) -> Tensor:
        key = (out.untyped_storage().data_ptr(), out.numel())  # alive until the backward run is over
        impact = self._memory.get(key)
        if impact is not None:
            known = self._of.setdefault(site, impact)
            if site not in impact.sites and known is impact:
                impact.sites.append(site)
            impact.fixed |= site.apart
            return out
        impact = self._of.setdefault(site, Impact([site]))
        impact.fixed |= site.apart
        self._memory[key] = impact
        seen: Tensor = _Probe.apply(out, self._start, impact)  # type: ignore[no-untyped-call]
        return seen


class _Probe(torch.autograd.Function):
    """The value itself; on the way back its gradient goes to the impact. `start` is what the gradients are asked for,
    so that they flow through every probe and into no parameter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, impact: Impact) -> Tensor:
        ctx.save_for_backward(x)
        ctx.impact = impact
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        ctx.impact.see(x.detach(), gradient.detach())
        return gradient, torch.zeros((), dtype=torch.float32, device="cpu"), None


_Sent = tuple[list[tuple[list[str], Impact]], int, int]


def _once(of: Mapping[Site, Impact]) -> list[Impact]:
    return list(dict.fromkeys(of.values()))


def _added(some: _Sent, more: _Sent) -> _Sent:
    """Impacts with the paths of their sites, rows and runs of two ranks as one; tensors that share a site are one."""
    found = list(some[0])
    for paths, impact in more[0]:
        twin = next((each for each in found if not set(each[0]).isdisjoint(paths)), None)
        if twin is None:
            found.append((paths, impact))
            continue
        twin[1].add(impact)
        taken = {path for each, _ in found for path in each}
        twin[0].extend(path for path in paths if path not in taken)
    return found, some[1] + more[1], some[2] + more[2]


def _score(output: object, batch: object, generator: torch.Generator) -> tuple[Tensor, int]:
    """A scalar whose gradients have the Fisher information as mean square, and how many rows of output are in it.

    Of logits: the log-likelihood of a token drawn from them at each place that is no padding. Of other outputs: each
    tensor, relative to its own deviation, times noise; the expected loss is then half the mean squared error of a row
    relative to the output's variance.
    """
    tensors = result_tensors(output)
    if not tensors:
        raise CalibrationError(f"the model's output ({type(output).__name__}) has no floating tensor to be kept")
    if getattr(output, "logits", None) is tensors[0]:
        flat = tensors[0].flatten(0, -2).float()
        kept = _valid(batch, tensors[0])
        flat = flat if kept is None else flat[kept]
        with torch.no_grad():
            noise = torch.rand(flat.shape, generator=generator, dtype=torch.float32, device="cpu").to(flat.device)
            drawn = (flat - (-noise.clamp(1e-20, 1 - 1e-7).log()).log()).argmax(-1)  # Gumbel's trick
        return F.cross_entropy(flat, drawn, reduction="sum"), len(flat)
    total, rows = torch.zeros((), dtype=torch.float32, device="cpu"), 0
    for tensor in tensors:
        wide = tensor.float().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
        noise = torch.randn(wide.shape, generator=generator, dtype=torch.float32, device="cpu").to(wide.device)
        spread = wide.detach().std(correction=0).clamp(min=1e-20) * wide.shape[1] ** 0.5
        total, rows = total + (wide * noise).sum().cpu() / spread.cpu(), max(rows, len(wide))
    return total, rows


def _valid(batch: object, logits: Tensor) -> Tensor | None:
    """(rows,) bool: the places that a 2-D mask of the batch does not pad; None where there is no such mask."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    fits = isinstance(mask, Tensor) and mask.shape == logits.shape[:-1] and not mask.is_floating_point()
    return mask.reshape(-1).to(logits.device) != 0 if fits and isinstance(mask, Tensor) else None


def _centers() -> Tensor:
    """(bins,) float64: the value in the middle of each bin; zero for the bins around zero, and of no finite number."""
    index = torch.arange(_BINS, dtype=torch.int64, device="cpu")
    bits = (index << _SHIFT) | (1 << (_SHIFT - 1))
    signed = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32)
    value = signed.view(torch.float32).double()
    return torch.where(value.isfinite(), value, 0.0)


def candidates(low: Sequence[float], high: Sequence[float], steps: int) -> Grids:
    """Every pair of a low and a high end, with `steps` steps between them."""
    pairs = torch.cartesian_prod(*(torch.tensor(ends, dtype=torch.float64, device="cpu") for ends in (low, high)))
    return Grids(
        pairs[:, 0], pairs[:, 1], (pairs[:, 1] - pairs[:, 0]).clamp(min=torch.finfo(torch.float32).tiny) / steps
    )
