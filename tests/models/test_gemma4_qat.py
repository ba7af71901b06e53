# SPDX-License-Identifier: Apache-2.0
"""Tiny Gemma4 models in Google's quantization-aware format, saved and loaded by transformers: text and vision tower."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gemma4_text_tiny as text
import gemma4_tiny as tower
import pytest
import qat_tiny
import torch
from qat_tiny import gemma_quant
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma4ForCausalLM

import pyquant
from pyquant import circle
from pyquant.cli import trained
from pyquant.cli.main import main
from pyquant.errors import ModelError
from pyquant.exporter.profile import ExportProfile, TensorSpec
from pyquant.metrics import sqnr_db
from pyquant.models import gemma4
from pyquant.spec import INT8, QuantSpec
from pyquant.verify import compare
from pyquant.wrap import Phase, phase

torch.set_num_threads(1)

IDS = text.ids(2, 9)
TOWER = {"num_bits": 8, "module_quant_configs": {"down_proj": {"num_bits": 4}}}
ABSENT = r"layers\.1\.mlp\.up_proj\.input_activation_scale"
CACHE = {
    f"model.layers.{i}.self_attn.{n}_cache_scale": 0.01 * (i + 1) + 0.001 * (n == "v") for i in range(4) for n in "kv"
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """E2B's form: shared keys, per-layer inputs, 2, 4 and 8 bits; attention and MLPs have trained activations."""
    model = qat_tiny.stored_(text.causal_lm(tie_word_embeddings=False))
    qat_tiny.trained_(model, lambda: model(IDS), "self_attn|mlp")
    extra = {name: torch.tensor(value) for name, value in CACHE.items()}
    return qat_tiny.saved(model, tmp_path_factory.mktemp("qat") / "model", drop=ABSENT, extra=extra)


def loaded(folder: Path) -> Any:
    model = Gemma4ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for name, value in model.named_parameters():
        if name.endswith("layers.1.mlp.up_proj.input_activation_scale"):
            value.data.zero_()  # transformers leaves it as the memory was
    return model


@pytest.fixture(scope="module")
def fp(folder: Path) -> Any:
    return loaded(folder)


@pytest.fixture(scope="module")
def q(fp: Any, folder: Path) -> Any:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"), checkpoint=folder)
    pyquant.calibrate(q, [{"input_ids": IDS}], progress=False)
    pyquant.convert(q)
    return q


