# SPDX-License-Identifier: Apache-2.0
"""A model streamed from its folder gives the same bits as the whole model: grids, saved tensors, files."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyquant
from benchmarks.real_size import streamed
from examples.digits import families as trained
from examples.digits import vlm_data
from pyquant import models, pages
from pyquant import stream as room
from pyquant.cli.main import main
from pyquant.errors import InputError, ModelError
from pyquant.models.gemma4 import whole_example
from pyquant.qparams import QParams
from pyquant.stream import Stream

ROOT = Path(__file__).parents[2]
FAMILIES = ("llama", "qwen3_vl", "gemma4")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each family: `model` in bfloat16 in several files, `data` of three samples."""
    place = tmp_path_factory.mktemp("stream")
    for name in FAMILIES:
        example = whole_example if name == "gemma4" else models.by_name(name).example
        model = example.tiny_model()
        (place / name / "data").mkdir(parents=True)
        for number in range(3):  # the first with an image, where the family has some
            ids = [*range(9 + number, 21 + number)] if number else None
            batch = example.example_inputs(model, ids=ids)
            save_file(batch, place / name / "data" / f"{number}.safetensors")
        model.to(torch.bfloat16).save_pretrained(place / name / "model", max_shard_size="60KB")
    return place


@pytest.fixture
def everything_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small; and of what was used, little stays in memory."""
    monkeypatch.setattr(room, "_SMALL", 0)
    monkeypatch.setattr(Stream, "__post_init__", lambda self: object.__setattr__(self, "resident_gb", 3e-5))


def files_of(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def same(one: QParams | None, two: QParams | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.spec == two.spec and torch.equal(one.scale, two.scale) and torch.equal(one.zero_point, two.zero_point)


def batches(place: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(path) for path in sorted((place / "data").iterdir())]


@pytest.mark.usefixtures("everything_in_files")
@pytest.mark.parametrize(
    ("family", "recipe", "dtype"),
    [
        ("llama", "w4a16", "float32"),
        pytest.param("qwen3_vl", "w8a8-fast", "bfloat16", marks=pytest.mark.slow),
        pytest.param("gemma4", "w8a8-fast", "float32", marks=pytest.mark.slow),
        pytest.param("qwen3_vl", "w4a16", "float32", marks=pytest.mark.slow),
        pytest.param("qwen3_vl", "w4a8", "bfloat16", marks=pytest.mark.slow),
        pytest.param("gemma4", "w4a16", "float32", marks=pytest.mark.slow),
    ],
)
def test_the_saved_model_is_the_same(place: Path, tmp_path: Path, family: str, recipe: str, dtype: str) -> None:
    folder = place / family / "model"
    whole = pyquant.quantize(pyquant.interop.load(folder, dtype), batches(place / family), recipe)
    stream = Stream(tmp_path)
    fp = pyquant.interop.load(folder, dtype, stream=stream)
    assert all(map(pages.is_mapped, fp.parameters()))
    q = pyquant.quantize(fp, batches(place / family), recipe, stream=stream)
    with torch.no_grad():
        wanted, got = (tree(**batches(place / family)[0]).logits for tree in (whole, q))
    assert torch.equal(got, wanted)
    assert [site.path for site in q.all_sites() if site.role.is_kernel and site._cache._value is not None] == []
    held = [name for name, value in q.named_parameters() if not pages.is_mapped(value)]
    assert [name for name in held if "patch_embed" not in name] == []  # a wrapper computes that one
    for name, tree in (("whole", whole), ("streamed", q)):
        pyquant.save_quantized(tree, tmp_path / name, source=str(folder))
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "whole")
    grids = {site.path: site.qparams for site in q.all_sites()}
    assert [site.path for site in whole.all_sites() if not same(site.qparams, grids[site.path])] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "whole"]  # no file is left


@pytest.mark.slow  # three minutes each
@pytest.mark.usefixtures("everything_in_files")
@pytest.mark.parametrize(("family", "recipe"), [("gemma4", "w4a16"), ("qwen3_vl", "w8a8")])
def test_a_trained_model_keeps_every_bit(tmp_path: Path, family: str, recipe: str) -> None:
    """Rows of unequal length, with padding, and pictures of several sizes; grids, saved tensors, each .circle file."""
    own = trained.FAMILIES[family]
    data = list(vlm_data.calibration_batches(24, 8, inputs=own.inputs))
    stream = Stream(tmp_path, cache_gb=1e-4)
    trees = {}
    for name, given in (("whole", None), ("streamed", stream)):
        q = pyquant.quantize(pyquant.interop.load(own.checkpoint, stream=given), data, recipe, stream=given)
        (tmp_path / name).mkdir()
        pyquant.save_quantized(q, tmp_path / name / "saved")
        pyquant.export_bundle(q, tmp_path / name / "bundle", own.profile(2))
        trees[name] = q
    grids = {site.path: site.qparams for site in trees["streamed"].all_sites()}
    assert [s.path for s in trees["whole"].all_sites() if not same(s.qparams, grids[s.path])] == []
    wanted = files_of(tmp_path / "whole")
    assert any(name.endswith(".safetensors") for name in wanted)
    assert files_of(tmp_path / "streamed") == wanted


@pytest.mark.slow
@pytest.mark.usefixtures("everything_in_files")
@pytest.mark.parametrize(("family", "recipe"), [("qwen3_vl", "w4a16"), ("gemma4", "w8a8-fast"), ("llama", "w4a8")])
def test_the_folder_of_the_command_is_the_same(place: Path, tmp_path: Path, family: str, recipe: str) -> None:
    words = ["quantize", "--model", str(place / family / "model"), "--data", str(place / family / "data")]
    words += ["--recipe", recipe]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert main([*words, "--out", str(tmp_path / "streamed"), "--stream", "--cache-gb", "0.5"]) == 0
    wanted = files_of(tmp_path / "whole")
    assert any(name.endswith(".circle") for name in wanted)
    assert files_of(tmp_path / "streamed") == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "whole"]


def test_hidden_states_beyond_the_cache_lie_in_files(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the first sample fit here; the rest is read again bit for bit, with quantized propagation too."""
    monkeypatch.setattr(room, "_SMALL", 0)
    data = batches(place / "llama")
    kept: list[tuple[int, ...]] = []
    keep = Stream.keep

    def seen(stream: Stream, value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        kept.append(tuple(value.shape))
        return keep(stream, value, dtype)

    monkeypatch.setattr(Stream, "keep", seen)
    trees = []
    length, width = data[0]["input_ids"].shape[1], 32
    for stream in (None, Stream(tmp_path, cache_gb=2 * length * width * 4 / 1e9)):
        fp = pyquant.interop.load(place / "llama" / "model", stream=stream)
        q = pyquant.prepare(fp, pyquant.Policy.preset("w4a16"), stream=stream)
        pyquant.algorithms.gptq(q, data, propagate="quantized")
        trees.append(q)
    one, two = (list(q.named_parameters()) for q in trees)
    assert [name for (name, a), (_, b) in zip(one, two, strict=True) if not torch.equal(a, b)] == []
    hidden = [shape for shape in kept if len(shape) == 3]
    assert {shape[1] for shape in hidden} == {12}  # of the second sample and the third
    assert len(hidden) >= 2 * 2 * len(q.get_submodule("model.layers"))  # type: ignore[arg-type]


def test_what_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cache_gb=0"):
        Stream(cache_gb=0)
    with pytest.raises(InputError, match="no folder; make it first"):
        Stream(tmp_path / "absent")
    model = models.by_name("llama").example.tiny_model()
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be streamed: they are no \.safetensors files .*save_pretrained"):
        pyquant.interop.load(tmp_path, stream=Stream())


def test_a_disk_without_room_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=5_000_000))
    with pytest.raises(InputError, match=r"0\.01 GB does not fit the folder .* 0\.01 GB are free; name a folder"):
        Stream(tmp_path).keep(torch.zeros(2_000_000))
    assert list(tmp_path.iterdir()) == []


