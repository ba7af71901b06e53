# SPDX-License-Identifier: Apache-2.0
"""The quantization log: its CSV form, and that a tree carries it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from pyquant.decision import Decision, from_csv, to_csv
from pyquant.errors import SpecError
from pyquant.tree_state import TreeState

ROWS = [
    Decision("a.b:weight", "gptq", 4, 0.0125, 512, 1.5),
    Decision('odd, "path":weight', "range", 8, None, 0, 0.0, "2 of 4 experts saw no data: nearest"),
]


def test_csv_round_trip() -> None:
    text = to_csv(ROWS)
    assert text.splitlines()[:2] == ["path,how,bits,loss,rows,note", "a.b:weight,gptq,4,0.0125,512,"]
    assert from_csv(text) == [replace(row, seconds=0.0) for row in ROWS]


def test_the_file_does_not_depend_on_how_long_it_took() -> None:
    assert to_csv([replace(row, seconds=9.0) for row in ROWS]) == to_csv(ROWS)


def test_a_file_that_is_no_log_is_named_by_line() -> None:
    with pytest.raises(SpecError, match="has the columns path,how,bits"):
        from_csv("a,b\n")
    with pytest.raises(SpecError, match="line 3 of the quantization log is 'x,y,four"):
        from_csv(to_csv(ROWS[:1]) + "x,y,four,,0,\n")


def test_a_copy_of_a_tree_has_a_log_of_its_own() -> None:
    state = TreeState()
    state.log.append(ROWS[0])
    for other in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        other.log.append(ROWS[1])
        assert other.log == ROWS
    assert state.log == ROWS[:1]
