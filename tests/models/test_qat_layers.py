# SPDX-License-Identifier: Apache-2.0
"""Layers of Google's quantization-aware checkpoints, alone: transformers' numbers in the float phase and when
quantized, and the checkpoint's integers in the file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gemma4_text_tiny
import numpy as np
import pytest
import qat_tiny
import torch
from circle_schema.v0_10.circle.Model import ModelT
from qat_tiny import gemma_quant
from torch import Tensor, nn

import pyquant
from pyquant import circle
from pyquant.errors import CheckpointError, ModelError, PhaseError, PolicyError
from pyquant.exporter.precision import LowPrecisionWarning
from pyquant.exporter.profile import ExportProfile, TensorSpec
from pyquant.qparams import QParams
from pyquant.spec import INT4, INT8, PerAxis, PerTensor, QuantSpec
from pyquant.verify import compare
from pyquant.wrap import Phase, QModule, phase, register
from pyquant.wrap.packed import Packing

torch.set_num_threads(1)

BITS = (2, 4, 8)
RECIPES = ("w8a8", "w8a16", "w4a16", "w8a8_int8")
every_width = pytest.mark.parametrize("bits", BITS)


class Holder(nn.Module):
    """A table, a linear and a plain linear, so that layers have a path."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.table = gemma_quant.QuantizedEmbedding(20, 12, torch.float32, embed_scale=4.0, num_bits=bits)
        self.table.embedding_scale = nn.Parameter(torch.ones(20, 3))
        self.fc = gemma_quant.QuantizedLinear(12, 8, num_bits=bits)
        self.head = nn.Linear(8, 4)
        if not self.head.weight.is_meta:
            qat_tiny.randomized_(self)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.fc(self.table(ids)))
        return out


@register(Holder)
class QuantHolder(QModule):
    CHILDREN = ("table", "fc", "head")

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.fc(self.table(ids)))
        return out


def linear(bits: int, *, scales: bool = True, bias: bool = False, seed: int = 0) -> Any:
    """13 -> 10: rows that do not fill their last byte."""
    model = gemma_quant.QuantizedLinear(13, 10, bias=bias, num_bits=bits)
    qat_tiny.randomized_(model, seed)
    if scales:
        x = data()
        model.input_activation_scale.fill_(float(x.abs().max()) / 140)  # it saturates
        model.output_activation_scale.fill_(float(model(x).abs().max()) / 120)
    return model


def embedding(bits: int, blocks: int = 1, factor: float = 4.0) -> Any:
    model = gemma_quant.QuantizedEmbedding(20, 12, torch.float32, embed_scale=factor, num_bits=bits)
    model.embedding_scale = nn.Parameter(torch.ones(20, blocks))
    return qat_tiny.randomized_(model)


def data(seed: int = 1) -> Tensor:
    return torch.randn(3, 7, 13, generator=torch.Generator().manual_seed(seed))


def quantized(model: Any, x: Tensor, recipe: str = "w8a16") -> Any:
    q = pyquant.prepare(model, pyquant.Policy.preset(recipe))
    pyquant.calibrate(q, [(x,)], progress=False)
    pyquant.convert(q)
    return q


def graph(q: Any, x: Tensor, name: str = "x") -> Any:
    return pyquant.export(q, ExportProfile({name: TensorSpec(tuple(x.shape), x.dtype)}, ("y",)))


def integers_in(path: Path, name: str) -> np.ndarray[Any, Any]:
    """Those of a constant, by our reader and by circle-schema's: equal."""
    ours = next(tensor for tensor in circle.read(path).tensors if tensor.name == name)
    theirs = ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (their,) = [tensor for tensor in theirs.subgraphs[0].tensors if tensor.name.decode() == name]
    raw = np.frombuffer(bytes(ours.data), np.uint8)
    assert bytes(theirs.buffers[their.buffer].data) == bytes(raw)
    if ours.dtype == "int4":
        nibbles = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[: int(np.prod(ours.shape))]
        return (nibbles.astype(np.int8) ^ 8).reshape(ours.shape) - 8
    return raw.view(np.int8).reshape(ours.shape)


@every_width
def test_packing_is_that_of_transformers(bits: int) -> None:
    model = linear(bits)
    found = Packing(bits, 13).integers(model.weight)
    assert torch.equal(found, qat_tiny.integers(model))
    assert (int(found.min()), int(found.max())) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@every_width
