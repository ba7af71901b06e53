# SPDX-License-Identifier: Apache-2.0
"""Smoothing: scales of channels that move size from activations into weights, folded into the weights around them.

It owns choosing the scales (SmoothQuant, AWQ) and what they are folded into. Changing weights is folding.py, which
modules belong together is wrap/structure.py, statistics are channels.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyquant import observe, ops
from pyquant.algorithms.channels import Channels, ChannelStats
from pyquant.algorithms.folding import Folds, require_foldable
from pyquant.algorithms.log import agree
from pyquant.distributed import Group
from pyquant.errors import CalibrationError, InputError
from pyquant.spec import BlockSpec
from pyquant.weight import Weight
from pyquant.wrap import QModule, structure

__all__ = ["Smoothed", "smooth"]

Kind = Literal["feeds", "pairs"]
_ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of SmoothQuant
_POWERS = (0.25, 0.5, 0.75, 1.0)  # of AWQ


@dataclass(frozen=True)
class Smoothed:
    """What was chosen for the channels between `before`, the path of a norm or linear, and the linears at `after`.

    how: "smoothquant 0.5", "awq 0.25", or "kept". loss: the expected squared error of the linears' outputs relative to
    that without scales, where it was searched.
    """

    before: str
    after: tuple[str, ...]
    how: str
    loss: float | None = None


@torch.no_grad()
def smooth(
    q: QModule,
    batches: Iterable[Any],
    *,
    alpha: float | Literal["search"] = 0.5,
    kinds: Collection[Kind] = ("feeds", "pairs"),
    progress: bool | None = None,
    group: Group | None = None,
) -> list[Smoothed]:
    """Scale channels so that activations, or weights, lose less when they are rounded. Outputs stay as they are, in
    float, but for rounding; no operator is added.

    Run it after prepare and before weights are decided or activations calibrated. The model runs once over `batches`
    (as calibrate takes them), in float.

    alpha: s = max|x|^alpha / max|w|^(1 - alpha) for each channel (SmoothQuant, arXiv 2211.10438, equation 4): inputs
        are divided by s, weights multiplied with it. "search": for each norm or pair, the best of several alphas, of
        s = mean|x|^p for several p (AWQ, arXiv 2306.00978), and of no scale: the least expected squared error of the
        linears' outputs, with weights and inputs rounded as the policy wants them.
    kinds: "feeds": a norm and the linears that read it; "pairs": up_proj -> down_proj, and v_proj -> o_proj, where the
        heads of queries that share a head of values share its scales.
    group: processes with other parts of the data, as of calibrate; the statistics are those of all.

    A norm without a gain is left as it is. A token table and a head that are one tensor become two in this tree.
    Weights that are edited in the float model later do not reach the tree.

    Raises InputError for arguments that are none, and where there is nothing to smooth; CalibrationError for no batches
    and for NaN or Inf; PhaseError for a tree that is calibrated or converted, that has decided weights, or whose float
    model was edited after prepare. Nothing is changed then.
    """
    require_foldable(q, "smooth")
    _check(alpha, kinds)
    links = [*(_feeds(q) if "feeds" in kinds else []), *(_pairs(q) if "pairs" in kinds else [])]
    if not links:
        raise InputError(
            f"smooth found nothing to scale in this {type(q).__name__}: no wrapper in it declares a norm with a gain "
            f"and all its readers, or linears that scale against each other (kinds={list(kinds)}); leave the step out"
        )
    channels = Channels(q, [linear for link in links for linear in link.linears])
    channels.collect(batches, "smooth", progress, group)
    folds = Folds(q)
    done = []
    for link in links:
        seen = [channels.of(linear) for linear in link.linears]
        _require_finite(link, seen)
        scale, how, loss = _search(link, seen) if alpha == "search" else _plain(link, seen, float(alpha))
        if scale is not None:
            link.fold(folds, scale)
        done.append(Smoothed(link.before.path, tuple(linear.path for linear in link.linears), how, loss))
    folds.apply()
    agree(q, group, "smooth")
    return done


def _check(alpha: object, kinds: object) -> None:
    number = isinstance(alpha, float | int) and not isinstance(alpha, bool) and 0 <= alpha <= 1
    if not number and alpha != "search":
        raise InputError(f'smooth: alpha is a number from 0 to 1, or "search", got {alpha!r}')
    known = get_args(Kind)
    if isinstance(kinds, str) or not isinstance(kinds, Collection) or not kinds or not set(kinds) <= set(known):
        raise InputError(f"smooth: kinds is a list of {', '.join(map(repr, known))}, got {kinds!r}")


# --- what can be scaled ---


@dataclass(frozen=True)
class _Link:
    """Channels between a module that makes them and linears that read them.

    channel: for each column of the linears' weights, the channel that it multiplies; `count` channels in all.
    """

    before: QModule
    linears: tuple[QModule, ...]
    channel: Tensor
    count: int

    def fold(self, folds: Folds, scale: Tensor) -> None:
        """Divide the channels by `scale` (count,), and multiply the columns that read them."""
        columns = scale[self.channel.to(scale.device)].double()
        for linear in self.linears:
            folds.columns(linear, lambda rows: rows * columns.to(rows.device))
        if hasattr(self.before, "watch_rows"):
            folds.rows(self.before, lambda rows: rows / scale.to(rows))
            return
        for name in ("weight", "bias"):
            if (value := self.before._parameters.get(name)) is not None:
                folds.set(self.before, name, value.detach().double() / scale.to(value.device))

    def most(self, columns: Tensor) -> Tensor:
        """The largest of the columns' values (in,) >= 0 of each channel, (count,); 0 for one that nobody reads."""
        out = torch.zeros(self.count, dtype=columns.dtype, device=columns.device)
        return out.scatter_reduce_(0, self.channel.to(columns.device), columns, "amax")


