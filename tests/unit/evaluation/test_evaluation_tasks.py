# SPDX-License-Identifier: Apache-2.0
"""Answers given as tokens, throughput by a clock of our own, lm-eval's errors, and which subjects are compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import pyquant
from pyquant import evaluation
from pyquant.errors import EvaluationError
from pyquant.evaluation import Forced, Likelihood, LmEval, Perplexity, Throughput
from pyquant.evaluation.order import ordered_pairs, reference_of
from pyquant.models import by_name, llama, qwen3_vl
from pyquant.verify import Session
from tests import checkpoints

PROMPTS = ((3, 4, 5, 6), (9, 8))
ANSWERS = ((10, 11, 12), (7, 13))


def forced() -> Forced:
    """Two questions of unequal length, padded on the left, with and without their answers."""
    rows = [(*prompt, *answer) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    return Forced(padded(PROMPTS), padded(rows), ANSWERS)


def padded(rows: Any) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([(257,) * (width - len(row)) + tuple(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 257).long(), "not_taken": torch.zeros(2)}


@pytest.fixture(scope="module")
def q() -> Any:
    tree = pyquant.prepare(by_name("llama").example.tiny_model(), pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(tree, [torch.arange(64)[None]])
    pyquant.convert(tree)
    return tree


@pytest.fixture(scope="module")
def session(q: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A bundle of two rows."""
    folder = tmp_path_factory.mktemp("tasks") / "b"
    pyquant.export_bundle(q, folder, llama.Profile(16, prefill_lengths=(8,), batch_size=2))
    with Session(folder) as session:
        yield session


