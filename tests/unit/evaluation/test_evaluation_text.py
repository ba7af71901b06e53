# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a float model, its quantized tree and its files: windows, others' definitions of it, memory."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant.calibration import fingerprint
from pyquant.errors import EvaluationError
from pyquant.evaluation import FilesSubject, Perplexity, Scores, read_text
from pyquant.models import by_name, llama
from pyquant.verify import Session
from tests import checkpoints

TEXT = " ".join(f"what is this ? read the {number} digits of the image" for number in range(40))


@pytest.fixture(scope="module")
def fp() -> Any:
    tokenizer = checkpoints.tokenizer()
    model: Any = by_name("llama").example.tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@pytest.fixture(scope="module")
def q(fp: Any) -> Any:
    tree = pyquant.prepare(fp, pyquant.Policy.preset("w4a16"))
    pyquant.calibrate(tree, [checkpoints.tokenizer()(TEXT[:300], return_tensors="pt")["input_ids"]])
    pyquant.convert(tree)
    return tree


def task(**more: Any) -> Perplexity:
    return Perplexity.of_text(TEXT, checkpoints.tokenizer(), **{"window": 24, **more})


def test_every_token_is_in_one_window() -> None:
    tokenizer = checkpoints.tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    windows = task(window=100).windows
    assert torch.cat(windows).tolist() == ids
    assert {len(each) for each in windows[:-1]} == {100}
    assert [each.tolist() for each in task(window=100, limit=2).windows] == [w.tolist() for w in windows[:2]]


def test_a_tokenizer_that_begins_texts_begins_each_window() -> None:
    tokenizer = checkpoints.tokenizer()
    plain = tokenizer(TEXT)["input_ids"]

    class Beginning:
        bos_token_id = 7

        def __call__(self, text: str, add_special_tokens: bool = True, **given: Any) -> Any:
            out = tokenizer(text, add_special_tokens=False, **given)
            if add_special_tokens:
                out["input_ids"] = [7, *out["input_ids"]]
            return out

    windows = Perplexity.of_text(TEXT, Beginning(), window=10).windows
    assert {int(each[0]) for each in windows} == {7}
    assert [token for each in windows for token in each[1:].tolist()] == plain


def test_losses_differences_kl_and_agreement_are_those_of_torch(fp: Any, q: Any) -> None:
    chosen = task(limit=5)
    result = pyquant.evaluate({"tree": q, "float": fp}, [chosen])["perplexity"]
    ids = torch.stack(chosen.windows)
    with torch.no_grad():
        logits = {"float": fp(ids).logits[:, :-1].double(), "tree": q(ids).logits[:, :-1].double()}
        for name, each in logits.items():
            loss = torch.nn.functional.cross_entropy(each.transpose(1, 2), ids[:, 1:], reduction="none")
            scores = result.of(name)
            assert scores.series["nats"].values == pytest.approx(loss.sum(1).tolist(), rel=1e-5)
            assert scores.values["nats"] == pytest.approx(float(loss.mean()), rel=1e-5)
            assert scores.values["perplexity"] == pytest.approx(math.exp(float(loss.mean())), rel=1e-5)
    (pair,) = result.pairs
    assert (pair.subject, pair.base) == ("tree", "float")
    p, r = (torch.distributions.Categorical(logits=logits[name]) for name in ("float", "tree"))
    expected = torch.distributions.kl_divergence(p, r)
    assert pair.series["kl"].mean == pytest.approx(float(expected.mean()), rel=1e-4)
    same = logits["float"].argmax(-1) == logits["tree"].argmax(-1)
    assert pair.series["agreement"].mean == pytest.approx(float(same.double().mean()))
    lost = result.of("tree").values["nats"] - result.of("float").values["nats"]
    assert pair.differences["nats"].value == pytest.approx(lost)
    assert pair.differences["nats"].low < lost < pair.differences["nats"].high


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_window_has_the_likelihood_that_lm_eval_gives_it(q: Any) -> None:
    """lm-eval's rolling likelihood predicts the first token too, from its end-of-text token, which we take as one."""
    pytest.importorskip("accelerate")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    tokenizer = checkpoints.tokenizer()
    model = huggingface.HFLM(pretrained=q, tokenizer=tokenizer, batch_size=1)
    text = TEXT[:200]
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    (theirs,) = model.loglikelihood_rolling([request], disable_tqdm=True)
    ids = torch.tensor([model.prefix_token_id, *tokenizer(text)["input_ids"]])
    ours = pyquant.evaluate({"tree": q}, [Perplexity((ids,))])["perplexity"].of("tree")
    assert -math.fsum(ours.series["nats"].values) == pytest.approx(theirs, rel=1e-6)


