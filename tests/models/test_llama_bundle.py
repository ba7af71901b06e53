# SPDX-License-Identifier: Apache-2.0
"""Bundles of a Llama: the session's tokens are the tree's, each file is its simulation; checkpoints; the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_tiny import LAYOUTS, ROPES, close, ids, model, padded, tree
from torch import Tensor

import pyquant
from pyquant import circle, smoke
from pyquant.cli.main import main
from pyquant.errors import InputError, ProfileError
from pyquant.models import llama
from pyquant.verify import Session, compare
from pyquant.verify.tolerance import deep_faults, op_faults
from pyquant.wrap import Phase, phase
from tests import checkpoints

SIZES: dict[str, Any] = {"max_seq_len": 14, "prefill_lengths": (4, 8)}
WAYS: dict[str, dict[str, Any]] = {
    "stack": {},
    "per_layer": {"batch_size": 2, "layers": "per_layer", "token_embedding": "fixed"},
    "per_head": {"attention": "per_head"},
    "two_rows": {"batch_size": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_session_gives_the_tokens_of_the_tree(way: str, tmp_path: Path) -> None:
    _, q = tree()
    pyquant.export_bundle(q, tmp_path / "b", llama.Profile(**SIZES, **WAYS[way]))
    rows = WAYS[way].get("batch_size", 1)
    with Session(tmp_path / "b", runtime="tico") as session:
        for given in (padded((7, 4)[:rows], "left"), padded((3, 3)[:rows], "left")):
            expected = q.generate(**given, max_new_tokens=5, do_sample=False)
            assert torch.equal(session.generate(**given, max_new_tokens=5), expected)
            options = {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2}
            torch.manual_seed(6)
            expected = q.generate(**given, max_new_tokens=5, **options)
            assert torch.equal(session.generate(**given, max_new_tokens=5, seed=6, **options), expected)


@pytest.mark.parametrize("preset", ["w8a8", "w8a16", "w4a16"])
def test_each_file_is_its_simulation(preset: str, tmp_path: Path) -> None:
    """Every graph, on the inputs that a session gave it: operator by operator, and end to end against the float run."""
    _, q = tree(preset)
    profile = llama.Profile(max_seq_len=10, prefill_lengths=(6,))
    programs = pyquant.export_bundle(q, tmp_path / "b", profile)
    seen: dict[str, dict[str, Tensor]] = {}
    with Session(tmp_path / "b", runtime="tico") as session:

        def run(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            seen[name] = inputs
            return session.run(name, inputs)

        tokens = session.host.generate(run, ids(1, 5), max_new_tokens=3)
    assert torch.equal(tokens, q.generate(ids(1, 5), max_new_tokens=3, do_sample=False))
    assert set(seen) == set(programs) == {"token_embedding", "prefill_s6", "decode", "lm_head"}
    for name, inputs in seen.items():
        program = programs[name]
        assert program.missing_qparams() == []
        report = compare(program, None, inputs)
        assert op_faults(report) == [], name
        with phase(q, Phase.FLOAT), torch.no_grad():
            out = program.adapter(*(inputs[key] for key in program.adapter.input_specs))
        flat = out if isinstance(out, tuple) else (out,)
        reference = dict(zip(program.adapter.output_names, flat, strict=True))
        assert deep_faults(program, None, inputs, reference, report) == [], name


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
def test_a_long_prompt_and_a_chat(layers: str, tmp_path: Path) -> None:
    """A prompt of 11 with a longest prefill of 4, then a second turn: the tree's tokens for the whole text."""
    _, q = tree()
    profile = llama.Profile(max_seq_len=24, prefill_lengths=(4,), append_lengths=(3, 5), batch_size=2, layers=layers)
    pyquant.export_bundle(q, tmp_path / "b", profile)
    options = {"max_new_tokens": 4, "eos_token_id": None}
    first, new = padded((11, 6), "left"), ids(2, 3, seed=8)
    with Session(tmp_path / "b", runtime="tico") as session:
        chat = session.chat()
        assert chat.tokens.shape == (0, 0)
        got = chat.generate(**first, **options)
        assert torch.equal(got, q.generate(**first, **options, do_sample=False))
        whole = torch.cat([got, new], dim=1)
        mask = torch.cat([first["attention_mask"], torch.ones(2, 7, dtype=torch.int64)], dim=1)
        expected = q.generate(whole, attention_mask=mask, **options, do_sample=False)
        assert torch.equal(chat.generate(new, **options), expected[:, -7:])
        assert torch.equal(chat.tokens, expected)
        assert torch.equal(chat.attention_mask[:, :18], mask)
        with pytest.raises(InputError, match="a conversation of 23 tokens and max_new_tokens=4 need a cache longer"):
            chat.generate(ids(2, 1), **options)