def test_trained_in_the_float_phases_is_transformers_own(fp: Any, folder: Path) -> None:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"), checkpoint=folder)
    expected = fp(input_ids=IDS).logits
    for where in (Phase.CALIBRATE, Phase.FLOAT):
        with phase(q, where), torch.no_grad():
            assert float((q(input_ids=IDS).logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_quantized_it_is_near_transformers_and_generates(fp: Any, q: Any) -> None:
    assert sqnr_db(fp(input_ids=IDS).logits, q(input_ids=IDS).logits) > 25
    prompt = IDS[:1, :4]
    tokens = q.generate(prompt, max_new_tokens=5, do_sample=False)
    assert tokens.shape[1] <= 9


def test_cached_keys_and_values_take_the_scales_of_the_folder(q: Any) -> None:
    """Those of layers that read other layers' keys too: the cached tensor stays on its grid."""
    int8 = QuantSpec(INT8, symmetric=True)
    for index, layer in enumerate(q.model.layers):
        owner = index if index < 4 else layer.self_attn.kind.shares
        for name in ("key", "value"):
            site = layer.self_attn.site(name)
            expected = CACHE[f"model.layers.{owner}.self_attn.{name[0]}_cache_scale"]
            assert (site.spec, site.decided) == (int8, "trained KV cache, in the gemma checkpoint")
            assert float(site.scale) == pytest.approx(expected)


def test_without_the_folder_caches_are_calibrated(fp: Any) -> None:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    assert not q.model.layers[0].self_attn.site("key").decided
    assert q.model.layers[0].self_attn.q_proj.site("act_in").decided


def test_a_scale_that_the_folder_lacks_is_none_whatever_memory_had(folder: Path) -> None:
    fp = loaded(folder)
    up = fp.model.layers[1].mlp.up_proj
    for garbage in (1e-29, float("nan"), 0.0):
        up.input_activation_scale.data.fill_(garbage)
        q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"), checkpoint=folder)
        site = q.model.layers[1].mlp.up_proj.site("act_in")
        assert not site.decided
        assert str(site.spec.dtype) == "int16"
        assert q.model.layers[1].mlp.gate_proj.site("act_in").decided
    assert float(up.input_activation_scale.detach()) == 0


def test_every_weight_has_a_trained_grid(q: Any) -> None:
    stored = [path for path, module in q.named_modules() if type(module).__name__ == "QuantQuantizedLinear"]
    assert len(stored) == len([1 for _, site in _weights(q) if site.decided]) - 2  # and two tables
    assert all(site.decided for _, site in _weights(q))


def _weights(q: Any) -> list[tuple[str, Any]]:
    return [(site.path, site) for site in q.all_sites() if site.role.is_kernel]


def test_saved_and_loaded_without_transformers_weights(q: Any, tmp_path: Path) -> None:
    """config.json no longer says how its layers were stored; the index does."""
    pyquant.save_quantized(q, tmp_path / "saved")
    back = pyquant.load_quantized(tmp_path / "saved")
    assert torch.equal(back(input_ids=IDS).logits, q(input_ids=IDS).logits)
    assert str(back.policy.explain(back)) == str(q.policy.explain(q))
    tensors = load_file(tmp_path / "saved" / "quantized.safetensors")
    up = q.model.layers[0].mlp.up_proj
    assert torch.equal(tensors["model.layers.0.mlp.up_proj.packed"], up.packed)
    assert tensors["model.layers.0.mlp.up_proj.packed"].shape == (up.out_features, up.in_features // 4)


def test_inputs_with_unequal_scales_are_quantized_again_each(fp: Any, tmp_path: Path) -> None:
    """gate_proj and up_proj read one tensor, each on its own trained grid: two QUANTIZE from what enters."""
    fp = loaded_mlp(fp)
    x = torch.randn(1, 4, fp.gate_proj.in_features, generator=torch.Generator().manual_seed(2))
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [(x,)], progress=False)
    pyquant.convert(q)
    program = pyquant.export(q, ExportProfile({"x": TensorSpec(tuple(x.shape), torch.float32)}, ("y",)))
    assert program.missing_qparams() == []
    assert compare(program, q, [x]).outputs[0].unequal == 0
    program.save(tmp_path / "mlp.circle")
    model = circle.read(tmp_path / "mlp.circle")
    steps = {round(t.scale[0], 7) for t in model.tensors if t.dtype == "int8" and len(t.scale) == 1}
    wanted = {float(part.input_activation_scale.detach()) for part in (fp.gate_proj, fp.up_proj)}
    assert {round(step, 7) for step in wanted} <= steps


@torch.no_grad()
def loaded_mlp(fp: Any) -> Any:
    mlp = copy.deepcopy(fp.model.layers[0].mlp)
    mlp.up_proj.input_activation_scale.mul_(0.5)
    return mlp


def test_a_cache_scale_of_no_layer_is_said(fp: Any, folder: Path, tmp_path: Path) -> None:
    strange = {"model.layers.77.self_attn.k_cache_scale": torch.tensor(0.1)}
    place = only_weights(fp, tmp_path / "m", strange)
    with pytest.warns(
        UserWarning, match=r"1 cache scales of .* no attention of this model .*'model.layers.77.self_attn"
    ):
        pyquant.prepare(fp, pyquant.Policy.preset("w8a8"), checkpoint=place)
    wide = {"model.layers.0.self_attn.k_cache_scale": torch.ones(2)}
    place = only_weights(fp, tmp_path / "n", wide)
    with pytest.raises(ModelError, match=r"has shape \(2,\), expected one number"):
        pyquant.prepare(fp, pyquant.Policy.preset("w8a8"), checkpoint=place)
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor"):
        pyquant.prepare(fp, pyquant.Policy.preset("w8a8"), checkpoint=tmp_path)
    (tmp_path / "other").mkdir()
    save_file({"encoder.fc.weight_scale": torch.ones(1)}, tmp_path / "other" / qat_tiny.SHARD)
    with pytest.raises(ModelError, match=r"has none of the \d+ quantized linear layers of this model, such as"):
        pyquant.prepare(fp, pyquant.Policy.preset("w8a8"), checkpoint=tmp_path / "other")


def test_the_command_finds_the_folder_of_a_hub_name(fp: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has the scales of the KV cache: without it they would be calibrated, and nobody told."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(folder / file))
    assert trained.folder_of("google/gemma", fp) == trained.folder_of(str(folder), fp) == folder
    assert trained.folder_of(str(folder), torch.nn.Linear(2, 2)) is None


def only_weights(fp: Any, folder: Path, extra: dict[str, Tensor]) -> Path:
    """transformers 5.24 cannot save what it loaded (`is_serializable` of its quantizer is no function)."""
    folder.mkdir()
    save_file({**fp.state_dict(), **extra}, folder / qat_tiny.SHARD)
    return folder


# --- the vision tower ---


def vision(*, clipped: bool = False) -> tuple[Any, dict[str, Tensor]]:
    model = qat_tiny.stored_(tower.vision(use_clipped_linears=clipped, standardize=True), **TOWER)
    ids = tower.positions((4, 4), (4, 4))
    inputs = {"pixel_values": tower.pixels(ids), "pixel_position_ids": ids}
    qat_tiny.trained_(model, lambda: model(**inputs))
    return model, inputs


@torch.no_grad()
def assert_equal_without_rounding(model: Any, inputs: dict[str, Tensor]) -> None:
    """In the float phase, with the trained weights and without activation scales."""
    model = copy.deepcopy(model)
    for name, value in model.named_parameters():
        if name.endswith("activation_scale"):
            value.zero_()
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a16"))
    expected = model(**inputs).last_hidden_state
    with phase(q, Phase.FLOAT):
        assert float((q(**inputs).last_hidden_state - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_a_clipped_linear_clips_before_it_rounds() -> None:
    """Quantized too: the grid was not made for the bound, so one that it does not reach by itself stays a clamp."""
    model = vision(clipped=True)[0].encoder.layers[0].mlp.up_proj
    model.linear.input_activation_scale.mul_(1.3)
    x = torch.randn(50, model.linear.in_features, generator=torch.Generator().manual_seed(4)) * 2
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a16"))
    with phase(q, Phase.FLOAT):
        assert float((q(x) - model(x)).abs().max()) <= 1e-6
    pyquant.convert(q)
    assert float((q(x) - model(x)).abs().max()) <= float(model.linear.output_activation_scale) / 2 + 1e-6


@pytest.mark.parametrize("clipped", [False, True], ids=["plain", "clipped"])
def test_a_vision_tower_is_transformers_own_and_in_the_file(clipped: bool, tmp_path: Path) -> None:
    """Its patch projection too, whose kernel is not folded: its integers would be others."""
    model, inputs = vision(clipped=clipped)
    assert_equal_without_rounding(model, inputs)
    expected = model(**inputs).last_hidden_state
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a16"))
    with phase(q, Phase.FLOAT), torch.no_grad():
        assert sqnr_db(expected, q(**inputs).last_hidden_state) > 40  # a float's last bit decides a rounding
    pyquant.calibrate(q, [inputs], progress=False)
    pyquant.convert(q, unused=[site.path for site in q.uncalibrated_sites()])
    assert sqnr_db(expected, q(**inputs).last_hidden_state) > 25
    program = pyquant.export(q, gemma4.VisionProfile(grid=(4, 4), batch_size=2))
    assert program.missing_qparams() == []
    program.save(tmp_path / "v.circle")
    constants = [t for t in circle.read(tmp_path / "v.circle").tensors if t.data is not None]
    found = {bytes(t.data) for t in constants}
    stored = [module for module in model.modules() if isinstance(module, gemma_quant.QuantizedLinear)]
    patterns = [module for module in stored if module.num_bits == 8]
    assert model.patch_embedder.input_proj in patterns
    assert all(qat_tiny.integers(module).numpy().tobytes() in found for module in patterns)
    report = compare(program, q, [inputs["pixel_values"]])
    assert report.outputs[0].exported_equal


def test_the_command_takes_such_a_folder_and_says_what_was_trained(tmp_path: Path, capsys: Any) -> None:
    """With a scale that the folder lacks; the result loads again, and equals what Python makes of the folder."""
    model, inputs = vision()
    place = qat_tiny.saved(model, tmp_path / "model", drop=r"layers\.0\.mlp\.up_proj.*activation_scale")
    save_file(inputs, tmp_path / "data.safetensors")
    words = ["quantize", "--model", place, "--recipe", "w8a16", "--data", tmp_path / "data.safetensors", "--out"]
    assert main([str(word) for word in (*words, tmp_path / "out")]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    linears = sum(isinstance(module, gemma_quant.QuantizedLinear) for module in model.modules())
    assert f"trained grids: {linears} weights, {2 * linears - 2} activations; the rest is calibrated" in out
    back = pyquant.load_quantized(tmp_path / "out" / "quantized")
    up = next(module for path, module in back.named_modules() if path.endswith("layers.0.mlp.up_proj.linear"))
    assert [site.decided != "" for _, site in up.own_sites()] == [False, True, False]
    assert "trained grids" in (tmp_path / "out" / "quantized" / "README.md").read_text()
    expected = model(**inputs).last_hidden_state
    assert sqnr_db(expected, back(**inputs).last_hidden_state) > 25


@pytest.mark.slow
def test_a_whole_bundle_keeps_the_trained_grids_and_gives_eager_tokens(q: Any, tmp_path: Path) -> None:
    """Every graph of the text model; caches are int8 at the edge of prefill and decode, as trained."""
    programs = pyquant.export_bundle(q, tmp_path / "b", gemma4.Profile(max_seq_len=16, prefill_lengths=(8,)))
    assert {name: program.missing_qparams() for name, program in programs.items()} == {key: [] for key in programs}
    decode = circle.read(tmp_path / "b" / "decode.circle")
    scales = {round(decode.tensors[i].scale[0], 6) for i in decode.inputs if decode.tensors[i].dtype == "int8"}
    assert scales == {round(value, 6) for value in CACHE.values()}
    session = pyquant.verify.Session(tmp_path / "b", runtime="tico")
    prompt = IDS[:1, :6]
    expected = q.generate(prompt, max_new_tokens=4, do_sample=False)
    assert torch.equal(session.generate(prompt, max_new_tokens=4, do_sample=False), expected)