@pytest.fixture(scope="module")
def bundle(q: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "b"
    pyquant.export_bundle(q, folder, llama.Profile(48, prefill_lengths=(16,), batch_size=2))
    return folder


@pytest.mark.parametrize("width", [16, 40], ids=["prefill", "prefill and decode"])
def test_the_files_have_the_losses_of_the_tree(q: Any, width: int, bundle: Path) -> None:
    """Windows that fit a prefill graph, and longer ones, whose rest goes through decode steps."""
    chosen = task(window=width, limit=4)
    with Session(bundle) as session:
        found = pyquant.evaluate({"tree": q, "files": session}, [chosen], files_limit=2)
    result = found["perplexity"]
    assert [len(result.of(name).series["nats"]) for name in ("tree", "files")] == [4, 2]
    assert result.notes == ("files: the first 2 of 4 windows",)
    pair = result.pair("files", "tree")
    assert abs(pair.differences["nats"].value) < 2e-3
    assert pair.differences["nats"].units == 2
    assert pair.differences["nats"].weight == 2 * (width - 1)
    assert pair.series["kl"].mean < 1e-4
    assert pair.series["agreement"].mean > 0.95


def test_a_head_of_a_window_gives_the_same_logits(q: Any, bundle: Path) -> None:
    ids = task(window=16).windows[0]

    def head(hidden: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = q.lm_head(q.model.norm(hidden))
        return scores

    with Session(bundle) as session:
        own, given = FilesSubject("own", session).text(ids), FilesSubject("given", session, head).text(ids)
    assert float((own - given).abs().max()) < 1e-3 * float(own.abs().max())


def test_logits_of_one_window_are_in_memory_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watched:
        kind, model, rows = "float", None, 1

        def __init__(self, name: str) -> None:
            self.name = name

        def text(self, ids: Tensor) -> Tensor:
            nonlocal most
            logits = torch.zeros(len(ids), 300)
            alive.append(weakref.ref(logits))
            most = max(most, sum(each() is not None for each in alive))
            return logits

        forced = generate = text

    found = pyquant.evaluate({name: Watched(name) for name in "ab"}, [task()])  # type: ignore[misc]
    assert len(alive) == 2 * len(task().windows)
    assert most <= 3  # two subjects; one of the window before, until it is replaced
    assert found["perplexity"].of("a").values["nats"] == pytest.approx(math.log(300))


def test_the_result_is_json_and_says_what_calibration_saw(fp: Any) -> None:
    chosen = task()
    seen = fingerprint([{"input_ids": chosen.windows[0][None]}])
    found = pyquant.evaluate({"float": fp}, [chosen], calibration=seen)
    overlap = found["perplexity"].overlap
    assert overlap is not None
    assert overlap.equal == 1
    assert overlap.of == len(chosen.windows)
    data = json.loads(found.to_json())
    (entry,) = data["tasks"]
    series = entry["scores"][0]["series"]["nats"]
    assert sum(series["values"]) / sum(series["weights"]) == pytest.approx(entry["scores"][0]["values"]["nats"])
    assert data["reference"] == "float"
    assert entry["overlap"]["equal"] == 1


def test_a_folder_of_texts_is_read_by_name(tmp_path: Path) -> None:
    tokenizer = checkpoints.tokenizer()
    (tmp_path / "b.txt").write_text("read the digits")
    (tmp_path / "a.md").write_text("what is this")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    found = read_text(tmp_path, tokenizer)
    assert tokenizer.decode(torch.cat(found.windows)) == "what is this\n\nread the digits"
    assert found.name == f"perplexity:{tmp_path.name}"


def broken(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    (tmp_path / "empty").mkdir()
    yield tmp_path / "empty", "has no text file"
    yield tmp_path / "none.txt", "does not exist"
    (tmp_path / "zero.txt").write_text("")
    yield tmp_path / "zero.txt", "is empty"
    (tmp_path / "latin.txt").write_bytes(b"cat\xe9")
    yield tmp_path / "latin.txt", r"no UTF-8 text \(byte 3\)"
    (tmp_path / "one.txt").write_text("w")
    yield tmp_path / "one.txt", "has 1 tokens, and two are needed"


def test_what_is_no_text(tmp_path: Path) -> None:
    for path, message in broken(tmp_path):
        with pytest.raises(EvaluationError, match=message):
            read_text(path, checkpoints.tokenizer())


def test_models_that_cannot_be_compared(fp: Any) -> None:
    other = by_name("llama").example.tiny_model()
    window = Perplexity((torch.arange(9),))
    with pytest.raises(EvaluationError, match="do they have the same vocabulary"):
        pyquant.evaluate({"a": fp, "b": other}, [window])
    with pytest.raises(EvaluationError, match="LlamaModel returns no logits; evaluate a model with a head"):
        pyquant.evaluate({"a": fp.model}, [window])
    with pytest.raises(EvaluationError, match="expected a model, a quantized tree, or a verify"):
        pyquant.evaluate({"a": 3}, [window])  # type: ignore[dict-item]
    with pytest.raises(EvaluationError, match="at least one subject and one task"):
        pyquant.evaluate({}, [window])
    with pytest.raises(EvaluationError, match="no subject 'b'; it has a"):
        pyquant.evaluate({"a": fp}, [window])["perplexity"].of("b")
    assert isinstance(pyquant.evaluate({"a": fp}, [window])["perplexity"].of("a"), Scores)
