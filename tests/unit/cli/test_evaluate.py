# SPDX-License-Identifier: Apache-2.0
"""`pyquant evaluate` on what `pyquant quantize` wrote: float, simulation and files; tasks, JSON, exit codes, errors."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from cli_runs import Done

import pyquant
from pyquant.cli.main import main
from pyquant.models import by_name
from tests import checkpoints

Run = Callable[..., Done]
TEXT = " ".join(f"what is this ? read the {number} digits of the image" for number in range(60))
PROMPTS = ("read the digits of the image", "what is this ? read", "what is the image of 7 and 8 and 9")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, a Llama with a tokenizer; `out`, what quantize made of it; `text.txt`, `q.jsonl`, `calib.jsonl`."""
    place = tmp_path_factory.mktemp("evaluate")
    tokenizer = checkpoints.tokenizer()
    model: Any = by_name("llama").example.tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "text.txt").write_text(TEXT)
    checkpoints.lines(place / "calib.jsonl", *({"prompt": prompt} for prompt in (*PROMPTS, TEXT[:200])))
    checkpoints.lines(place / "q.jsonl", *({"question": p, "answers": ["one", "two", "1"]} for p in PROMPTS))
    words = [
        "--model",
        place / "model",
        "--recipe",
        "w8a16-fast",
        "--data",
        place / "calib.jsonl",
        "--out",
        place / "out",
    ]
    with (place / "output.txt").open("w") as file, contextlib.redirect_stdout(file):
        assert main(["quantize", *map(str, words)]) == 0
    return place


def test_float_simulation_and_files_side_by_side(place: Path, run: Run) -> None:
    done = run(
        *("evaluate", "--bundle", place / "out", "--against", "quantized", "float", "--limit", 4, "--bundle-limit", 1),
        *("--window", 32, "--tasks", f"perplexity:{place / 'text.txt'}", "--json", place / "found.json"),
    )
    assert done.code == 0, done.err
    for words in ("perplexity:text.txt", "bundle", "minus", "quantized", "KL, nats / token"):
        assert words in done.out
    assert "calibration: " in done.out
    assert "note: bundle: the first 1 of 4 windows" in done.out
    data = json.loads((place / "found.json").read_text())
    scores = {entry["subject"]: entry for entry in data["tasks"][0]["scores"]}
    assert list(scores) == ["bundle", "quantized", "float"]
    assert [len(entry["series"]["nats"]["values"]) for entry in scores.values()] == [1, 4, 4]
    fp = transformers.LlamaForCausalLM.from_pretrained(place / "model").eval()
    ids = checkpoints.tokenizer()(TEXT, return_tensors="pt")["input_ids"][0, : 4 * 32].reshape(4, 32)
    with torch.no_grad():
        loss = float(fp(ids, labels=ids).loss)
    assert scores["float"]["values"]["nats"] == pytest.approx(loss, rel=1e-5)
    pairs = {(pair["subject"], pair["base"]): pair for pair in data["tasks"][0]["pairs"]}
    assert set(pairs) == {("bundle", "float"), ("quantized", "float"), ("bundle", "quantized")}
    assert 0 < pairs["quantized", "float"]["values"]["kl"] < 0.2


def test_quantize_records_its_samples_and_evaluate_finds_them(place: Path, run: Run, tmp_path: Path) -> None:
    """Equal questions, and a text that holds another cut of a calibration prompt."""
    words = ("evaluate", "--quantized", place / "out", "--tasks", f"questions:{place / 'q.jsonl'}", "--limit", 2)
    done = run(*words, "--max-new-tokens", 2)
    assert done.code == 0, done.err
    assert "calibration: 2 of 2 questions were seen in it (2 equal" in done.out
    (tmp_path / "seen.txt").write_text(TEXT[7:190])
    text = ("--tasks", f"perplexity:{tmp_path / 'seen.txt'}")
    done = run("evaluate", "--quantized", place / "out" / "quantized", *text)
    assert "calibration: 1 of 1 windows were seen in it (0 equal" in done.out
    alone = ("evaluate", "--model", place / "model", *text)
    assert "calibration: not recorded beside these models; --calibration FILE" in run(*alone).out
    done = run(*alone, "--calibration", place / "calib.jsonl")
    assert "calibration: 1 of 1 windows were seen in it" in done.out