@pytest.mark.parametrize("scales", [False, True], ids=["no activation scales", "activation scales"])
def test_a_linear_in_the_float_phases_is_transformers_own(bits: int, scales: bool) -> None:
    """Its rounding of activations too: that is part of the float model."""
    model, x = linear(bits, scales=scales), data()
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a8"))
    for where in (Phase.CALIBRATE, Phase.FLOAT):
        with phase(q, where), torch.no_grad():
            assert float((q(x) - model(x)).abs().max()) <= 1e-6


@every_width
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_trained_linear_quantized_is_transformers_own(bits: int, recipe: str) -> None:
    """Both ends have trained scales, so nothing is calibrated; random values have no ties, where rounding differs."""
    model, x = linear(bits), data()
    q = pyquant.prepare(model, pyquant.Policy.preset(recipe))
    assert [site.decided for site in q.all_sites()] == ["trained, in the gemma checkpoint"] * 3
    assert q.uncalibrated_sites() == []
    pyquant.convert(q)
    assert float((q(x) - model(x)).abs().max()) <= 1e-6
    site = q.site("act_in")
    assert (site.spec, float(site.scale)) == (QuantSpec(INT8, symmetric=True), float(model.input_activation_scale))


@every_width
def test_integers_and_scales_of_the_file_are_the_checkpoints(bits: int, tmp_path: Path) -> None:
    model, x = linear(bits), data()
    q = quantized(model, x)
    program = graph(q, x)
    assert program.missing_qparams() == []
    program.save(tmp_path / "x.circle")
    assert np.array_equal(integers_in(tmp_path / "x.circle", "weight"), qat_tiny.integers(model).numpy())
    tensor = next(t for t in circle.read(tmp_path / "x.circle").tensors if t.name == "weight")
    assert np.array_equal(np.float32(tensor.scale), model.weight_scale.detach().numpy()[:, 0])
    assert set(tensor.zero_point) == {0}
    report = compare(program, q, [x])
    assert report.outputs[0].unequal == 0


def test_bfloat16_keeps_the_integers(tmp_path: Path) -> None:
    """8-bit values times a scale are no bfloat16 numbers: integers made of them would be others."""
    model = linear(8).to(torch.bfloat16)
    model.weight = nn.Parameter(linear(8).weight.clone(), requires_grad=False)
    x = data().bfloat16()
    q = quantized(model, x)
    with pytest.warns(LowPrecisionWarning):
        graph(q, x).save(tmp_path / "x.circle")
    name = next(t.name for t in circle.read(tmp_path / "x.circle").tensors if t.name.startswith("weight"))
    assert np.array_equal(integers_in(tmp_path / "x.circle", name), qat_tiny.integers(model).numpy())


def test_without_scales_both_ends_are_calibrated_by_the_policy() -> None:
    q = pyquant.prepare(linear(4, scales=False), pyquant.Policy.preset("w8a16"))
    assert [site.path for site in q.uncalibrated_sites()] == [":act_in", ":act_out"]
    pyquant.calibrate(q, [(data(),)], progress=False)
    pyquant.convert(q)
    assert [str(site.spec.dtype) for site in q.all_sites()] == ["int16", "int4", "int16"]
    assert q.site("weight").spec == QuantSpec(INT4, symmetric=False, granularity=PerAxis(0))


def test_a_bias_is_on_the_grid_of_both_trained_scales() -> None:
    model, x = linear(8, bias=True), data()
    q = quantized(model, x)
    grid = q.input_scale * q.weight_scale.reshape(-1)
    assert torch.equal(q.bias_scale, grid)
    assert float((q(x) - model(x)).abs().max()) <= float(model.output_activation_scale) * 1.001


@torch.no_grad()
def test_a_bias_that_does_not_fit_trained_grids_is_an_error() -> None:
    """Raising the weight's scale, as convert does otherwise, would change its integers."""
    model = linear(8, bias=True, scales=False)
    model.input_activation_scale.fill_(1e-9)
    model.bias.fill_(3e6)
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [(data(),)], progress=False)
    with pytest.raises(pyquant.errors.CalibrationError, match=r":weight: the bias beside it does not fit .* decided"):
        pyquant.convert(q)


@every_width
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_table_in_the_float_phases_is_transformers_own(bits: int, blocks: int) -> None:
    model, ids = embedding(bits, blocks), torch.arange(20).reshape(4, 5)
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a8"))
    for where in (Phase.CALIBRATE, Phase.FLOAT):
        with phase(q, where):
            assert float((q(ids) - model(ids)).abs().max()) <= 1e-6
    assert torch.equal(q.weight, model.weight)


