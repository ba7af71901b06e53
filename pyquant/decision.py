# SPDX-License-Identifier: Apache-2.0
"""Decision: one line of the quantization log of a tree, and the log as CSV.

It owns the record and its file form. The log of a tree is TreeState.log; algorithms add to it (algorithms/log.py).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from pyquant.errors import SpecError

__all__ = ["LOG_FILE", "Decision", "from_csv", "to_csv"]

LOG_FILE = "quantization_log.csv"


@dataclass(frozen=True)
class Decision:
    """What was decided of one site, such as the integers of a weight.

    path: of the site. how: who decided, in words ("gptq"). bits: of the format. loss: the squared error of the layer's
    output over the rows seen, relative to that output's own square, where the algorithm knows it. rows: how many
    rows of calibration data it was decided by, 0 where it takes none. seconds: how long the decision took, without
    running the model; neither compared nor in the file. note: what a reader of the log should know besides ("3 of 128
    experts saw no data: nearest").
    """

    path: str
    how: str
    bits: int
    loss: float | None = None
    rows: int = 0
    seconds: float = field(default=0.0, compare=False)
    note: str = ""


# Not the seconds: the same run gives the same file.
_COLUMNS = tuple(each.name for each in fields(Decision) if each.name != "seconds")


def to_csv(decisions: Iterable[Decision]) -> str:
    """A header and a line for each decision, in their order; an unknown loss is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for d in decisions:
        loss = "" if d.loss is None else f"{d.loss:.9g}"
        writer.writerow((d.path, d.how, d.bits, loss, d.rows, d.note))
    return text.getvalue()


def from_csv(text: str) -> list[Decision]:
    """Inverse of `to_csv`, up to the digits written. Raises SpecError that names the line that does not fit."""
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(rows[0]) != _COLUMNS:
        raise SpecError(
            f"a quantization log has the columns {','.join(_COLUMNS)}, got {','.join(rows[0] if rows else [])}"
        )
    found = []
    for number, row in enumerate(rows[1:], 2):
        try:
            path, how, bits, loss, seen, note = row
            decision = Decision(path, how, int(bits), float(loss) if loss else None, int(seen), note=note)
        except ValueError as error:
            raise SpecError(f"line {number} of the quantization log is {','.join(row)!r}: {error}") from None
        if decision.loss is not None and math.isnan(decision.loss):
            raise SpecError(f"line {number} of the quantization log has the loss nan")
        found.append(decision)
    return found
