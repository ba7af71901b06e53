# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: plain numbers per output and per operator, printable and as JSON data.

It owns how results are shown. Measuring is fidelity.py, the tolerances are tolerance.py.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class OutputDiff:
    """One graph output, end to end. `exported_equal`: the traced program equals eager bit for bit.

    `unequal` elements differ at all, `beyond` of them by more than one step of the grid.
    """

    name: str
    elements: int
    exported_equal: bool
    max_abs: float
    mean_abs: float
    peir: float
    sqnr_db: float
    max_lsb: float | None  # None for a tensor without a grid
    unequal: int
    beyond: int


@dataclass(frozen=True)
class OpDiff:
    """One operator, with the eager model's tensors as inputs. `relative`: max |difference| / max |expected|."""

    index: int
    op: str
    tensor: str
    elements: int
    max_lsb: float | None
    relative: float
    unequal: int

    @property
    def share_equal(self) -> float:
        return 1.0 - self.unequal / self.elements if self.elements else 1.0


@dataclass(frozen=True)
class Report:
    """The result of compare(). `unchecked` operators write tensors that have no value in the eager model.

    `dtype` is the float type that eager computes in; below float32 its own rounding is most of the difference.
    """

    name: str
    outputs: tuple[OutputDiff, ...]
    operators: tuple[OpDiff, ...]
    unchecked: int
    dtype: str = "float32"

    @property
    def exported_equal(self) -> bool:
        """True when the traced program gives the eager model's outputs bit for bit."""
        return all(out.exported_equal for out in self.outputs)

    @property
    def max_lsb(self) -> float:
        """The largest difference of any quantized operator, in steps of its output grid."""
        return max((op.max_lsb for op in self.operators if op.max_lsb is not None), default=0.0)

    @property
    def share_equal(self) -> float:
        """The share of equal elements over all quantized operators."""
        graded = [op for op in self.operators if op.max_lsb is not None]
        total = sum(op.elements for op in graded)
        return 1.0 - sum(op.unequal for op in graded) / total if total else 1.0

    def worst(self, count: int = 5) -> list[OpDiff]:
        """The operators that differ most, worst first."""
        different = [op for op in self.operators if op.unequal or op.relative > 0]
        return sorted(different, key=lambda op: (-(op.max_lsb or 0.0), -op.unequal, -op.relative, op.index))[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities become None."""
        summary = {
            "name": self.name,
            "exported_equal": self.exported_equal,
            "max_lsb": self.max_lsb,
            "share_equal": self.share_equal,
            "unchecked": self.unchecked,
            "dtype": self.dtype,
        }
        parts = {"outputs": [asdict(out) for out in self.outputs], "operators": [asdict(op) for op in self.operators]}
        return {key: _plain(value) for key, value in {**summary, **parts}.items()}

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """The outputs and the worst operators as a table."""
        lines = [
            f"{self.name}: exported program {'equals' if self.exported_equal else 'DIFFERS FROM'} eager; "
            f"{len(self.operators)} operators, max {self.max_lsb:.0f} LSB, {self.share_equal:.3%} of elements equal, "
            f"{self.unchecked} unchecked",
            f"{'output':<24} {'max LSB':>8} {'unequal':>8} {'> 1 LSB':>8} "
            f"{'max |diff|':>11} {'mean |diff|':>11} {'PEIR':>9} {'SQNR dB':>8}",
        ]
        lines += [
            f"{out.name:<24} {_lsb(out.max_lsb)} {out.unequal:>8} {out.beyond:>8} "
            f"{out.max_abs:>11.4g} {out.mean_abs:>11.4g} {out.peir:>9.2e} {out.sqnr_db:>8.1f}"
            for out in self.outputs
        ]
        if self.dtype != "float32":
            lines.insert(1, f"eager computes in {self.dtype}, the file in float32: copy.deepcopy(q).float() is exact")
        if worst := self.worst():
            lines.append(f"{'worst operators':<24} {'max LSB':>8} {'unequal':>8} {'relative':>11}  tensor")
            lines += [
                f"{f'{op.index} {op.op}':<24} {_lsb(op.max_lsb)} {op.unequal:>8} {op.relative:>11.4g}  {op.tensor}"
                for op in worst
            ]
        return "\n".join(lines)


def _lsb(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.0f}':>8}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
