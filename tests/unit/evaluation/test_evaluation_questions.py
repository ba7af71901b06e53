# SPDX-License-Identifier: Apache-2.0
"""Lines of questions: what they may say, and the errors that name the line; a vision-language model answers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

import pyquant
from pyquant.calibration import Fingerprint, Line, fingerprint, load_reader
from pyquant.errors import EvaluationError
from pyquant.evaluation import read_questions
from pyquant.models import by_name
from tests import checkpoints

GOOD = {"question": "what is this ?", "answer": "one"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("questions")
    checkpoints.qwen3_vl(place / "model")
    for number in range(2):
        checkpoints.picture(place / f"{number}.png", 32, 40, seed=number)
    return place


def test_images_and_questions_go_through_the_processor(place: Path) -> None:
    """Each subject's answer is what its own generate() says; the images that calibration saw are counted."""
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(place / "model", attn_implementation="eager").eval()
    reader, prepare = load_reader(place / "model"), by_name("qwen3_vl").requests.inputs
    reader.tokenizer.decode = lambda ids, **_: " ".join(f"t{number}" for number in ids)  # words for every token
    batch = reader.read(Line("here", "what is this ?", (place / "0.png",)))
    out = model.generate(**batch, max_new_tokens=5, do_sample=False)
    said = reader.tokenizer.decode(out[0, batch["input_ids"].shape[1] :].tolist())
    rows = [
        {"question": "what is this ?", "image": "0.png", "answers": [said, "other", "another"]},
        {"question": "what is this ?", "images": ["1.png"], "answer": "certainly not this"},
    ]
    checkpoints.lines(place / "q.jsonl", *rows)
    task = read_questions(place / "q.jsonl", reader, prepare, max_new_tokens=5)
    q = pyquant.prepare(model, pyquant.Policy.preset("float"))
    known: Fingerprint = fingerprint([prepare(reader.read(Line("c", "read the digits", (place / "1.png",))))])
    found = pyquant.evaluate({"float": model, "wrapped": q}, [task], calibration=known)["questions:q.jsonl"]
    for name in ("float", "wrapped"):
        assert found.of(name).series["exact"].values == (1, 0)
        assert found.of(name).values["vqa"] == pytest.approx(1 / 6)
    pair = found.pair("wrapped", "float")
    assert pair.series["agreement"].mean == 1
    assert pair.differences["exact"].value == 0
    assert found.overlap is not None
    assert (found.overlap.images, found.overlap.equal) == (1, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: a line is an object"),
        ('{"question": "x", "answer": "y", "colour": 1}', "line 2: the key 'colour' is not known"),
        ('{"answer": "y"}', "line 2: 'question' is a text"),
        ('{"question": " ", "answer": "y"}', "line 2: 'question' is a text"),
        ('{"question": "x"}', "line 2: a question has an 'answer'"),
        ('{"question": "x", "answer": "y", "answers": ["y"]}', "'answer' and 'answers' mean the same"),
        ('{"question": "x", "answers": "y"}', "'answers' a list of texts, got 'y'"),
        ('{"question": "x", "answer": 3}', "'answer' is a text"),
        ('{"question": "x", "answer": "y", "image": "none.png"}', "none.png' does not exist"),
    ],
)
def test_a_line_that_is_no_question(row: str, message: str, place: Path, tmp_path: Path) -> None:
    path = checkpoints.lines(tmp_path / "q.jsonl", GOOD)
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(EvaluationError, match=message):
        read_questions(path, load_reader(place / "model"))


def test_a_file_without_questions(place: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n\n")
    with pytest.raises(EvaluationError, match="has no line; write one such as"):
        read_questions(tmp_path / "q.jsonl", load_reader(place / "model"))
