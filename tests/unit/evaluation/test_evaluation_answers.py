# SPDX-License-Identifier: Apache-2.0
"""The normalization and accuracy that visualqa.org describes, on its own examples and others."""

from __future__ import annotations

import pytest

from pyquant.errors import EvaluationError
from pyquant.evaluation import exact_match, normalized, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Cat.", "cat"),
        ("a red  car\n", "red car"),
        ("Two", "2"),
        ("ten cats and one dog", "10 cats and 1 dog"),
        ("dont", "don't"),
        ("It\u2019s", "it's"),
        ("its", "its"),
        ("100,978", "100978"),
        ("yes, no", "yes no"),
        ("3.50", "3.50"),
        ("U.S.A.", "usa"),
        ("2:50pm!", "2:50pm"),
        ("john's", "john's"),
        ("black/white-ish", "black white ish"),
        ("\u00dcber_1", "\u00fcber 1"),
        ("the", ""),
    ],
)
def test_normalized(text: str, wanted: str) -> None:
    assert normalized(text) == wanted
    assert normalized(wanted) == wanted


def test_exact_match_is_any_of_the_answers() -> None:
    assert exact_match("Two cats.", ["one cat", "2 cats"]) == 1
    assert exact_match("two", ["2 cats"]) == 0


@pytest.mark.parametrize(("matches", "wanted"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (10, 1)])
def test_three_people_of_ten_are_enough(matches: int, wanted: float) -> None:
    assert vqa_accuracy("a dog", ["dog"] * matches + ["cat"] * (10 - matches)) == pytest.approx(wanted)


def test_one_or_two_answers_count_in_full() -> None:
    assert vqa_accuracy("2", ["two"]) == 1
    assert vqa_accuracy("2", ["two", "a pair"]) == 1
    assert vqa_accuracy("3", ["two", "a pair"]) == 0


@pytest.mark.parametrize("answers", [[], "two"])
def test_answers_are_a_list(answers) -> None:
    with pytest.raises(EvaluationError, match="a list of one answer or more"):
        vqa_accuracy("2", answers)
