# SPDX-License-Identifier: Apache-2.0
"""save_quantized and load_quantized: bit-identical outputs, small files, and every damage named."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import ToyBlock, ToyModel, ToyNorm
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import pyquant
from pyquant import (
    ObserverSpec,
    PerAxis,
    PerGroup,
    Policy,
    QuantSpec,
    Rule,
    checkpoint_tensors,
    files,
    ops,
    tensor_file,
    wrap,
)
from pyquant.errors import CheckpointError, PhaseError
from pyquant.spec import INT4, INT8, INT16, UINT4
from pyquant.wrap import Phase, QModule, Role

IDS = torch.arange(10)
GROUPED = Policy.preset("w4a16") + Rule("*", Role.WEIGHT, QuantSpec(INT4, True, PerGroup(1, 4)), ObserverSpec("mse"))
ASYMMETRIC_4 = Policy.preset("w8a8") + Rule("*", Role.WEIGHT, QuantSpec(UINT4))
MIXED = Policy.preset("w8a16") + Rule("layers.0*", None, None) + Rule("*", Role.EMBEDDING, None)
POLICIES = {name: Policy.preset(name) for name in ("w8a8", "w8a8_int8", "w8a16", "w4a16", "w4a8", "float")}
POLICIES |= {"grouped": GROUPED, "uint4": ASYMMETRIC_4, "mixed": MIXED}


def quantized(fp: nn.Module, policy: Policy = POLICIES["w8a8"], **kwargs: Any) -> QModule:
    q = pyquant.prepare(fp, policy)
    pyquant.calibrate(q, [IDS, IDS.flip(0)], progress=False)
    pyquant.convert(q, **kwargs)
    return q


def index_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "quantization.json").read_text()))


def rewrite(path: Path, **changes: Any) -> None:
    """Change the index, with checksums that fit the files as they are now."""
    index = index_of(path) | changes
    index["sha256"] = {name: files.sha256(path / name) for name in index["sha256"]}
    (path / "quantization.json").write_text(json.dumps(index))


@pytest.fixture
def saved(model: ToyModel, tmp_path: Path) -> Path:
    pyquant.save_quantized(quantized(model), tmp_path / "q")
    return tmp_path / "q"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reloading_gives_bit_identical_outputs(policy: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = ToyModel().to(dtype)
    q = quantized(model, POLICIES[policy])
    want = q(IDS)
    pyquant.save_quantized(q, tmp_path / "q")
    other = ToyModel().to(dtype)
    before = copy.deepcopy(other.state_dict())
    loaded = pyquant.load_quantized(tmp_path / "q", other)
    assert torch.equal(loaded(IDS), want)
    assert loaded.phase is Phase.QUANTIZED
    assert not any(m.training for m in loaded.modules())
    assert loaded.policy == q.policy
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    for ours, theirs in zip(loaded.all_sites(), q.all_sites(), strict=True):
        assert (ours.qparams is None) == (theirs.qparams is None)
        assert ours.qparams is None or ours.qparams.same_grid(theirs.qparams)


def test_saving_what_was_loaded_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    pyquant.save_quantized(pyquant.load_quantized(saved, ToyModel()), tmp_path / "again")
    for file in saved.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_saving_twice_gives_the_same_bytes(model: ToyModel, tmp_path: Path) -> None:
    q = quantized(model)
    for name in ("a", "b"):
        pyquant.save_quantized(q, tmp_path / name)
    assert sorted(os.listdir(tmp_path / "a")) == ["README.md", "quantization.json", "quantized.safetensors"]
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_weights_are_stored_as_integers_and_4_bit_packed(model: ToyModel, tmp_path: Path) -> None:
    pyquant.save_quantized(quantized(model, POLICIES["w4a8"]), tmp_path / "q")
    tensors = load_file(tmp_path / "q" / "quantized.safetensors")
    up, norm = tensors["layers.0.up.weight"], tensors["layers.0.norm.weight"]
    assert (up.dtype, up.shape) == (torch.uint8, (12 * 8 // 2,))
    assert (norm.dtype, norm.shape) == (torch.uint8, (8,))
    assert tensors["layers.0.up.bias"].dtype == torch.float32
    assert tensors["layers.0.up:weight.scale"].shape == (12,)


def test_odd_number_of_4_bit_weights(tmp_path: Path) -> None:
    fp, x = nn.Linear(3, 5, bias=False), torch.randn(7, 3)
    q = pyquant.prepare(fp, POLICIES["w4a8"])
    pyquant.calibrate(q, [x], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    assert load_file(tmp_path / "q" / "quantized.safetensors")["weight"].shape == (8,)
    assert torch.equal(pyquant.load_quantized(tmp_path / "q", nn.Linear(3, 5, bias=False))(x), q(x))


def test_integers_that_would_not_come_back_are_not_trusted(
    model: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = quantized(model)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_tensors, "_is_fine", lambda dtype, grid: False)
        patch.setattr(
            checkpoint_tensors, "_values", lambda integers, scale, zero_point, grid, dtype: integers.to(dtype) * 1.5
        )
        pyquant.save_quantized(q, tmp_path / "q")
    assert {entry["kind"] for entry in index_of(tmp_path / "q")["tensors"].values()} == {"float", "alias"}
    assert torch.equal(pyquant.load_quantized(tmp_path / "q", ToyModel())(IDS), q(IDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_grids_that_need_no_check_come_back(bits: int, dtype: torch.dtype) -> None:
    top = (1 << (bits - 1)) - 1
    found = set()
    for low, high in ((-top, top), (-top - 1, top)):
        for scale in (1e-38, 3e-7, 0.0123, 1.0, 1 / 3, 77.7, 1e37):
            grid = ops.Grid(torch.tensor(scale), torch.tensor(0, dtype=torch.int32), None, 0, low, high, torch.int16)
            integers = torch.arange(low, high + 1, dtype=torch.int16)
            values = checkpoint_tensors._values(integers, grid.scale, grid.zero_point, grid, dtype)
            back = ops.quantize(values, grid.scale, grid.zero_point, None, 0, low, high, torch.int16)
            fine = checkpoint_tensors._is_fine(dtype, grid)
            assert torch.equal(back, integers) or not fine
            found.add(fine)
    narrow = bits == 16 and dtype != torch.float32
    assert (True in found) is not narrow


def test_tied_tensors_are_stored_once_and_come_back_tied(saved: Path) -> None:
    entries = index_of(saved)["tensors"]
    assert entries["head.weight"] == {"kind": "alias", "of": "embed.weight"}
    assert entries["embed.weight"]["kind"] == "float"  # its two users have different grids
    loaded = pyquant.load_quantized(saved, ToyModel())
    assert loaded.head.weight is loaded.embed.weight


def test_tied_tensors_on_one_grid_are_integers(model: ToyModel, tmp_path: Path) -> None:
    spec = QuantSpec(INT8, True)
    policy = POLICIES["w8a8"] + Rule("embed:weight", None, spec) + Rule("head:weight", None, spec)
    q = quantized(model, policy)
    pyquant.save_quantized(q, tmp_path / "q")
    assert index_of(tmp_path / "q")["tensors"]["embed.weight"]["kind"] == "integer"
    assert torch.equal(pyquant.load_quantized(tmp_path / "q", ToyModel())(IDS), q(IDS))


def test_everything_is_stored_even_buffers_that_torch_would_not(saved: Path) -> None:
    with safe_open(saved / "quantized.safetensors", framework="pt") as file:
        assert "layers.0.table" in set(file.keys())
    loaded = pyquant.load_quantized(saved, ToyModel().to("meta"))
    assert {t.device.type for t in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}


def test_a_model_on_the_meta_device_is_enough(saved: Path, model: ToyModel) -> None:
    with torch.device("meta"):
        empty = ToyModel()
    assert torch.equal(pyquant.load_quantized(saved, empty)(IDS), quantized(model)(IDS))


def test_views_of_one_storage(tmp_path: Path) -> None:
    model = ToyModel(tied=False)
    both = torch.randn(2, 8)
    model.layers[0].norm.weight = nn.Parameter(both[0])
    model.layers[1].norm.weight = nn.Parameter(both[1])
    model.layers[0].down.weight = nn.Parameter(torch.randn(12, 8).t())
    q = quantized(model, Policy.preset("float"))
    pyquant.save_quantized(q, tmp_path / "q")
    assert torch.equal(pyquant.load_quantized(tmp_path / "q", ToyModel(tied=False))(IDS), q(IDS))


def test_unused_sites_stay_float(model: ToyModel, tmp_path: Path) -> None:
    q = quantized(model, unused=["layers.1.up:*"])
    pyquant.save_quantized(q, tmp_path / "q")
    loaded = pyquant.load_quantized(tmp_path / "q", ToyModel())
    assert loaded.layers[1].up.site("weight").scale is None
    assert torch.equal(loaded(IDS), q(IDS))


def test_loaded_weights_are_cached_too(saved: Path, calls: Counter[str]) -> None:
    loaded = pyquant.load_quantized(saved, ToyModel())
    loaded(IDS)
    calls.clear()
    loaded(IDS)
    rows_of_the_table = 1
    assert calls["fake_quantize"] == sum(not s.role.is_constant for s in loaded.all_sites()) + rows_of_the_table


def test_float_phase_of_a_loaded_tree_has_the_weights_of_the_grid(saved: Path, model: ToyModel) -> None:
    loaded, q = pyquant.load_quantized(saved, ToyModel()), quantized(model)
    weight = q.layers[0].up.const("weight", q.layers[0].up.weight)
    with wrap.phase(loaded, Phase.FLOAT):
        assert torch.equal(loaded.layers[0].up.const("weight", loaded.layers[0].up.weight), weight)


def test_saving_over_an_old_one_replaces_it_and_keeps_other_files(saved: Path, tmp_path: Path) -> None:
    (saved / "preprocessor_config.json").write_text("{}")
    q = quantized(ToyModel(), POLICIES["w4a16"])
    pyquant.save_quantized(q, saved)
    assert torch.equal(pyquant.load_quantized(saved, ToyModel())(IDS), q(IDS))
    assert (saved / "preprocessor_config.json").exists()
    assert os.listdir(tmp_path) == ["q"]


def test_saving_over_itself_while_loaded(saved: Path) -> None:
    loaded = pyquant.load_quantized(saved, ToyModel())
    want = loaded(IDS)
    pyquant.save_quantized(loaded, saved)
    assert torch.equal(loaded(IDS), want)
    assert torch.equal(pyquant.load_quantized(saved, ToyModel())(IDS), want)


# --- saving: mistakes ---


@pytest.mark.parametrize("what", ["prepared", "float-model"])
def test_save_before_convert(model: ToyModel, tmp_path: Path, what: str) -> None:
    q = pyquant.prepare(model, POLICIES["w8a8"]) if what == "prepared" else model
    with pytest.raises(PhaseError, match="takes a converted tree: prepare, calibrate and convert it first"):
        pyquant.save_quantized(q, tmp_path / "q")
    assert os.listdir(tmp_path) == []


def test_save_of_a_part(model: ToyModel, tmp_path: Path) -> None:
    with pytest.raises(PhaseError, match="got its part 'head'"):
        pyquant.save_quantized(quantized(model).head, tmp_path / "q")


def test_save_into_a_folder_that_does_not_exist(model: ToyModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the folder '.*nope' does not exist; create it first"):
        pyquant.save_quantized(quantized(model), tmp_path / "nope" / "q")


def test_save_onto_a_file(model: ToyModel, tmp_path: Path) -> None:
    (tmp_path / "q").write_text("precious")
    with pytest.raises(CheckpointError, match="exists and is not a folder"):
        pyquant.save_quantized(quantized(model), tmp_path / "q")
    assert (tmp_path / "q").read_text() == "precious"


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_full_disk_leaves_what_was_there(
    model: ToyModel, tmp_path: Path, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, path = quantized(model), tmp_path / "q"
    if existing:
        pyquant.save_quantized(q, path)
    before = {f.name: f.read_bytes() for f in path.iterdir()} if existing else None

    def full(file: Path, entries: object, metadata: dict[str, str]) -> None:
        file.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "save", full)
    with pytest.raises(CheckpointError, match=r"cannot be written to '.*q': .*No space left on device"):
        pyquant.save_quantized(q, path)
    assert os.listdir(tmp_path) == (["q"] if existing else [])
    if before is not None:
        assert {f.name: f.read_bytes() for f in path.iterdir()} == before
        assert torch.equal(pyquant.load_quantized(path, ToyModel())(IDS), q(IDS))


# --- loading: mistakes ---


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_load_of_what_is_no_checkpoint(tmp_path: Path, what: str) -> None:
    path = tmp_path / "q"
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_text("x")
    with pytest.raises(CheckpointError, match=r"is no quantized model: quantization.json cannot be read"):
        pyquant.load_quantized(path, ToyModel())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no pyquant-checkpoint file"),
        ('{"format": "gguf"}', "is no pyquant-checkpoint"),
    ],
    ids=["cut", "list", "other"],
)
def test_load_of_a_broken_index(saved: Path, text: str, message: str) -> None:
    (saved / "quantization.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        pyquant.load_quantized(saved, ToyModel())


def test_load_of_a_newer_format(saved: Path) -> None:
    rewrite(saved, version=2, made_by={"pyquant-circle": "9.9"})
    with pytest.raises(CheckpointError, match=r"has format version 2, this pyquant reads 1; it was made by .*9\.9"):
        pyquant.load_quantized(saved, ToyModel())


def test_load_without_the_weights_file(saved: Path) -> None:
    (saved / "quantized.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the file 'quantized.safetensors'; copy the whole folder"):
        pyquant.load_quantized(saved, ToyModel())


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_load_of_a_corrupt_file(saved: Path, damage: str) -> None:
    file = saved / "quantized.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data if damage == "flip" else data[:-5])
    with pytest.raises(CheckpointError, match=r"is corrupt: the checksum of 'quantized.safetensors' is not the one in"):
        pyquant.load_quantized(saved, ToyModel())


def test_load_of_a_file_that_is_no_safetensors(saved: Path) -> None:
    (saved / "quantized.safetensors").write_bytes(b"not safetensors")
    rewrite(saved)
    with pytest.raises(CheckpointError, match=r"is damaged: quantized.safetensors cannot be read \(SafetensorError"):
        pyquant.load_quantized(saved, ToyModel())


@pytest.mark.parametrize("name", ["layers.0.up.weight", "layers.0.up:weight.scale"])
def test_load_without_a_tensor(saved: Path, name: str) -> None:
    tensors = load_file(saved / "quantized.safetensors")
    del tensors[name]
    save_file(tensors, saved / "quantized.safetensors")
    rewrite(saved)
    with pytest.raises(CheckpointError, match=rf"lacks tensor '{name}' in quantized.safetensors; save it again"):
        pyquant.load_quantized(saved, ToyModel())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")], ids=str)
def test_load_of_a_scale_that_cannot_be(saved: Path, value: float) -> None:
    tensors = load_file(saved / "quantized.safetensors")
    tensors["layers.0.up:weight.scale"][3] = value
    save_file(tensors, saved / "quantized.safetensors")
    rewrite(saved)
    with pytest.raises(CheckpointError, match=r"grid of site 'layers.0.up:weight' cannot be: every scale must be"):
        pyquant.load_quantized(saved, ToyModel())


@pytest.mark.parametrize("key", ["policy", "sites", "tensors", "root", "sha256", "configs"])
def test_load_of_an_index_without_a_key(saved: Path, key: str) -> None:
    index = index_of(saved)
    del index[key]
    (saved / "quantization.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"is damaged: quantization.json: '{key}' is missing"):
        pyquant.load_quantized(saved, ToyModel())


def test_load_into_another_class(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is of a core_toys:ToyModel, got a core_toys:ToyNorm"):
        pyquant.load_quantized(saved, ToyNorm(4))


def test_load_into_another_depth(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit this model at site 'layers.1.*here no such site"):
        pyquant.load_quantized(saved, ToyModel(layers=1))


def test_load_into_another_size(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"tensor 'embed.weight' has shape \(10, 8\) in the checkpoint and \(10, 4\)"
    ):
        pyquant.load_quantized(saved, ToyModel(size=4))


def test_load_into_a_model_with_other_tensors(saved: Path) -> None:
    other = ToyModel()
    other.layers[0].up.bias = None
    with pytest.raises(CheckpointError, match=r"checkpoint and model differ in the tensors \['layers.0.up.bias'\]"):
        pyquant.load_quantized(saved, other)


def test_load_without_a_model_needs_a_transformers_class(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is not a transformers class with a config.json.*load_quantized\(path, fp\)"
    ):
        pyquant.load_quantized(saved)


@pytest.mark.parametrize("root", ["os:system", "core_toys:Nope", "builtins:eval"])
def test_load_builds_registered_classes_only(saved: Path, root: str) -> None:
    rewrite(saved, root=root)
    with pytest.raises(
        CheckpointError, match=rf"is of a {root}, which has no wrapper here; pass a model of that class"
    ):
        pyquant.load_quantized(saved)


def test_load_with_a_policy_that_was_tampered_with(saved: Path) -> None:
    policy = index_of(saved)["policy"]
    policy["rules"].append({"match": "*:act_in", "spec": QuantSpec(INT16, True).to_dict()})
    rewrite(saved, policy=policy)
    with pytest.raises(CheckpointError, match=r"does not fit this model at site .*there .*uint8.*here .*int16"):
        pyquant.load_quantized(saved, ToyModel())


def test_a_policy_whose_observer_its_format_cannot_have(saved: Path) -> None:
    """Loading observes nothing, and still refuses it."""
    policy = index_of(saved)["policy"]
    per_row = QuantSpec(INT8, True, PerAxis(0)).to_dict()
    policy["rules"].append({"match": "*:act_in", "spec": per_row, "observer": {"kind": "percentile"}})
    rewrite(saved, policy=policy)
    with pytest.raises(CheckpointError, match=r"'policy' does not fit the model .*a histogram is kept per tensor"):
        pyquant.load_quantized(saved, ToyModel())


def test_only_sites_without_a_grid_observe(model: ToyModel, tmp_path: Path) -> None:
    pyquant.save_quantized(quantized(model, unused=["layers.1.up:*"]), tmp_path / "q")
    loaded = pyquant.load_quantized(tmp_path / "q", ToyModel())
    observed = {site.path for site in loaded.all_sites() if site.observer is not None}
    assert observed == {site.path for site in loaded.all_sites() if site.path.startswith("layers.1.up:")}


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_values(saved: Path, threads: int) -> None:
    want = pyquant.load_quantized(saved, ToyModel()).state_dict()
    torch.set_num_threads(threads)  # the fixture of this folder sets it back
    for name, value in pyquant.load_quantized(saved, ToyModel()).state_dict().items():
        assert torch.equal(value, want[name])


def test_a_block_alone_is_a_model_too(block: ToyBlock, tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    q = pyquant.prepare(block, POLICIES["w8a8"])
    pyquant.calibrate(q, [x], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    assert torch.equal(pyquant.load_quantized(tmp_path / "q", ToyBlock())(x), q(x))
