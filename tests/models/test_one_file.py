# SPDX-License-Identifier: Apache-2.0
"""A bundle whose graphs are one file: the same tokens, the weights once, by Python's host and the native one."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_tiny import ids, tree
from safetensors.numpy import load_file, save_file

import pyquant
from pyquant import circle
from pyquant._launch import program
from pyquant.errors import CircleError, InputError, ProfileError
from pyquant.models import llama
from pyquant.verify import Session, compare
from pyquant.verify.runtimes import onert, tico
from tests import litert

LENGTHS = (4, 8)
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "float_mlp.circle"


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.circle"))


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
def test_one_file_answers_as_many(layers: str, tmp_path: Path) -> None:
    _, q = tree()
    made = {}
    for name, one_file in (("many", False), ("one", True)):
        profile = llama.Profile(max_seq_len=14, prefill_lengths=LENGTHS, layers=layers, one_file=one_file)
        made[name] = pyquant.export_bundle(q, tmp_path / name, profile)
    assert [path.name for path in (tmp_path / "one").glob("*.circle")] == ["model.circle"]
    assert list(made["one"]) == list(made["many"])
    assert sizes(tmp_path / "one") < 0.8 * sizes(tmp_path / "many"), "tiny weights: names and tables weigh as much"
    path = tmp_path / "one" / "model.circle"
    model = circle.read(path)
    assert circle.check(path) == []
    assert [graph.name for graph in model.graphs] == list(made["many"]) == list(model.signatures)
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert {(graph["file"], graph["signature"] == name) for name, graph in manifest["graphs"].items()} == {
        ("model.circle", True)
    }
    prompt = ids(1, 6)
    expected = q.generate(prompt, max_new_tokens=5, do_sample=False)
    for name in made:
        with Session(tmp_path / name) as session:
            assert torch.equal(session.generate(prompt, max_new_tokens=5, do_sample=False), expected), name
    words = ["--ids", ",".join(map(str, prompt[0].tolist())), "--max-new-tokens", "5", "--greedy"]
    told = [
        subprocess.run([program(), "generate", tmp_path / name, *words], capture_output=True, text=True, check=True)
        for name in made
    ]
    assert told[0].stdout == told[1].stdout
    verified = [program(), "generate", tmp_path / "one", *words, "--verify"]
    assert subprocess.run(verified, capture_output=True, text=True, check=True).stdout == told[0].stdout
    with pytest.raises(InputError, match=r"all graphs in 'model\.circle', which tico does not run"):
        Session(tmp_path / "one", runtime="tico")
    name = next(name for name in made["one"] if name.startswith("prefill"))
    mapped, alone = made["one"][name], made["many"][name]
    assert mapped.to_bytes() == alone.to_bytes(), "programs of one file are whole"
    inputs = [torch.zeros(tensor.shape) for tensor in mapped.inputs]
    assert compare(mapped, None, inputs).max_lsb <= 1
    del mapped
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    done = subprocess.run(verified, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"E_BUNDLE_FILE: {path}: graph 'decode" in done.stderr
    assert f"its sha256 is {hashlib.sha256(changed).hexdigest()}, the manifest has " in done.stderr


def test_what_other_runtimes_make_of_two_graphs(tmp_path: Path) -> None:
    """As docs/native-program.md says: TICO's verifier passes the file, its runtime refuses it, onert runs the first."""
    path = tmp_path / "two.circle"
    circle.join({"a": GOLDEN, "b": GOLDEN}, path)
    assert tico.structure_faults(path) == []
    with pytest.raises(Exception, match="executes single-subgraph models"):
        tico.Runtime(path)
    runner = circle.Runner(GOLDEN)
    given = [torch.arange(8, dtype=torch.float32).reshape(port.shape) / 8 for port in runner.inputs]
    (expected,) = runner.run(given).values()
    (found,) = onert.run(path, given).values()
    assert np.allclose(found.numpy().reshape(expected.shape), expected, atol=1e-6)


def other_golden(folder: Path) -> Path:
    """The file of GOLDEN with weights of half the size."""
    plan, weights, path = folder / "plan.json", folder / "w.safetensors", folder / "other.circle"
    words = [[program(), "plan", GOLDEN, "-o", plan, "--weights", weights], [program(), "write", plan]]
    subprocess.run(words[0], check=True)
    halved = {name: value / 2 if value.dtype == np.float32 else value for name, value in load_file(weights).items()}
    save_file(halved, weights)
    subprocess.run([*words[1], "--weights", weights, "-o", path], check=True)
    return path


@litert.needs_litert
def test_litert_runs_each_signature_of_a_file(tmp_path: Path) -> None:
    """Under TFLite's identifier: it takes all graphs of a file, and each by its signature."""
    from ai_edge_litert.interpreter import Interpreter

    files, path = {"a": GOLDEN, "b": other_golden(tmp_path)}, tmp_path / "two.circle"
    circle.join(files, path)
    interpreter = Interpreter(model_content=litert.as_tflite(path), num_threads=1)
    assert list(interpreter.get_signature_list()) == ["a", "b"]
    found = {}
    for key, file in files.items():
        runner = circle.Runner(file)
        given = {port.name: np.arange(8, dtype=np.float32).reshape(port.shape) / 8 for port in runner.inputs}
        out = interpreter.get_signature_runner(key)(**given)
        for name, expected in runner.run(list(given.values())).items():
            assert np.allclose(out[name], expected, atol=1e-6)
        found[key] = expected
    assert not np.allclose(found["a"], found["b"], atol=1e-3)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), given.values(), strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    (detail,) = interpreter.get_output_details()
    assert np.allclose(interpreter.get_tensor(detail["index"]), found["a"], atol=1e-6), "without a signature: the first"


def test_a_bundle_becomes_one_file_and_many_again(tmp_path: Path) -> None:
    _, q = tree()
    profile = llama.Profile(max_seq_len=9, prefill_lengths=(4,))
    many = pyquant.export_bundle(q, tmp_path / "b", profile)
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    pyquant.export_bundle(q, tmp_path / "b", profile, one_file=True)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["manifest.json", "model.circle"]
    again = pyquant.export_bundle(q, tmp_path / "b", profile)
    assert list(again) == list(many)
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before
    with pytest.raises(ProfileError, match="onert runs the first graph of a file only"):
        pyquant.export_bundle(q, tmp_path / "c", profile, target="onert", one_file=True)
    assert not (tmp_path / "c").exists()


def test_join_refuses_what_has_no_key_or_several_graphs(tmp_path: Path) -> None:
    circle.join({"a": GOLDEN, "b": GOLDEN}, tmp_path / "two.circle")
    assert [graph.name for graph in circle.read(tmp_path / "two.circle").graphs] == [circle.read(GOLDEN).name] * 2
    assert (tmp_path / "two.circle").stat().st_size < 2 * GOLDEN.stat().st_size
    with pytest.raises(CircleError, match=r"E_SIGNATURE: '': needs a key"):
        circle.join({"": GOLDEN}, tmp_path / "x.circle")
    with pytest.raises(CircleError, match=r"E_SIGNATURE: 'a': has 2 graphs"):
        circle.join({"a": tmp_path / "two.circle"}, tmp_path / "x.circle")
    assert not (tmp_path / "x.circle").exists()