def test_answers_are_those_of_generate(place: Path, run: Run, tmp_path: Path) -> None:
    """The tree's own greedy answer is right by definition, and another one is not."""
    q, tokenizer = pyquant.load_quantized(place / "out" / "quantized"), checkpoints.tokenizer()
    rows = []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        out = q.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
        rows.append({"question": prompt, "answer": tokenizer.decode(out, skip_special_tokens=True) or "none"})
    rows[2]["answer"] = "something else"
    checkpoints.lines(tmp_path / "q.jsonl", *rows)
    words = ("--tasks", f"questions:{tmp_path / 'q.jsonl'}", "--max-new-tokens", 4, "--json", "-")
    done = run("evaluate", "--quantized", place / "out", "--against", "bundle", *words)
    assert done.code == 0, done.err
    (task,) = json.loads(done.out)["tasks"]
    for entry in task["scores"]:
        assert entry["series"]["exact"]["values"] == [1, 1, 0]
        assert entry["values"]["vqa"] == pytest.approx(2 / 3)
    assert task["pairs"][0]["values"]["agreement"] == 1


def test_throughput_is_of_each_subject(place: Path, run: Run) -> None:
    done = run(
        *("evaluate", "--bundle", place / "out", "--against", "quantized", "--tasks", "throughput:8,3", "--json", "-")
    )
    assert done.code == 0, done.err
    (task,) = json.loads(done.out)["tasks"]
    for entry in task["scores"]:
        assert math.isfinite(entry["values"]["prefill"])
        assert entry["values"]["decode"] > 0
    assert task["notes"][0] == "8 tokens in, 3 out"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lm_eval_runs_its_own_task_on_local_data(place: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    rows = [{"prompt": prompt, "answer": number % 2} for number, prompt in enumerate(PROMPTS)]
    checkpoints.lines(tmp_path / "digits.jsonl", *rows)
    entry = {
        "task": "our_digits",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "digits.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": ["one", "two"],
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(entry))
    words = ("evaluate", "--quantized", place / "out", "--against", "float", "bundle", "--lm-eval-tasks", tmp_path)
    done = run(*words, "--tasks", "lm-eval:our_digits", "--json", tmp_path / "found.json", "--fail-below", "acc=1.1")
    assert done.code == 1, done.err
    assert "beyond: lm-eval:our_digits, quantized: ACC " in done.err
    (task,) = json.loads((tmp_path / "found.json").read_text())["tasks"]
    assert [entry["subject"] for entry in task["scores"]] == ["quantized", "float"]
    fp, tokenizer = transformers.LlamaForCausalLM.from_pretrained(place / "model").eval(), checkpoints.tokenizer()
    right = [_chosen(fp, tokenizer, row["prompt"], ["one", "two"]) == row["answer"] for row in rows]
    assert task["scores"][1]["series"]["acc"]["values"] == [float(each) for each in right]
    assert task["notes"] == ["left out: bundle (lm-eval runs models, not files)"]


def _chosen(model: Any, tokenizer: Any, prompt: str, choices: list[str]) -> int:
    scores = []
    for choice in choices:
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(f"{prompt} {choice}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = model(ids).logits[0].log_softmax(-1)
        scores.append(sum(float(log_probs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])))
    return scores.index(max(scores))


def test_limits_give_exit_code_1(place: Path, run: Run) -> None:
    words = ("evaluate", "--quantized", place / "out", "--tasks", f"perplexity:{place / 'text.txt'}", "--limit", 2)
    assert run(*words, "--fail-above", "perplexity=1e9").code == 0
    done = run(*words, "--fail-above", "perplexity=2", "--fail-above", "nats=1e9")
    assert done.code == 1
    assert done.err.count("beyond: ") == 1
    assert "perplexity:text.txt, quantized: PERPLEXITY" in done.err
    against = (*words, "--against", "float")
    assert run(*against, "--fail-above", "kl=0", "--fail-above", "lost=-9", "--fail-below", "agreement=1.1").code == 1
    assert run(*against, "--fail-above", "kl=9", "--fail-above", "lost=9", "--fail-below", "agreement=0").code == 0
    done = run(*words, "--fail-above", "kl=1")
    assert (done.code, "KL was not measured for quantized" in done.err) == (2, True)
    done = run(*words, "--fail-below", "perplexity=1")
    assert (done.code, "--fail-below is for AGREEMENT, EXACT, VQA, ACC here" in done.err) == (2, True)


def mistakes(place: Path) -> list[tuple[tuple[object, ...], str]]:
    model, out, text = place / "model", place / "out", f"perplexity:{place / 'text.txt'}"
    return [
        (("--model", model, "--tasks", "perplexity"), "expected perplexity:FILE_OR_FOLDER"),
        (("--model", model, "--tasks", "bleu:x"), "--tasks bleu:x: expected perplexity:"),
        (("--model", model, "--tasks", text, text), "a task is given twice"),
        (("--model", model, "--tasks", "throughput:8"), "expected throughput:IN,OUT in tokens"),
        (("--model", model, "--tasks", "perplexity:/no/such"), "'/no/such' does not exist"),
        (("--model", model, "--tasks", "questions:/no/such.jsonl"), "do not exist; give a .jsonl"),
        (("--model", model, "--against", model, "--tasks", text), "a folder is given twice"),
        (("--model", model, "--against", "float", "--tasks", text), "the subject"),
        (("--model", model, "--against", "bundle", "--tasks", text), "give the folder"),
        (("--quantized", model, "--tasks", text), "is no folder of a quantized model: it has no quantization.json"),
        (("--bundle", out / "quantized", "--tasks", text), "is no folder of a bundle: it has no manifest.json"),
        (("--model", place, "--tasks", text, "--tokenizer", model), "is no checkpoint: it has no config.json"),
        (("--model", model, "--tasks", text, "--tokenizer", place), "no tokenizer is beside"),
        (("--model", model, "--tasks", text, "--gguf-file", "x.gguf"), "has no such file"),
    ]


def test_mistakes_are_one_line_and_exit_code_2(place: Path, run: Run) -> None:
    for words, message in mistakes(place):
        done = run("evaluate", *words)
        assert done.code == 2, words
        assert message in done.err, words
        assert len(done.err.strip().splitlines()) == 1, done.err


WITHOUT_TICO = """
import sys
from pathlib import Path
sys.modules["tico"] = None  # every import of it fails
import torch
import pyquant
from pyquant.cli.main import main
from pyquant.verify import Session, compare

place = Path(sys.argv[1])
ids = torch.tensor([[3, 4, 5, 6]])
with Session(place / "out") as session:
    assert session.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 6)
q = pyquant.load_quantized(place / "out" / "quantized")
mlp = q.model.layers[0].mlp
profile = pyquant.ExportProfile({"x": pyquant.exporter.TensorSpec((1, 4, mlp.gate_proj.in_features))}, outputs=("y",))
x = torch.linspace(-1, 1, 4 * mlp.gate_proj.in_features).reshape(1, 4, -1)
assert compare(pyquant.export(mlp, profile, name="mlp"), mlp, {"x": x}).max_lsb <= 1
words = ["evaluate", "--bundle", place / "out", "--tasks", f"perplexity:{place / 'text.txt'}", "--window", "16"]
assert main([*map(str, words), "--limit", "1"]) == 0
assert main(["verify", str(next((place / "out").glob("lm_head*.circle")))]) == 0
try:
    Session(place / "out", runtime="tico").generate(ids, max_new_tokens=1)
except ImportError as error:
    assert "pip install 'pyquant-circle[tico]'" in str(error)
else:
    raise AssertionError("it ran in something that is not there")
assert sys.modules["tico"] is None
"""


def test_without_tico(place: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TICO, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TICO's verifier: not installed (pip install 'pyquant-circle[tico]')" in done.stdout
