# SPDX-License-Identifier: Apache-2.0
"""`pyquant quantize` on a vision checkpoint: what the folder holds, what is refused, and that a failure leaves nothing.

A whole Qwen3-VL through a subprocess is tests/e2e/test_quantize_command.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionModel

import pyquant
from pyquant.cli.main import main
from pyquant.cli.quantize import PER_LAYER_TABLES, _listed
from pyquant.models import gemma4
from pyquant.models.gemma4.table import PerLayerTable
from pyquant.verify.runtimes import tico
from tests import checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, a Gemma4 vision checkpoint; `c.jsonl`, three images of two grids (12 x 20 and 16 x 16 patches)."""
    place = tmp_path_factory.mktemp("quantize")
    checkpoints.gemma4_vision(place / "model")
    for number, (height, width) in enumerate(((24, 40), (32, 32), (48, 80))):
        checkpoints.picture(place / f"{number}.png", height, width, seed=number)
    checkpoints.lines(place / "c.jsonl", *({"image": f"{number}.png"} for number in range(3)))
    return place


def quantize(place: Path, out: Path, *more: str, data: str = "c.jsonl", recipe: str = "w8a8-fast") -> int:
    model, lines = str(place / "model"), str(place / data)
    return main(["quantize", "--model", model, "--recipe", recipe, "--data", lines, "--out", str(out), *more])


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    with (place / "output.txt").open("w") as file, contextlib.redirect_stdout(file):
        assert quantize(place, place / "made") == 0
    return place / "made"


def by_hand(place: Path, policy: pyquant.Policy, numbers: tuple[int, ...] = (0, 1, 2)) -> Any:
    """The same model by the public functions, on the image processor's own output without its padding."""
    fp = Gemma4VisionModel.from_pretrained(place / "model", attn_implementation="eager")
    process = checkpoints.image_processor(place / "model")
    q = pyquant.prepare(fp, policy)
    pyquant.calibrate(q, [unpadded(process, place / f"{number}.png") for number in numbers])
    pyquant.convert(q)
    return q


def unpadded(process: Any, picture: Path) -> dict[str, torch.Tensor]:
    from PIL import Image

    made = process([Image.open(picture)], return_tensors="pt")
    valid = made["image_position_ids"][0, :, 0] >= 0
    return {
        "pixel_values": made["pixel_values"][:, valid],
        "pixel_position_ids": made["image_position_ids"][:, valid],
    }


def test_the_folder_holds_bundle_model_and_recipe(made: Path) -> None:
    graphs = ["vision_h12_w20.circle", "vision_h16_w16.circle"]
    others = ["calibration.json", "manifest.json", "quantized", "recipe.yaml"]
    assert sorted(p.name for p in made.iterdir()) == sorted([*graphs, *others])
    manifest = json.loads((made / "manifest.json").read_text())
    assert sorted(entry["file"] for entry in manifest["graphs"].values()) == graphs
    for graph in graphs:
        assert pyquant.circle.check(made / graph, "luci") == []
    card = (made / "quantized" / "README.md").read_text()
    assert "`pyquant quantize --model " in card
    assert "--recipe w8a8-fast --data " in card
    assert "| calibration | 3 of 3 samples of c.jsonl |" in card
    assert (made / "quantized" / "preprocessor_config.json").is_file()
    recipe = yaml.safe_load((made / "recipe.yaml").read_text())
    assert recipe["calibration"]["samples"] == recipe["calibration"]["of"] == 3
    assert recipe["graphs"] == {"image_grids": [[1, 12, 20], [1, 16, 16]], "batch_size": 1, "target": "circle"}
    assert recipe["model"]["class"] == "Gemma4VisionModel"
    assert pyquant.Recipe.load(made / "recipe.yaml") == pyquant.Recipe.preset("w8a8-fast")


def test_it_computes_what_the_public_functions_compute(made: Path, place: Path) -> None:
    q = by_hand(place, pyquant.Policy.preset("w8a8"))
    loaded = pyquant.load_quantized(made / "quantized")
    batch = unpadded(checkpoints.image_processor(place / "model"), place / "1.png")
    with torch.no_grad():
        wanted = q(**batch).last_hidden_state
        assert torch.equal(loaded(**batch).last_hidden_state, wanted)
    program = pyquant.export(q, gemma4.VisionProfile(grid=(16, 16)), name="vision_h16_w16")
    assert (made / "vision_h16_w16.circle").read_bytes() == program.to_bytes()
    got = tico.Runtime(made / "vision_h16_w16.circle").run({"pixel_values": batch["pixel_values"]})
    (output,) = got.values()
    scale = float(program.outputs[0].quant.scale[0])  # type: ignore[union-attr, index]
    assert (output.reshape(wanted.shape) - wanted).abs().max() <= 1.001 * scale


