# SPDX-License-Identifier: Apache-2.0
"""`pyquant trace`: both tiny families and a checkpoint folder; what is printed, what is written, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import Done
from PIL import Image

import pyquant
from pyquant import models
from pyquant.exporter.constant import Constant
from pyquant.models.gemma4 import VisionProfile
from pyquant.trace import Comparison, SiteTrace, Trace

Run = Callable[..., Done]
FAMILIES = models.FAMILIES
MLP = {
    "gemma4": "encoder.layers.0.mlp",
    "llama": "model.layers.0.mlp",
    "qwen3_vl": "model.visual.blocks.0.mlp",
}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 31, 3), dtype=np.uint8)).save(path)
    return path


def headings(text: str) -> list[str]:
    return re.findall(r"^--- (\w+(?: \w+)*)", text, re.M)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float_the_wrappers_are_the_model(family: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    done = run("trace", "--model", f"tiny:{family}", "--json", file)
    assert done.code == 0, done.err
    assert headings(done.out) == ["unquantized", "quantized", "side by side"]
    data = json.loads(file.read_text())
    fp = models.by_name(family).example.tiny_model()
    called = {call.name for call in Trace.from_json(json.dumps(data["unquantized"]))}
    assert called <= {name for name, _ in fp.named_modules()}
    assert MLP[family] in called
    assert "" in called
    found = Comparison.from_json(json.dumps(data["side_by_side"]))
    assert not found.errors
    assert not found.above(1e-5)
    assert sum(entry.difference is not None for entry in found) >= 0.9 * len(called)
    names = set(done.out.split())
    first = "input_ids:" if family == "llama" else "pixel_values:"
    assert {first, "inputs", MLP[family]} <= names
    assert f"{MLP[family]}: " in done.out
    assert data["recipe"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_they_differ_and_a_threshold_says_so(family: str, run: Run, tmp_path: Path) -> None:
    words = ["trace", "--model", f"tiny:{family}", "--enable-quantization", "--no-trace-unquantized"]
    words += ["--no-trace-quantized", "--json", str(tmp_path / "t.json")]
    fine = run(*words, "--fail-above", "PEIR=0.9", "--sites")
    assert fine.code == 0, fine.err
    assert headings(fine.out) == ["side by side", "sites", "where to look"]
    data = json.loads((tmp_path / "t.json").read_text())
    found = Comparison.from_json(json.dumps(data["side_by_side"]))
    peak = found.worst(1)[0].difference
    assert peak is not None
    assert peak.peir is not None
    assert 1e-3 < peak.peir < 0.9
    sites = SiteTrace.from_json(json.dumps(data["sites"]))
    assert any(record.path.endswith("mlp:act") or "mlp" in record.path for record in sites)
    assert data["recipe"] == "w8a8"
    failed = run(*words, "--fail-above", f"PEIR={peak.peir / 2}")
    assert failed.code == 1
    assert all(line.startswith(("beyond: ", "note: ")) for line in failed.err.splitlines())
    assert f"the threshold is {peak.peir / 2:g}" in failed.err
    assert run(*words, "--fail-above", "SQNR=500").code == 1


def test_options_leave_parts_out(run: Run) -> None:
    done = run("trace", "--model", "tiny:gemma4", "--no-trace-unquantized", "--no-side-by-side")
    assert done.code == 0
    assert headings(done.out) == ["quantized"]


def test_an_image_and_a_prompt_as_a_program(program: Run, picture: Path) -> None:
    done = program("trace", "--model", "tiny:qwen3_vl", "--image", picture, picture, "--prompt", "hi", "--json", "-")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    inputs = dict(data["inputs"]["items"])
    assert inputs["image_grid_thw"]["shape"] == [2, 3]
    assert inputs["input_ids"]["shape"] == [1, 2 * (4 + 2) + 2]
    assert "--- side by side" in done.err


def test_ids_instead_of_a_prompt(run: Run) -> None:
    done = run("trace", "--model", "tiny:qwen3_vl", "--ids", 1, 2, 3, "--no-side-by-side", "--no-trace-quantized")
    assert done.code == 0, done.err
    assert "input_ids: Tensor int64 (1, 3) mean=2 min=1 max=3" in done.out
    assert "pixel_values: Tensor" not in done.out


def test_interesting_modules_alone_are_shown_with_their_values(run: Run) -> None:
    name = "encoder.layers.1.mlp.down_proj"
    done = run("trace", "--model", "tiny:gemma4", "--interesting-modules", name)
    assert done.code == 0, done.err
    assert f"{name}: Gemma4ClippableLinear" in done.out
    assert f"{name}: QuantGemma4ClippableLinear" in done.out
    assert "encoder.layers.0" not in done.out
    assert "  output =\n    tensor([[[" in done.out
    assert "1 values compared" in done.out


def test_interesting_modules_that_are_not_called_are_said(run: Run) -> None:
    done = run("trace", "--model", "tiny:qwen3_vl", "--prompt", "x", "--interesting-modules", "model.visual.*.mlp")
    assert done.code == 0
    assert "these inputs do not call 3 of the interesting modules, such as 'model.visual.blocks.0.mlp'" in done.err


def test_it_stops_at_interesting_modules(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = []
    monkeypatch.setattr("sys.breakpointhook", lambda: stops.append(1))
    words = ["trace", "--model", "tiny:gemma4", "--breakpoint-on-interesting-modules"]
    assert run(*words, "--interesting-modules", "encoder.layers.*.mlp").code == 0
    assert len(stops) == 4  # two layers, in the model and in the wrappers
    done = run(*words)
    assert done.code == 2
    assert "needs --interesting-modules" in done.err


def test_a_checkpoint_folder(run: Run, tmp_path: Path, picture: Path) -> None:
    models.by_name("gemma4").example.tiny_model().save_pretrained(tmp_path / "model")
    done = run("trace", "--model", tmp_path / "model", "--image", picture, "--save", tmp_path / "kept")
    assert done.code == 0, done.err
    assert "note: images are resized plainly" in done.err
    assert Trace.load(tmp_path / "kept" / "float").find("encoder.layers.0")
    again = run("trace", "--model", tmp_path / "model", "--save", tmp_path / "kept")
    assert again.code == 2
    assert "exists; name a new folder" in again.err


def test_saved_traces_are_compared(run: Run, program: Run, tmp_path: Path) -> None:
    base = ["trace", "--model", "tiny:gemma4", "--no-trace-unquantized", "--no-trace-quantized", "--no-side-by-side"]
    assert run(*base, "--enable-quantization", "--save", tmp_path / "t").code == 0
    left, right = tmp_path / "t" / "float", tmp_path / "t" / "quantized"
    done = program("compare", left, right / "trace.json", "--worst", 2, "--fail-above", "PEIR=1e-6")
    assert done.code == 1
    assert "2 shown" in done.out
    assert "beyond: " in done.err
    assert run("compare", left, left, "--fail-above", "PEIR=0").code == 0
    for number in ("0", "-3"):
        assert run("compare", left, right, "--worst", number).code == 2
    bare = tmp_path / "bare.json"
    bare.write_text((left / "trace.json").read_text())
    assert "not kept" in run("compare", bare, right).out
    nothing = run("compare", bare, right, "--fail-above", "PEIR=1")
    assert nothing.code == 2
    assert "--fail-above has nothing to compare" in nothing.err


QUIET = ["--no-trace-unquantized", "--no-trace-quantized", "--no-side-by-side"]


@pytest.mark.parametrize(("family", "graphs"), [("gemma4", {""}), ("qwen3_vl", {"", "model"})])
def test_the_tensors_of_the_file(family: str, graphs: set[str], run: Run, tmp_path: Path) -> None:
    words = ["trace", "--model", f"tiny:{family}", "--enable-quantization", *QUIET]
    done = run(*words, "--circle", "--json", tmp_path / "t.json")
    assert done.code == 0, done.err
    assert "--- circle: tensors of the file against eager" in done.out
    found = json.loads((tmp_path / "t.json").read_text())["circle"]
    assert set(found) == graphs
    for graph in found.values():
        assert len(graph["tensors"]) > len(graph["unchecked"])
        assert all(row["peir"] <= 0.2 for row in graph["tensors"])

        assert not graph["constants"]


def test_a_file_with_a_wrong_constant_and_a_saved_model(run: Run, tmp_path: Path) -> None:
    """A folder of `pyquant quantize` is looked at as it is, and the file beside it where it differs."""
    fp = models.by_name("gemma4").example.tiny_model()
    batch = models.by_name("gemma4").example.example_inputs(fp)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q, unused=["*:mask", "*:masked_logits"])
    pyquant.save_quantized(q, tmp_path / "quantized")
    prog = pyquant.export(q, VisionProfile(pixel_position_ids=batch["pixel_position_ids"]))
    op = [op for op in prog.graph.operators if op.op == "FULLY_CONNECTED"][3]
    weight = prog.graph.tensors[op.inputs[1]]
    constants = list(prog.graph.constants)
    constants[weight.constant] = Constant.of(torch.zeros_like(constants[weight.constant].tensor()))
    dataclasses.replace(prog, graph=dataclasses.replace(prog.graph, constants=tuple(constants))).save(
        tmp_path / "bad.circle"
    )
    words = ["trace", "--model", "tiny:gemma4", "--quantized", tmp_path / "quantized", "--sites"]
    done = run(*words, "--circle", tmp_path / "bad.circle", "--json", tmp_path / "t.json")
    assert done.code == 0, done.err
    data = json.loads((tmp_path / "t.json").read_text())
    assert [row["name"] for row in data["circle"][""]["constants"]] == [weight.name]
    assert "constants that are not the exported ones: 1\n" in done.out
    first = next(line for line in done.out.splitlines() if line.startswith("the first that is off by more than 20%"))
    assert prog.graph.tensors[op.outputs[0]].name in first
    assert headings(done.out)[-2:] == ["circle", "where to look"]
    assert "sites that round the most" in done.out
    assert data["recipe"] == str(tmp_path / "quantized")
    assert any("int16" in site["spec"] for site in data["sites"]["sites"])
    assert done.out == run(*words, "--circle", tmp_path / "bad.circle").out
    golden = Path(__file__).parents[2] / "golden" / "uint8_linear.circle"
    other = run(*words, "--circle", golden)
    assert other.code == 2
    assert "give a file that was exported from one of them" in other.err


def test_safetensors_files_are_compared(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.tensor([0.0, 1.0]), "y": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"x": torch.tensor([0.0, 1.5]), "z": torch.ones(2)}, tmp_path / "b.safetensors")
    done = run("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--json", tmp_path / "c.json")
    assert done.code == 0
    assert "largest PEIR 0.5 at x output" in done.out
    assert "only in a: y" in done.out
    assert "only in b: z" in done.out
    assert Comparison.from_json((tmp_path / "c.json").read_text()).only_a == ("y",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "tiny:gpt2"], "there is no tiny model 'tiny:gpt2'; there are tiny:gemma4"),
        (["--model", "/no/such/folder"], "'/no/such/folder' does not exist"),
        (["--model", "tiny:gemma4", "--image", "nix.png"], "the image 'nix.png' does not exist"),
        (["--model", "tiny:gemma4", "--prompt", "hi"], "takes images alone"),
        (["--model", "tiny:qwen3_vl", "--ids", "9999"], "ids are 0 to 263, got 9999"),
        (["--model", "tiny:qwen3_vl", "--ids", "256"], "the ids have 1 image tokens (256), and 0 images"),
        (["--model", "tiny:qwen3_vl", "--ids", "1", "--prompt", "x"], "not allowed with argument"),
        (["--model", "tiny:gemma4", "--interesting-modules", "encoder.layer.0.mlp"], "'encoder.layers.0.mlp'"),
        (["--model", "tiny:gemma4", "--fail-above", "PEIR"], "'PEIR' is no threshold"),
        (["--model", "tiny:gemma4", "--fail-above", "LSB=1"], "LSB is not measured here"),
        (["--model", "tiny:gemma4", "--recipe", "w8a8"], "add --enable-quantization"),
        (["--model", "tiny:gemma4", "--sites"], "add --enable-quantization"),
        (["--model", "tiny:gemma4", "--circle"], "add --enable-quantization"),
        (["--model", "tiny:gemma4", "--enable-quantization", "--circle", "/no/x"], "there is no file '/no/x'"),
        (["--model", "tiny:gemma4", "--enable-quantization", "--quantized", "/no"], "is quantized already"),
        (["--model", "tiny:gemma4", "--quantized", "/no"], "/no"),
        (["--model", "tiny:gemma4", "--enable-quantization", "--circle", "--dtype", "bfloat16"], "computes in float32"),
        (["--model", "tiny:gemma4", "--json", "/no/such/x.json"], "the folder '/no/such' does not exist"),
        ([], "the following arguments are required: --model"),
    ],
    ids=[
        *("family", "folder", "image", "prompt", "id", "image_id", "both", "module", "syntax", "metric", "recipe"),
        *("sites", "circle", "circle_file", "twice", "no_quantized", "dtype", "json", "model"),
    ],
)
def test_what_cannot_be_traced(words: list[str], message: str, run: Run) -> None:
    done = run("trace", *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_no_image(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    done = run("trace", "--model", "tiny:gemma4", "--image", path)
    assert done.code == 2
    assert f"{str(path)!r} cannot be opened as an image" in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "the JSON's format is 'list'"), ('{"format": "pyquant-trace-1"}', "not as to_json")],
    ids=["syntax", "list", "empty"],
)
def test_traces_that_are_none(text: str, message: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    done = run("compare", path, path)
    assert done.code == 2
    assert message in done.err
    assert run("compare", path, tmp_path / "none").code == 2
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    assert "is no safetensors file" in run("compare", tmp_path / "bad.safetensors", path).err