@every_width
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_table_in_the_file_is_integers_and_scales(bits: int, blocks: int, tmp_path: Path) -> None:
    model, ids = embedding(bits, blocks), torch.arange(20).reshape(4, 5)
    q = quantized(model, ids)
    scale = model.embedding_scale.max() * model.scalar_embed_scale
    rounding = scale / 32767 / 2 * 2 ** (bits - 1) + q.site("act_out").scale / 2
    assert float((q(ids) - model(ids)).abs().max()) <= float(rounding) * 1.001
    program = graph(q, ids, "input_ids")
    assert program.missing_qparams() == []
    program.save(tmp_path / "x.circle")
    assert np.array_equal(integers_in(tmp_path / "x.circle", "weight"), qat_tiny.integers(model).numpy())
    report = compare(program, q, [ids], runtime="tico")  # its grids divide each other: float32 flips 1 % of the ties
    assert report.outputs[0].unequal == 0
    assert q.site("weight").spec == QuantSpec(INT8 if bits == 8 else INT4, granularity=PerTensor())


def test_a_table_is_never_float_while_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    q = quantized(embedding(4), torch.arange(20)[None])
    monkeypatch.setattr(type(q), "value", lambda _: pytest.fail("the whole table was made"))
    q(torch.tensor([[1, 2]]))
    assert max(p.numel() for p in q.parameters() if p.is_floating_point()) == 20


def test_the_policy_says_float_or_blocks_and_is_obeyed() -> None:
    """So that a checkpoint of this kind can go to onert, which has no weights with a scale per row."""
    model, x = linear(4, scales=False), data()
    q = pyquant.prepare(model, pyquant.Policy.preset("float"))
    pyquant.convert(q)
    assert [site.scale for site in q.all_sites()] == [None] * 3
    assert float((q(x) - model(x)).abs().max()) <= 1e-6
    grid = Packing(4, 13).grid(model.weight_scale.reshape(-1), "x")
    site = pyquant.prepare(model, pyquant.Policy.preset("float")).site("weight")
    with pytest.raises(PolicyError, match="cannot take a grid: the policy gives it no format"):
        site.decide(grid, "by hand")
    wide = gemma_quant.QuantizedLinear(32, 8, num_bits=4)
    q = pyquant.prepare(qat_tiny.randomized_(wide), pyquant.Policy.preset("w4_onert"))
    pyquant.convert(q)
    expected = pyquant.ops.fake_quantize_blocks(qat_tiny.integers(wide).float() * wide.weight_scale, 4)
    x = torch.randn(2, 32)
    assert torch.equal(q(x), torch.nn.functional.linear(x, expected))


@pytest.mark.parametrize("bits", BITS)
def test_saved_and_loaded_it_is_bit_identical(bits: int, tmp_path: Path) -> None:
    model = Holder(bits)
    model.fc.input_activation_scale.data.fill_(0.03)
    ids = torch.arange(20)[None]
    q = quantized(model, ids)
    pyquant.save_quantized(q, tmp_path / "q")
    with torch.device("meta"):
        fresh = Holder(bits)
    loaded = pyquant.load_quantized(tmp_path / "q", fresh)
    assert torch.equal(loaded(ids), q(ids))
    assert str(loaded.policy.explain(loaded)) == str(q.policy.explain(q))
    with phase(loaded, Phase.FLOAT), torch.no_grad():
        x = model.table(ids)
        assert float((loaded.table(ids) - x).abs().max()) <= 1e-6
        assert float((loaded.fc(x) - model.fc(x)).abs().max()) <= 1e-6


def saved_model(folder: Path) -> Path:
    model = qat_tiny.stored_(gemma4_text_tiny.causal_lm(tie_word_embeddings=False))
    q = pyquant.prepare(model, pyquant.Policy.preset("float"))
    pyquant.convert(q)
    pyquant.save_quantized(q, folder)
    return folder


@pytest.mark.parametrize(
    ("path", "form", "words"),
    [
        ("model.layers.99.mlp", {"form": "gemma_linear", "bits": 4}, "has no attribute|no attribute `99`"),
        ("lm_head", {"form": "nope", "bits": 4}, "a layer is stored as 'nope', which this pyquant does not know"),
    ],
)
def test_stored_forms_that_cannot_be(tmp_path: Path, path: str, form: Any, words: str) -> None:
    index = saved_model(tmp_path / "q") / "quantization.json"
    data = json.loads(index.read_text())
    data["stored"][path] = form
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=rf"quantization.json: 'stored' does not fit .*({words})"):
        pyquant.load_quantized(tmp_path / "q")