def _feeds(q: QModule) -> list[_Link]:
    found = []
    for feed in structure.feeds(q):
        gain = feed.norm._parameters.get("weight")
        if gain is not None:
            width = feed.readers[0].get_parameter("weight").shape[1]
            channel = torch.arange(width, dtype=torch.int64, device="cpu") % len(gain)
            found.append(_Link(feed.norm, feed.readers, channel, len(gain)))
    return found


def _pairs(q: QModule) -> list[_Link]:
    return [
        _Link(pair.producer, (pair.consumer,), pair.rows, pair.producer.get_parameter("weight").shape[0])
        for pair in structure.pairs(q)
    ]


Seen = list[dict[int, ChannelStats]]  # for each linear of a link


def _require_finite(link: _Link, seen: Seen) -> None:
    for linear, found in zip(link.linears, seen, strict=True):
        for stats in found.values():
            if not bool(torch.isfinite(stats.square).all()):
                raise CalibrationError(
                    f"smooth: the inputs of {linear.path!r} have NaN or Inf, or their squares do; repair the model or "
                    "the data"
                )


# --- which scales ---


def _plain(link: _Link, seen: Seen, alpha: float) -> tuple[Tensor | None, str, None]:
    """SmoothQuant's scales, as they are."""
    if not any(seen):
        return None, "kept", None  # experts that no data reached
    sizes, weights = _sizes(link, seen)
    return _level(sizes**alpha / weights ** (1 - alpha), (sizes > 0) & (weights > 0)), f"smoothquant {alpha:g}", None


def _search(link: _Link, seen: Seen) -> tuple[Tensor | None, str, float | None]:
    """The best of all candidates by `_loss`."""
    if not any(seen):
        return None, "kept", None
    sizes, weights = _sizes(link, seen)
    means = link.most(torch.stack([stats.size / stats.rows for found in seen for stats in found.values()]).amax(0))
    used = (sizes > 0) & (weights > 0)
    candidates = {f"smoothquant {a:g}": _level(sizes**a / weights ** (1 - a), used) for a in _ALPHAS}
    candidates |= {f"awq {p:g}": _level(means**p, used) for p in _POWERS}
    before = _loss(link, seen, None)
    losses = {how: _loss(link, seen, scale) for how, scale in candidates.items()}
    best = min(losses, key=lambda how: losses[how])
    if not losses[best] < before:
        return None, "kept", None if before == 0 else 1.0
    return candidates[best], best, losses[best] / before


def _sizes(link: _Link, seen: Seen) -> tuple[Tensor, Tensor]:
    """The largest input and the largest weight of each channel."""
    inputs = torch.stack([stats.largest for found in seen for stats in found.values()]).amax(0)
    weights = torch.stack([linear.get_parameter("weight").detach().abs().amax(0).float() for linear in link.linears])
    return link.most(inputs), link.most(weights.amax(0))


def _level(scale: Tensor, used: Tensor) -> Tensor:
    """Scales with a geometric mean of 1, and 1 for channels that are always 0: sizes stay where they were overall."""
    logs = torch.where(used, scale.double(), 1.0).log()
    mean = logs.sum() / used.sum().clamp(min=1)
    return torch.where(used, (logs - mean).clamp(-30, 30), 0.0).exp()


def _loss(link: _Link, seen: Seen, scale: Tensor | None) -> float:
    """The expected sum of squares of what the linears' outputs lose over the rows seen, with `scale` folded.

    Of the weights: sum_c (sum of x_c^2) (w_c - w'_c)^2, the error of each column taken as independent of the others'.
    Of the inputs: each element is off by step^2 / 12, and counts by the square of its column of weights.
    """
    total = 0.0
    for linear, found in zip(link.linears, seen, strict=True):
        weight = Weight(linear, "weight")
        matrices = weight.value.float().chunk(weight.matrices)
        ones = torch.ones(link.count, dtype=torch.float64, device=matrices[0].device)
        columns = (ones if scale is None else scale).float()[link.channel.to(ones.device)]
        step = _step(linear, found, columns)
        for index, stats in found.items():
            scaled = matrices[index] * columns
            total += float((_rounding(weight, scaled).square() @ (stats.square / columns.square())).double().sum())
            total += step * step / 12 * stats.rows * float(scaled.square().double().sum())
    return total


def _rounding(weight: Weight, matrix: Tensor) -> Tensor:
    """What each value of a matrix loses on the grid of its whole range; nothing, where the policy leaves it float."""
    spec = weight.spec
    if spec is None or isinstance(spec, BlockSpec):
        return torch.zeros_like(matrix)
    observer = observe.make("minmax", {}, spec, constant=True)
    observer.update(matrix)
    grid = observer.qparams()
    return matrix - ops.fake_quantize(matrix, grid.scale, grid.zero_point, grid.axis, grid.group, spec.qmin, spec.qmax)


def _step(linear: QModule, found: dict[int, ChannelStats], columns: Tensor) -> float:
    """The step of the grid of the linear's inputs, once these are divided; 0 where they stay float."""
    spec = linear.site("act_in").spec
    if spec is None or isinstance(spec, BlockSpec):
        return 0.0
    low = min(float((stats.low / columns).min()) for stats in found.values())
    high = max(float((stats.high / columns).max()) for stats in found.values())
    if spec.symmetric:
        return 2 * max(-low, high) / (spec.qmax - spec.qmin)
    return (high - low) / (spec.qmax - spec.qmin)
