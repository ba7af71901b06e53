# SPDX-License-Identifier: Apache-2.0
"""Whether a text answers a question: exact match, and the accuracy of VQA with several people's answers.

It owns the normalization and both formulas. Both follow the evaluation that visualqa.org describes (Antol et al., VQA:
Visual Question Answering, ICCV 2015, section 3, and https://visualqa.org/evaluation.html); written from that text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyquant.errors import EvaluationError

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
# Contractions that are no other word without their apostrophe ("its", "were", "well", "ill" and "wed" are words).
_CONTRACTIONS = """
    ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't he'd he's how'd how's i'm i've isn't
    it'd it'll let's mightn't might've mustn't must've needn't oughtn't shan't she's shouldn't should've that'll that's
    there'd there's they'd they'll they're they've wasn't we've weren't what'll what's what've when's where'd where's
    who'd who'll who's who've why's won't wouldn't would've y'all you'd you'll you're you've
"""
_APOSTROPHES = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}


def normalized(text: str) -> str:
    """The text as answers are compared: lower case; no article; number words as digits; `dont` as `don't`; a period
    only in a decimal number; no comma between digits; every other mark but apostrophe and colon a space."""
    text = text.lower().replace("\u2019", "'")
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    text = re.sub(r"[^\w\s.':]|_", " ", text)
    words = [_DIGITS.get(word, _APOSTROPHES.get(word, word)) for word in text.split() if word not in _ARTICLES]
    return " ".join(words)


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 where the normalized text is one of the normalized answers, else 0. Raises EvaluationError without answers."""
    return float(_matches(text, answers) > 0)


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """min(1, matches / 3) for three answers or more: full credit where three people gave this one. With one or two
    answers (an answer, and another way to write it), a match with any counts in full.

    The evaluation code of visualqa.org takes the mean of this over the ten ways to leave one of ten answers out, which
    gives 0.9 in place of 1 for three matches. Raises EvaluationError without answers.
    """
    matches = _matches(text, answers)
    return min(1.0, matches / 3) if len(answers) >= 3 else float(matches > 0)


def _matches(text: str, answers: Sequence[str]) -> int:
    if not answers or isinstance(answers, str):
        raise EvaluationError(f"a question has a list of one answer or more, got {answers!r}")
    given = normalized(text)
    return sum(normalized(answer) == given for answer in answers)