def test_answers_have_the_likelihood_of_each_question_alone(q: Any, session: Session) -> None:
    """By tree and files; the answers' tokens come from generate() with each right token put in its place."""
    found = pyquant.evaluate({"tree": q, "files": session}, [Likelihood((forced(),))])["answers"]
    for prompt, answer, nats in zip(PROMPTS, ANSWERS, found.of("tree").series["nats"].values, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            rows = q(ids).logits[0, len(prompt) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(rows.double(), torch.tensor(answer), reduction="sum")
        assert nats == pytest.approx(float(expected), abs=2e-3)
    assert found.of("tree").series["nats"].weights == (3, 2)
    pair = found.pair("files", "tree")
    assert abs(pair.differences["nats"].value) < 1e-3
    assert pair.series["agreement"].mean == 1
    assert found.of("files").series["exact"] == found.of("tree").series["exact"]


def test_an_answer_is_exact_when_it_is_what_generate_says(q: Any) -> None:
    prompt = {"input_ids": torch.tensor([PROMPTS[0]])}
    said = q.generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)[0, 4:].tolist()
    other = [*said[:2], (said[2] + 1) % 250]
    rows = {"input_ids": torch.tensor([[*PROMPTS[0], *said], [*PROMPTS[0], *other]])}
    twice = {"input_ids": prompt["input_ids"].expand(2, -1)}
    found = pyquant.evaluate({"q": q}, [Likelihood((Forced(twice, rows, (tuple(said), tuple(other))),))])
    assert found["answers"].of("q").series["exact"].values == (1, 0)


@pytest.mark.slow
def test_the_whole_model_in_one_graph_gives_the_losses_of_text(tmp_path: Path) -> None:
    """layers="whole" has no prefill graph: one run for each token."""
    fp = checkpoints.qwen3_vl_model()
    tree: Any = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    ids = torch.arange(20, 44)
    batch = by_name("qwen3_vl").example.example_inputs(fp, [torch.zeros(3, 16, 16)], ids.tolist())
    pyquant.calibrate(tree, [batch])
    pyquant.convert(tree)
    profile = qwen3_vl.Profile(max_seq_len=16, layers="whole", image_grids=())
    pyquant.export_bundle(tree, tmp_path / "b", profile)
    with Session(tmp_path / "b") as session:
        found = pyquant.evaluate({"tree": tree, "files": session}, [Perplexity((ids[:9],))])["perplexity"]
    assert abs(found.pair("files", "tree").differences["nats"].value) < 2e-3


def test_what_answers_cannot_be() -> None:
    with pytest.raises(EvaluationError, match="at least one token"):
        Forced({}, {}, ((),))
    with pytest.raises(EvaluationError, match="has no question"):
        Likelihood(())


# --- throughput ------------------------------------------------------------------------------------------------------


class Timed:
    """Takes 2 s for a prompt and half a second for each further token, by a clock that it moves itself."""

    name, kind, model = "timed", "float", None

    def __init__(self) -> None:
        self.now, self.runs = 100.0, 0

    def generate(self, batch: Mapping[str, Tensor], *, max_new_tokens: int, **options: Any) -> Tensor:
        assert options["min_new_tokens"] == max_new_tokens
        self.runs += 1
        for token in range(max_new_tokens):
            self.now += 0.5 if token else 2.0
            options["stopping_criteria"](batch["input_ids"], None)
        return batch["input_ids"]

    text = forced = generate


def test_throughput_counts_tokens_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed()
    monkeypatch.setattr(time, "perf_counter", lambda: timed.now)
    subjects: Any = {"timed": timed}
    found = pyquant.evaluate(subjects, [Throughput(torch.arange(10), 5)])["throughput"]
    assert found.of("timed").values == {"prefill": 5.0, "decode": 2.0}
    assert timed.runs == 4
    with pytest.raises(EvaluationError, match="2 new tokens or more"):
        Throughput(torch.arange(10), 1)


# --- lm-eval ---------------------------------------------------------------------------------------------------------


def lm_eval_task(folder: Path) -> Path:
    entry = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "absent.jsonl")}, "cache_dir": str(folder / "c")},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "x",
        "doc_to_target": "y",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "ours.yaml").write_text(yaml.safe_dump(entry))
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lm_evals_data_that_is_not_here_is_one_error(q: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    task = LmEval(("ours",), checkpoints.tokenizer(), lm_eval_task(tmp_path))
    with pytest.raises(EvaluationError, match=r"lm-eval:ours: lm-eval cannot load it \(FileNotFoundError: .*") as found:
        pyquant.evaluate({"q": q}, [task])
    assert "give a folder of task files whose data is local (--lm-eval-tasks DIR)" in str(found.value)
    assert "\n" not in str(found.value)
    with pytest.raises(EvaluationError, match="does not exist"):
        pyquant.evaluate({"q": q}, [LmEval(("ours",), None, tmp_path / "none")])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_name_that_lm_eval_does_not_know(q: Any) -> None:
    """Slow: lm-eval reads thousands of task files first."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    with pytest.raises(EvaluationError, match=r"no task .helaswag. .*near names: .*hellaswag"):
        pyquant.evaluate({"q": q}, [LmEval(("helaswag",), None)])


def test_without_lm_eval_the_error_says_how_to_install_it(q: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("pyquant.evaluation.harness.import_module", absent)
    with pytest.raises(ImportError, match=r"lm-eval:x needs lm-eval, .*pip install 'pyquant-circle\[eval\]'"):
        pyquant.evaluate({"q": q}, [LmEval(("x",), None)])


# --- subjects --------------------------------------------------------------------------------------------------------


def test_the_reference_is_float_and_files_are_compared_with_simulations() -> None:
    subjects: Any = [type("S", (), {"kind": kind}) for kind in ("files", "quantized", "float", "quantized")]
    assert reference_of(subjects) == 2
    assert ordered_pairs(subjects, 2) == [(1, 2), (3, 2), (0, 2), (3, 1), (0, 1), (0, 3)]
    assert reference_of(subjects[:2]) == 1
    assert ordered_pairs(subjects[:2], 1) == [(0, 1)]


def test_a_bundle_of_other_rows_than_a_question_is_refused(session: Session) -> None:
    with pytest.raises(EvaluationError, match="exported with batch_size=2"):
        evaluation.FilesSubject("files", session).generate({"input_ids": torch.tensor([[1, 2]])}, max_new_tokens=1)
