# SPDX-License-Identifier: Apache-2.0
"""Where the files of each recipe run, as found out with the demo's Qwen3-VL bundle (README, "Which recipe runs where").

It owns these verdicts; the faults behind them are those of `pyquant-circle check --target`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Verdict:
    """`words` as a person reads them; `runs`: a test compares what the runtime computes with the quantized model."""

    words: str
    runs: bool = False

    def __str__(self) -> str:
        return self.words


RUNS = Verdict("runs", True)
_NO_BLOCKS = Verdict("refused: no block formats")
_ONERT = Verdict("runs, with `--target onert`", True)
_ONERT_BLOCKS = Verdict("untested: `--target onert`, needs AVX-512")  # no machine of ours has AVX-512


def _faults(count: int) -> Verdict:
    return Verdict(f"refused: {count} faults")


#: The columns: pyquant's own runner (circle.Runner), TICO's reference runtime, ONE's rules (luci), onert.
RUNTIMES = ("pyquant", "tico", "luci", "onert")


def _row(tico: Verdict, luci: Verdict, onert: Verdict) -> Mapping[str, Verdict]:
    return MappingProxyType(dict(zip(RUNTIMES, (RUNS, tico, luci, onert), strict=True)))


_16_BITS = _row(RUNS, _faults(138), _faults(1261))
#: recipe -> runtime -> verdict
VERDICTS: Mapping[str, Mapping[str, Verdict]] = MappingProxyType(
    {
        "w8a8": _row(RUNS, _faults(3), _faults(434)),
        "w8a8-fast": _row(RUNS, Verdict("checked only: 0 faults"), _faults(388)),
        "w8a8_stream16": _row(RUNS, _faults(8), _faults(460)),
        "w8a8_int8": _row(RUNS, _faults(2760), _faults(650)),
        "w8a16": _16_BITS,
        "w8a16-fast": _16_BITS,
        "w4a16": _16_BITS,
        "w4a16-fast": _16_BITS,
        "w4a16_kv8": _row(RUNS, _faults(162), _faults(1245)),
        "w4a8": _row(RUNS, _faults(138), _faults(375)),
        "w4a8-fast": _row(RUNS, _faults(138), _faults(331)),
        "w8_onert": _row(RUNS, _faults(2924), _ONERT),
        "q8_onert": _row(_NO_BLOCKS, _faults(3167), _ONERT_BLOCKS),
        "w4_onert": _row(_NO_BLOCKS, _faults(3167), _ONERT_BLOCKS),
        "float": _row(RUNS, _faults(2924), _ONERT),
    }
)


def fitting(target: str) -> tuple[str, ...]:
    """The recipes whose files keep the rules of a `--target` other than circle, which every recipe keeps."""
    return tuple(name for name, row in VERDICTS.items() if not row[target].words.startswith("refused"))


def advice(target: str) -> str:
    """What to do about faults of a target, as the end of an error: recipes that have none; nothing for circle, whose
    rules every recipe keeps."""
    return (
        f"; recipes without faults there: {', '.join(fitting(target))} (`pyquant recipes`)"
        if target in RUNTIMES
        else ""
    )
