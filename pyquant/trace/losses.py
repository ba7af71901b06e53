# SPDX-License-Identifier: Apache-2.0
"""Where a signal is lost: how much noise each call itself adds, between its inputs and its output.

It owns that attribution. Measuring one pair of tensors is metrics.py, the table is render.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pyquant.trace.metrics import difference
from pyquant.trace.pairing import Comparison, Entry
from pyquant.trace.record import Call, Trace
from pyquant.trace.values import TensorValue


@dataclass(frozen=True)
class Loss:
    """One call of a module, from its noisiest input to its noisiest output.

    sqnr_in, sqnr_out: in dB; infinite where nothing differs. lost: noise as a share of the signal (10^(-SQNR/10), at
    most 1) of the output minus that of the inputs, minus what the modules below it lost in the same call. problem:
    a fault of the output itself, such as NaN in one side only.
    """

    module: str
    repeat: int
    sqnr_in: float
    sqnr_out: float
    lost: float
    problem: str | None = None

    @property
    def title(self) -> str:
        """The name to show, as of Call."""
        return (self.module or "(model)") + (f" #{self.repeat + 1}" if self.repeat else "")


def losses(
    a: Trace, b: Trace, comparison: Comparison, names: Mapping[str, str] | None = None, count: int | None = None
) -> tuple[Loss, ...]:
    """The calls that themselves lose the most of their signal, the worst first; of equal ones the first to return.

    comparison, names: the result for the outputs and the argument of `compare`; both traces kept their tensors. Noise
    that a module only passes on is not its loss, so that the first in the list is where it began.
    """
    outputs: dict[tuple[str, int], list[Entry]] = {}
    for entry in comparison:
        if entry.path.partition(".")[0] == "output" and entry.difference is not None and entry.a.startswith(_FLOATS):
            outputs.setdefault((entry.module, entry.repeat), []).append(entry)
    right = {((names or {}).get(call.name, call.name), call.repeat): call for call in b}
    inputs = _Inputs(a, b)
    found: list[Loss] = []
    below: list[tuple[str, float]] = []  # what each call lost with all below it, until its parent returns
    for call in a:
        entries = outputs.get((call.name, call.repeat))
        if entries is None:
            continue
        worst = max(entries, key=_noise)
        before = inputs.noise(call, right[call.name, call.repeat])
        prefix = f"{call.name}." if call.name else ""
        inner = sum(lost for name, lost in below if name.startswith(prefix))
        below = [(name, lost) for name, lost in below if not name.startswith(prefix)]
        lost = max(0.0, _noise(worst) - before - inner)
        below.append((call.name, lost + inner))
        found.append(Loss(call.name, call.repeat, _decibel(before), _decibel(_noise(worst)), lost, worst.problem))
    found.sort(key=lambda loss: -loss.lost)
    return tuple(found if count is None else found[:count])


_FLOATS = ("float", "bfloat")


class _Inputs:
    """The noise of the inputs of a call.

    The output of one module is the input of the next: each pair is measured once.
    """

    def __init__(self, a: Trace, b: Trace) -> None:
        self.a, self.b = a, b
        self._known: dict[tuple[str, str], float] = {}

    def noise(self, left: Call, right: Call) -> float:
        """The noise of the noisiest pair. Wrappers may name arguments differently, so values are paired by shape."""
        mine, other = _by_shape(left), _by_shape(right)
        pairs = [
            pair
            for shape, values in mine.items()
            if len(values) == len(other.get(shape, ()))
            for pair in zip(values, other[shape], strict=True)
        ]
        return max((self._of(x, y) for x, y in pairs), default=0.0)

    def _of(self, x: TensorValue, y: TensorValue) -> float:
        assert x.key is not None, x
        assert y.key is not None, y
        if (x.key, y.key) not in self._known:
            left, right = self.a.tensor(x), self.b.tensor(y)
            found, clashes = difference(left, right.reshape(left.shape))
            self._known[x.key, y.key] = 1.0 if clashes else _share(found.sqnr)
        return self._known[x.key, y.key]


def _by_shape(call: Call) -> dict[tuple[int, ...], list[TensorValue]]:
    found: dict[tuple[int, ...], list[TensorValue]] = {}
    for value in _floats_in(call):
        found.setdefault(tuple(side for side in value.shape if side != 1), []).append(value)
    return found


def _floats_in(call: Call) -> Iterator[TensorValue]:
    for path, value in call.tensors():
        if not path.startswith("output") and value.key is not None and value.dtype.startswith(_FLOATS):
            yield value


def _noise(entry: Entry) -> float:
    if entry.problem is not None or entry.difference is None:
        return 1.0
    return _share(entry.difference.sqnr)


def _share(sqnr: float | None) -> float:
    """Noise as a share of the signal, at most 1."""
    return 0.0 if sqnr is None else 1.0 if sqnr <= 0 else float(10 ** (-sqnr / 10))


def _decibel(noise: float) -> float:
    return math.inf if noise == 0 else 0.0 - 10 * math.log10(noise)