def test_a_saved_tree_needs_transformers_with_such_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.11 there are none: nothing is wrong with the folder."""
    saved_model(tmp_path / "q")
    monkeypatch.setitem(sys.modules, "pyquant.wrap.hf_gemma_quant", None)
    with pytest.raises(CheckpointError, match=r"has layers of a quantization-aware .* install 5\.11 or later"):
        pyquant.load_quantized(tmp_path / "q")


def test_explain_says_where_a_format_comes_from() -> None:
    q = pyquant.prepare(linear(4), pyquant.Policy.preset("w8a8"))
    rows = str(q.policy.explain(q)).splitlines()
    (row,) = [row for row in rows if row.startswith(":weight")]
    assert "trained, in the gemma checkpoint (not #3 *)" in row
    assert "int4 asymmetric per-channel(axis=0)  decided" in row


@torch.no_grad()
def test_scales_edited_after_prepare_are_an_error() -> None:
    model, table = linear(4), embedding(4)
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a16"))
    model.input_activation_scale.mul_(0.5)
    model.weight_scale = nn.Parameter(model.weight_scale * 2)
    with pytest.raises(PhaseError, match=r"convert: 'weight_scale', 'input_activation_scale' of the float model"):
        pyquant.convert(q)
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a16"))
    pyquant.convert(q)
    assert float((q(data()) - model(data())).abs().max()) <= 1e-6
    with pytest.raises(PhaseError, match="its grids are final"):
        q.site("weight").decide(q.site("weight").qparams, "late")
    q = pyquant.prepare(table, pyquant.Policy.preset("w8a16"))
    table.embedding_scale.mul_(2)
    with pytest.raises(PhaseError, match=r"'embedding_scale' of the float model changed after prepare"):
        pyquant.calibrate(q, [(torch.arange(20),)], progress=False)


@pytest.mark.parametrize("assign", [False, True])
@torch.no_grad()
def test_scales_loaded_into_a_tree_are_its_grids(assign: bool) -> None:
    one, two = linear(4), linear(4, seed=1)
    q, other = (pyquant.prepare(each, pyquant.Policy.preset("w8a16")) for each in (one, two))
    q.load_state_dict(other.state_dict(), assign=assign)
    pyquant.convert(q)
    assert torch.equal(q.site("weight").scale, two.weight_scale[:, 0])
    assert float((q(data()) - two(data())).abs().max()) <= 1e-6
    part = {"weight_scale": two.weight_scale * 2}  # no grid beside it
    q = pyquant.prepare(linear(4), pyquant.Policy.preset("w8a16"))
    q.load_state_dict(part, strict=False)
    pyquant.convert(q)
    assert torch.equal(q.site("weight").scale, 2 * two.weight_scale[:, 0])


@torch.no_grad()
def test_a_grid_that_was_decided_by_hand_stays() -> None:
    """Also when other scales are loaded before convert."""
    model = linear(4, scales=False)
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a16"))
    grid = QParams(QuantSpec(INT8, symmetric=True), torch.tensor(0.05), torch.tensor(0, dtype=torch.int32))
    q.site("act_in").decide(grid, "by hand")
    q.load_state_dict({"weight_scale": model.weight_scale * 2}, strict=False)
    pyquant.calibrate(q, [(data(),)], progress=False)
    pyquant.convert(q)
    assert (q.site("act_in").decided, float(q.site("act_in").scale)) == ("by hand", pytest.approx(0.05))
    assert torch.equal(q.site("weight").scale, model.weight_scale[:, 0])


@pytest.mark.parametrize(
    ("break_", "words"),
    [
        (lambda m: m.weight_scale.mul_(0), r"stored scales of 'fc.weight_scale' are no grid: every scale must be"),
        (lambda m: m.weight_scale.fill_(torch.nan), r"stored scales of 'fc.weight_scale' are no grid"),
        (lambda m: m.input_activation_scale.fill_(-1), r"activation scale of 'fc:act_in' is -1, .*checkpoint=FOLDER"),
        (lambda m: m.output_activation_scale.fill_(torch.inf), r"activation scale of 'fc:act_out' is inf"),
        (
            lambda m: setattr(m, "num_bits", 8),
            r"'fc' has torch.uint8 rows of 6, expected torch.int8 of 12: 12 ",
        ),
        (lambda m: setattr(m, "num_bits", 3), r"weights of 3 bits are stored; pyquant reads 2, 4 and 8"),
    ],
    ids=["zero", "nan", "negative", "infinite", "other bits", "unknown bits"],
)
def test_a_damaged_layer_is_named(break_: Any, words: str) -> None:
    model = Holder(4)
    with torch.no_grad():
        break_(model.fc)
    with pytest.raises(ModelError, match=words):
        pyquant.prepare(model, pyquant.Policy.preset("w8a8"))