def test_what_a_bundle_cannot_do_is_refused() -> None:
    _, q = tree()
    with pytest.raises(ProfileError, match="max_seq_len 65 is beyond the model's max_position_embeddings, 64"):
        llama.Profile(max_seq_len=65).graphs(q)
    with pytest.raises(ProfileError, match=r"llama\.Profile is for a quantized LlamaForCausalLM or LlamaModel"):
        llama.Profile(max_seq_len=8).graphs(q.lm_head)
    manifest = llama.Profile(max_seq_len=8).manifest(q.model)
    with pytest.raises(InputError, match="the bundle has no lm_head graph, so it cannot generate"):
        pyquant.decoder.host.Host(manifest)


@pytest.mark.parametrize("layout", ["tied", "mlp_bias"])
@torch.no_grad()
def test_a_saved_tree_is_the_same_model(layout: str, tmp_path: Path) -> None:
    fp = model(rope_parameters=ROPES["llama3"], **LAYOUTS[layout])
    q = pyquant.prepare(fp, pyquant.Policy.preset("w4a16"))
    pyquant.calibrate(q, [{"input_ids": ids(2, 9)}], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    again = pyquant.load_quantized(tmp_path / "q")
    assert torch.equal(again(ids(1, 6)).logits, q(ids(1, 6)).logits)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(again.generate(ids(1, 6), **options), q.generate(ids(1, 6), **options))


# --- from a shell ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`: a Llama with the tokenizer of a real folder; `c.jsonl`: prompts; `out`: what `pyquant quantize` made."""
    place = tmp_path_factory.mktemp("llama")
    tokenizer = checkpoints.tokenizer()
    fp = model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    fp.save_pretrained(place / "model")
    checkpoints.processor_files(place / "model", images=False)
    checkpoints.lines(place / "c.jsonl", {"prompt": "what is this ?"}, {"prompt": "read the digits"})
    words = ["quantize", "--model", str(place / "model"), "--recipe", "w8a16-fast", "--data", str(place / "c.jsonl")]
    words += ["--prefill-lengths", "32", "--max-seq-len", "40", "--out", str(place / "out")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-W", "error::UserWarning:pyquant", "-m", "pyquant.cli.main", *words]
    ran = subprocess.run(program, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    return place


def test_quantize_makes_a_bundle_and_a_model_that_say_the_same(place: Path) -> None:
    out = place / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["family"] == "llama"
    assert set(manifest["graphs"]) == {"token_embedding", "prefill_s32", "decode", "lm_head"}
    for graph in manifest["graphs"].values():
        assert circle.check(out / graph["file"]) == []
    q: Any = pyquant.load_quantized(out / "quantized")
    batch = checkpoints.tokenizer()("what are the digits ?", return_tensors="pt")
    expected = q.generate(batch["input_ids"], max_new_tokens=6, do_sample=False)
    with Session(out, runtime="tico") as session:
        assert torch.equal(session.generate(batch["input_ids"], max_new_tokens=6), expected)


def test_quantize_is_the_public_functions(place: Path) -> None:
    q: Any = pyquant.load_quantized(place / "out" / "quantized")
    fp = q.fp_type.from_pretrained(place / "model", attn_implementation="eager")
    own = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(own, pyquant.calibration.read(place / "c.jsonl", place / "model"))
    pyquant.convert(own)
    with torch.no_grad():
        close(q(ids(1, 9)).logits, own(ids(1, 9)).logits, 0.0)


def test_report_and_trace_run_on_a_folder(place: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--model", str(place / "model"), "--recipe", "w8a8"]
    page = tmp_path / "page.html"
    assert main(["report", *words, "--data", str(place / "c.jsonl"), "--out", str(page)]) == 0
    assert "model.layers.1.mlp" in page.read_text()
    capsys.readouterr()
    quiet = ["--no-trace-unquantized", "--no-trace-quantized"]
    assert main(["trace", *words, *quiet, "--enable-quantization", "--prompt", "what is this ?"]) == 0
    assert "model.layers.1.mlp.down_proj" in capsys.readouterr().out


def test_every_class_of_the_family_has_a_smoke_case() -> None:
    """What they give is tests/unit/cli/test_smoke.py."""
    names = {case.name for case in smoke.cases() if case.family == "llama"}
    classes = ("Attention", "DecoderLayer", "ForCausalLM", "MLP", "Model", "RMSNorm", "RotaryEmbedding")
    assert names == {f"llama/Llama{name}" for name in classes}