def test_grids_policy_samples_and_recipe_files_take_effect(place: Path, made: Path, capsys: Any) -> None:
    rules = place / "rules.yaml"
    keep = pyquant.Rule(
        "patch_embedder.*", role="weight", spec=pyquant.QuantSpec(pyquant.IntType(16, signed=True), True)
    )
    pyquant.Policy((keep,), "keep").save(rules)
    more = ["--policy", str(rules), "--samples", "2", "--seed", "4", "--image-grid", "4x6", "--batch-size", "2"]
    assert quantize(place, place / "more", *more, recipe="w8a16-fast") == 0
    output = capsys.readouterr().out
    assert "guessed" not in output
    assert "calibrated on 2 samples" in output
    assert "runs in pyquant's runner; luci: " in output, "for which targets the files are fit"
    recipe = yaml.safe_load((place / "more" / "recipe.yaml").read_text())
    assert recipe["calibration"] == {"data": str(place / "c.jsonl"), "samples": 2, "of": 3, "seed": 4}
    manifest = json.loads((place / "more" / "manifest.json").read_text())
    assert set(manifest["graphs"]) == {"vision_h4_w6"}
    assert manifest["graphs"]["vision_h4_w6"]["inputs"][0]["shape"] == [2, 24, 48]
    policy = pyquant.Policy.preset("w8a16").with_rule(keep)
    assert recipe["rules"] == policy.to_dict()["rules"]
    assert recipe["name"] == "w8a16-fast+keep"
    again = ["quantize", "--model", str(place / "model"), "--recipe", str(place / "more" / "recipe.yaml"), "--data",
             str(place / "c.jsonl"), "--out", str(place / "again"), *more[2:]]  # fmt: skip
    assert main(again) == 0
    files = [(place / name / "vision_h4_w6.circle").read_bytes() for name in ("more", "again")]
    assert files[0] == files[1], "a recipe.yaml gives the same files again"


def test_a_recipe_file_with_steps_and_its_log(place: Path, capsys: Any) -> None:
    text = "format: pyquant-recipe\nversion: 1\nname: mine\nextends: w4a16-fast\nsteps:\n  - gptq: {samples: 2}\n"
    (place / "mine.yaml").write_text(text)
    more = ["--image-grid", "4x6"]
    assert quantize(place, place / "steps", *more, "--resume", str(place / "r"), recipe=str(place / "mine.yaml")) == 0
    output = capsys.readouterr().out
    assert "Gemma4VisionModel, recipe mine (gptq): " in output
    assert re.search(r"^time: .*gptq [\d.]+ s, calibrate [\d.]+ s, convert", output, re.MULTILINE)
    log = (place / "steps" / "quantization_log.csv").read_text()
    assert log.startswith("path,how,bits,loss,rows,note\nencoder.layers.0.")
    assert (place / "steps" / "quantized" / "quantization_log.csv").read_text() == log
    q = pyquant.load_quantized(place / "steps" / "quantized")
    assert q.state.recipe == pyquant.Recipe.load(place / "steps" / "recipe.yaml")
    assert len(q.state.log) == len(log.splitlines()) - 1
    assert quantize(place, place / "steps2", *more, recipe=str(place / "steps" / "recipe.yaml")) == 0
    files = [(place / name / "vision_h4_w6.circle").read_bytes() for name in ("steps", "steps2")]
    assert files[0] == files[1], "the recipe of the result gives the same files, resumed or not"
    assert quantize(place, place / "no", "--policy", str(place / "mine.yaml"), recipe="w8a16-fast") == 0
    assert "its steps (gptq(samples=2)) are not; --recipe" in capsys.readouterr().out


def test_the_table_and_the_guesses_are_printed(place: Path, made: Path) -> None:
    output = (place / "output.txt").read_text()
    assert "guessed: image grids 12x20, 16x16: those of the calibration data" in output
    for part in ("vision_h12_w20", "operators", "no qparams", "2 graphs, ", "calibrated on 3 samples", "float32"):
        assert part in output, output
    row = next(line for line in output.splitlines() if "vision_h16_w16" in line)
    manifest = json.loads((made / "manifest.json").read_text())
    _, _, operators, missing, spent, peak = (cell.strip() for cell in row.strip(" │").split("│"))
    assert operators == str(manifest["graphs"]["vision_h16_w16"]["operators"])
    assert missing == "0"
    assert spent.endswith(" s")
    assert peak.endswith(" GiB")