def test_kept_values_and_their_layout(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    value = torch.randn(300, 501).T
    kept = stream.keep(value, torch.bfloat16)
    assert torch.equal(kept, value.to(torch.bfloat16))
    assert kept.is_contiguous()
    assert pages.is_mapped(kept)
    kept[7, 9] = 5.0  # of this process alone
    stream.touch(kept)
    stream.release()
    assert kept[7, 9] == 5.0
    small = torch.ones(3, 5)
    assert torch.equal(stream.keep(small), small)
    assert stream.keep(small).data_ptr() != small.data_ptr()
    assert pickle.loads(pickle.dumps(stream)) == stream


# --- real sizes ---


@pytest.mark.parametrize(("size", "count"), [("2b", 2.13), ("4b", 4.44), ("8b", 8.77)])
def test_the_configurations_are_those_of_qwen3_vl(size: str, count: float) -> None:
    """Reference: the sizes that the checkpoints' index files give."""
    from transformers import Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(streamed.config(size))
    model.tie_weights()
    assert round(sum(value.numel() for value in model.parameters()) / 1e9, 2) == count


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 1.25), ("float32", 1.8)])
def test_memory_stays_below_the_weights(tmp_path: Path, dtype: str, limit: float) -> None:
    """0.7 G parameters: 1.33 GiB in bfloat16, 2.66 in float32; what torch and transformers take is 0.4 of it."""
    size = ["--size", "700m", "--vocabulary", "32768", "--dtype", dtype, "--limit-gib", str(limit)]
    program = [sys.executable, "-m", "benchmarks.real_size.streamed", str(tmp_path / "out"), *size]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "6 files checked" in ran.stdout