def test_tensors_are_taken_for_lines_and_a_former_result_is_replaced_whole(place: Path, made: Path) -> None:
    out = shutil.copytree(made, place / "former")
    (out / "stale.circle").write_bytes(b"old")
    process = checkpoints.image_processor(place / "model")
    batches = [unpadded(process, place / f"{number}.png") for number in range(3)]
    flat = {f"{number}.{name}": value for number, batch in enumerate(batches) for name, value in batch.items()}
    save_file({name: value.contiguous() for name, value in flat.items()}, place / "b.safetensors")
    assert quantize(place, out, "--image-grid", "4x4", data="b.safetensors") == 0
    names = ["calibration.json", "manifest.json", "quantized", "recipe.yaml", "vision_h4_w4.circle"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert [p.name for p in place.iterdir() if p.name.startswith(".")] == []
    one, other = (load_file(folder / "quantized" / "quantized.safetensors") for folder in (made, out))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_command_offers_the_tables_of_a_profile() -> None:
    """Listed twice, since the command's help needs no torch."""
    assert get_args(PerLayerTable) == PER_LAYER_TABLES


REFUSED: dict[str, tuple[list[str], str]] = {
    "no recipe": (["--recipe="], "argument --recipe: '' is none of float, "),
    "grid in words": (["--image-grid", "4by6"], "'4by6' is no grid; expected HxW in patches"),
    "grid of zero": (["--image-grid", "0x6"], "'0x6' is no grid"),
    "no samples": (["--samples", "0"], "'0' is no number of 1 or more"),
    "grid and pools": (["--image-grid", "4x5"], "ProfileError: image 0 is 4 patches high and 5 wide"),
    "grid beyond the table": (["--image-grid", "2x80"], "ProfileError: patch 64 of image 0 is at"),
    "a video": (
        ["--image-grid", "2x4x4"],
        "ProfileError: a Gemma4 vision model takes an image or a frame at once, not 2 frames",
    ),
    "no such option": (["--max-seq-len", "64"], "ProfileError: a Gemma4 vision model has no max_seq_len; leave it out"),
    "no such device": (["--device", "nosuch"], "UsageError: --device nosuch: no such device here"),
    "missing data": (["--data", "nowhere.jsonl"], "CalibrationError: calibration data 'nowhere.jsonl' cannot be read"),
    "missing model": (["--model", "./nowhere"], "ModelError: the model folder './nowhere' does not exist"),
    "hub, offline": (["--model", "org/name"], "ModelError: 'org/name' is no folder here, and as a name on the Hugging"),
    "policy missing": (["--policy", "no.yaml"], "PolicyError: policy file 'no.yaml' cannot be read"),
    "parent missing": (["--out", "no/such/out"], "CircleError: cannot write to 'no/such/out': the folder 'no/such'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_left(
    name: str, place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else it tries for half a minute
    more, message = REFUSED[name]
    before = sorted(place.iterdir())
    try:
        code = quantize(place, place / "never", *more)
    except SystemExit as end:  # argparse
        code = int(str(end.code))
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert sorted(place.iterdir()) == before


def test_neither_recipe_nor_policy(place: Path, capsys: Any) -> None:
    words = ["quantize", "--model", str(place / "model"), "--data", str(place / "c.jsonl"), "--out", str(place / "o")]
    assert main(words) == 2
    assert "PolicyError: give --recipe (one of float, " in capsys.readouterr().err


DATA: dict[str, tuple[str, str]] = {
    "json": ('{"image": "0.png"}\n{"image": "1.png"}\n{"image": }\n', r"d.jsonl, line 3: not valid JSON"),
    "empty": ("", "has no line"),
    "missing image": ('{"image": "0.png"}\n{"image": "9.png"}\n', "line 2: the image"),
    "no picture": ('{"image": "0.png"}\n{"image": "d.jsonl"}\n', "line 2: '"),
    "prompt for a vision model": ('{"image": "0.png", "prompt": "what?"}\n', "has no tokenizer, which this line needs"),
}


@pytest.mark.parametrize("name", DATA)
def test_wrong_data_is_named_by_line_before_a_weight_is_read(
    name: str, place: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = DATA[name]
    (place / "d.jsonl").write_text(text)
    monkeypatch.setattr("pyquant.cli.checkpoints.load", lambda *_: pytest.fail("the weights were read"))
    assert quantize(place, tmp_path / "out", data="d.jsonl") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_others_is_left_alone(place: Path, made: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert quantize(place, tmp_path) == 2
    assert "exists and is no result of this command (it has thesis.tex)" in capsys.readouterr().err
    mixed = shutil.copytree(made, tmp_path / "mixed")
    (mixed / "notes.txt").write_text("mine")
    assert quantize(place, mixed) == 2
    assert "it has notes.txt" in capsys.readouterr().err
    assert (mixed / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("x")
    assert quantize(place, tmp_path / "file") == 2
    assert "it is a file, and the result is a folder" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_said_at_once(
    place: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    assert quantize(place, tmp_path / "out") == 2
    assert f"the folder '{tmp_path}' cannot be written to" in capsys.readouterr().err


def test_a_failure_at_the_end_leaves_the_former_result(
    place: Path, made: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyquant.cli.result_folder.write_rest", full)
    assert quantize(place, out, "--image-grid", "4x4") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_faults_of_a_target_are_a_list_and_the_error_one_line(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert quantize(place, tmp_path / "out", "--image-grid", "4x4", "--target", "luci", recipe="w8a16-fast") == 2
    *rows, last = capsys.readouterr().err.splitlines()
    assert last.startswith("pyquant: ExportError: ")
    advice = "recipes without faults there: w8a8-fast (`pyquant recipes`)"
    assert last.endswith(f"rule(s) of target 'luci', listed above; {advice}")
    (equal,) = [row for row in rows if "E_LUCI_WEIGHT_DTYPE" in row]
    assert "expected int16" in equal
    assert "and 7 more like it" in equal
    rules = tmp_path / "rules.yaml"
    pyquant.Policy((pyquant.Rule("nowhere.*"),), "typo").save(rules)
    assert quantize(place, tmp_path / "out", "--policy", str(rules)) == 2
    *rows, last = capsys.readouterr().err.splitlines()
    assert any("'nowhere.*' -> float: nearest sites are" in row for row in rows)
    assert last.startswith("pyquant: PolicyError: policy 'w8a8-fast+typo': 1 of ")
    assert list(tmp_path.iterdir()) == [rules]


def test_weights_that_are_missing_are_no_random_numbers(place: Path, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(place / "model", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors", metadata={"format": "pt"})
    assert quantize(place, tmp_path / "out", "--model", str(folder)) == 2
    error = capsys.readouterr().err
    assert "ModelError: the weights of" in error
    assert "lack 1 tensors of Gemma4VisionModel" in error


def test_code_in_a_checkpoint_is_not_run(place: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"model_type": "evil", "architectures": ["Evil"], "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert quantize(place, tmp_path / "out", "--model", str(tmp_path)) == 2
    assert "ModelError: the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("names", [[], ["Linear"], ["Qwen3VLModel", "Qwen3VLTextModel"], [["a"]]], ids=str)
def test_a_config_that_names_no_one_class_is_refused(
    names: list[Any], place: Path, tmp_path: Path, capsys: Any
) -> None:
    config = json.loads((place / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": names}))
    assert quantize(place, tmp_path / "out", "--model", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "ModelError" in error
    assert len(error.splitlines()) == 1


def test_nan_in_the_data_is_named_by_file_and_batch(place: Path, tmp_path: Path, capsys: Any) -> None:
    process = checkpoints.image_processor(place / "model")
    batches = [unpadded(process, place / f"{number}.png") for number in range(2)]
    batches[1]["pixel_values"][0, 3, 5] = float("nan")
    torch.save(batches, place / "nan.pt")
    assert quantize(place, tmp_path / "out", data="nan.pt") == 2
    error = capsys.readouterr().err
    assert "nan.pt, batch 1: " in error
    assert "NaN" in error
    assert list(tmp_path.iterdir()) == []


def test_batches_with_names_that_the_model_does_not_take(place: Path, tmp_path: Path, capsys: Any) -> None:
    torch.save({"pixel_values": torch.ones(1, 4, 48), "input_ids": torch.ones(1, 4)}, place / "names.pt")
    assert quantize(place, tmp_path / "out", data="names.pt") == 2
    assert "names.pt: the batch has input_ids, which Gemma4VisionModel does not take" in capsys.readouterr().err


def test_sites_are_listed_by_what_is_wrong_and_layers_are_one_line() -> None:
    nothing, bad = "saw no calibration data", "degenerate"
    sites = [(f"model.layers.{n}.mlp.down:act_in", nothing) for n in range(28)]
    sites += [("model.visual:pos_add", nothing), ("head.3:act_out", bad)]
    assert _listed(sites) == [
        "saw no calibration data:",
        "  model.layers.*.mlp.down:act_in (28 sites)",
        "  model.visual:pos_add",
        "degenerate:",
        "  head.*:act_out",
    ]
    many = _listed([(f"site{n}:x", nothing) for n in range(100)])
    assert len(many) == 61
    assert many[-1] == "  and 41 more lines"
