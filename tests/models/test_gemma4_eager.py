# SPDX-License-Identifier: Apache-2.0
"""transformers' contract of the vision model, kept by the wrapper: padding anywhere, arguments, errors, files."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from gemma4_tiny import config, hf, pixels, positions, randomized, rotary, states, vision

import pyquant
from pyquant.errors import InputError
from pyquant.models import gemma4
from pyquant.wrap import Phase, phase, registry


def prepared(fp, preset="w8a8"):
    return pyquant.prepare(fp, pyquant.Policy.preset(preset))


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_output_is_transformers_dataclass():
    fp, ids = vision(), positions((4, 4))
    out = prepared(fp)(pixel_values=pixels(ids), pixel_position_ids=ids)
    assert out.last_hidden_state.shape == (4, 32)
    assert out[0] is out.last_hidden_state
    assert out.pooler_output is None


def test_padding_may_stand_anywhere():
    """The image processor puts it at the end; the model takes it where it is."""
    fp, ids = vision(standardize=True), positions((2, 4), (4, 4))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    given = {"pixel_values": pixels(ids)[:, order], "pixel_position_ids": ids[:, order]}
    with torch.no_grad():
        close(prepared(fp)(**given).last_hidden_state, fp(**given).last_hidden_state)


def test_an_image_of_padding_alone_gives_what_transformers_gives():
    fp, ids = vision(standardize=True), positions((4, 4), (4, 4))
    ids[1] = -1
    given = {"pixel_values": pixels(ids), "pixel_position_ids": ids}
    with torch.no_grad():
        close(prepared(fp)(**given).last_hidden_state, fp(**given).last_hidden_state)


@pytest.mark.parametrize("wrapped", [False, True], ids=["transformers", "pyquant"])
def test_a_padded_row_is_the_image_alone(wrapped):
    """An oracle of its own: it holds for transformers, and for the wrapper."""
    fp = vision(standardize=True, use_clipped_linears=True)
    model = prepared(fp) if wrapped else fp
    ids = positions((2, 4), (4, 4), (2, 2), patches=24)
    values = pixels(ids)
    with torch.no_grad():
        together = model(pixel_values=values, pixel_position_ids=ids).last_hidden_state
        alone = [
            model(pixel_values=values[row : row + 1, :count], pixel_position_ids=ids[row : row + 1, :count])
            for row, count in enumerate((8, 16, 4))
        ]
    close(together, torch.cat([out.last_hidden_state for out in alone]))


@pytest.mark.parametrize("preset", ["w8a8", "w8a16"])
def test_quantized_padded_rows_are_the_images_alone_up_to_the_grid(preset):
    """Padding is masked with grids that only unpadded data calibrated."""
    fp = vision(standardize=True)
    q = prepared(fp, preset)
    whole = positions((4, 4), (2, 8))
    pyquant.calibrate(q, [{"pixel_values": pixels(whole), "pixel_position_ids": whole}], progress=False)
    pyquant.convert(q)
    ids = positions((4, 4), (2, 8), patches=24)
    values = pixels(ids)
    values[:, :16] = pixels(whole)
    with torch.no_grad():
        padded = q(pixel_values=values, pixel_position_ids=ids).last_hidden_state
        plain = q(pixel_values=values[:, :16], pixel_position_ids=whole).last_hidden_state
        reference = fp(pixel_values=values, pixel_position_ids=ids).last_hidden_state
    noise = (plain - reference).pow(2).mean().sqrt()
    assert float((padded - plain).pow(2).mean().sqrt()) < 1.5 * float(noise)


def test_position_ids_may_be_any_integer_type():
    fp, ids = vision(), positions((4, 4))
    with torch.no_grad():
        long = prepared(fp)(pixel_values=pixels(ids), pixel_position_ids=ids).last_hidden_state
        short = prepared(fp)(pixel_values=pixels(ids), pixel_position_ids=ids.int()).last_hidden_state
    assert torch.equal(long, short)


@pytest.mark.parametrize("part", ["self_attn", "layer"])
@pytest.mark.parametrize("kind", ["none", "bool", "float", "float_queries"])
def test_attention_masks_of_transformers(part, kind):
    fp = vision().encoder.layers[0]
    fp = fp.self_attn if part == "self_attn" else fp
    ids = positions((2, 4), (4, 4))
    keep = (ids != -1).all(-1)[:, None, None, :].expand(2, 1, 16, 16)
    additive = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
    if kind == "float_queries":  # a mask that differs between queries
        additive = additive + torch.zeros(16, 16).masked_fill(torch.ones(16, 16).triu(9).bool(), -1e9)
    theirs = {"none": None, "bool": additive, "float": additive, "float_queries": additive}[kind]
    ours = keep if kind == "bool" else theirs  # bool is what the sdpa implementation gets
    given = {"hidden_states": states(ids), "position_embeddings": rotary(config(), ids), "position_ids": ids}
    with torch.no_grad():
        expected, out = fp(**given, attention_mask=theirs), prepared(fp)(**given, attention_mask=ours)
    if part == "self_attn":
        close(out[1], expected[1])  # the probabilities, as transformers' eager attention returns them
        expected, out = expected[0], out[0]
    close(out, expected)


def test_encoder_without_a_mask_sees_every_patch():
    fp, ids = vision().encoder, positions((4, 4))
    given = {"inputs_embeds": states(ids), "pixel_position_ids": ids, "attention_mask": None}
    with torch.no_grad():
        close(prepared(fp)(**given).last_hidden_state, fp(**given).last_hidden_state)


BOUNDS = {"one_sided": (-0.5, torch.inf, -torch.inf, 0.4), "infinite": (-torch.inf, torch.inf) * 2}


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_open_bounds_of_clipped_linears(bounds):
    fp = randomized(hf.Gemma4ClippableLinear(config(use_clipped_linears=True), 8, 6))
    for name, value in zip(("input_min", "input_max", "output_min", "output_max"), bounds, strict=True):
        getattr(fp, name).fill_(value)
    q, x = prepared(fp), torch.randn(5, 8) * 2
    with torch.no_grad():
        close(q(x), fp(x))
    assert q.clip_in == tuple(None if abs(v) == torch.inf else v for v in bounds[:2])


def test_the_float_kernel_of_the_patch_embedder_stays():
    fp = vision()
    before = fp.patch_embedder.input_proj.weight.clone()
    q = prepared(fp)
    assert torch.equal(fp.patch_embedder.input_proj.weight, before)
    assert torch.equal(q.patch_embedder.input_proj.weight, 2 * before)
    assert q.encoder.layers[0].mlp.gate_proj.linear.weight is fp.encoder.layers[0].mlp.gate_proj.linear.weight


IDS = positions((4, 4))
WRONG = {
    "no_positions": ((pixels(IDS), None), r"and pixel_position_ids .* got \(1, 16, 12\) and None"),
    "positions_of_others": ((pixels(IDS), positions((4, 4), (4, 4))), r"got \(1, 16, 12\) and \(2, 16, 2\)"),
    "an_image": ((torch.rand(1, 3, 8, 8), IDS), r"takes pixel_values \(batch, patches, pixels\)"),
    "beyond_the_table": ((pixels(IDS), IDS * 5), "reach 15, but the model's position table ends at 11"),
    "too_far_apart": ((pixels(IDS), IDS * 2), r"need 13 pools of 2 x 2, but 16 patches give 4"),
    "too_few_patches": ((pixels(IDS)[:, :6], IDS[:, :6]), r"6 patches do not pool into 1 tokens"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_inputs_that_contradict_the_model_say_so(given, message):
    q = prepared(vision())
    with pytest.raises(InputError, match=message), torch.no_grad():
        q(*given)


def test_pooling_kernel_1_is_refused():
    """transformers itself fails there: it takes the padding mask for the mask of real tokens."""
    q = prepared(vision(pooling_kernel_size=1))
    with pytest.raises(InputError, match="transformers itself fails for k = 1"):
        q(pixels(IDS), IDS)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_outputs_that_are_not_computed_are_refused_by_name(name):
    q = prepared(vision())
    with pytest.raises(InputError, match=f"{name}=True is not supported"):
        q(pixels(IDS), IDS, **{name: True})
    q(pixels(IDS), IDS, **{name: False}, return_dict=True)


PARTS = {
    "patch_embedder": (lambda q: q.patch_embedder(pixels(IDS)), "the patch embedder needs pixel_position_ids"),
    "encoder": (lambda q: q.encoder(states(IDS)), "the vision encoder needs pixel_position_ids"),
    "pooler": (lambda q: q.pooler(states(IDS), IDS), "the pooler needs pixel_position_ids .* and output_length"),
}


@pytest.mark.parametrize(("call", "message"), PARTS.values(), ids=PARTS)
def test_parts_say_what_they_miss(call, message):
    with pytest.raises(InputError, match=message):
        call(prepared(vision()))


def test_a_class_that_transformers_renamed_is_one_loud_line(monkeypatch):
    from pyquant.models.gemma4.hf import hf_class

    monkeypatch.delattr(hf, "Gemma4VisionPooler")
    with pytest.raises(ImportError, match=r"transformers 5\.\d+\.\d+ has no class Gemma4VisionPooler"):
        hf_class("Gemma4VisionPooler")


def test_prepare_finds_the_room_by_itself():
    """Nobody must import pyquant.models.gemma4; and without a transformers model nobody pays for importing it."""
    code = (
        "import sys, pyquant.wrap, pyquant.lifecycle\n"
        "assert 'transformers' not in sys.modules\n"
        "from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm\n"
        "q = pyquant.lifecycle.prepare(Gemma4RMSNorm(4), pyquant.Policy.preset('w8a8'))\n"
        "print(type(q).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["QuantGemma4RMSNorm"]


def test_the_wrapper_names_are_public():
    wrapped = {cls for cls in registry.classes() if cls.__module__ == hf.__name__}
    assert len(wrapped) > 20
    assert {f"Quant{cls.__name__}" for cls in wrapped} == {name for name in gemma4.__all__ if name.startswith("Quant")}
    assert all(hasattr(gemma4, name) for name in gemma4.__all__)


def test_a_linear_within_clamps_has_the_values_that_transformers_has_there():
    """A trace compares modules by name: the child's output is that before the clamp, where nothing is quantized."""
    fp = vision(use_clipped_linears=True)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    name, seen = "encoder.layers.0.mlp.up_proj", {}
    for tree, model in (("hf", fp), ("ours", q)):
        clipped = model.get_submodule(name)
        for part, module in (("linear", clipped.linear), ("clipped", clipped)):
            module.register_forward_hook(lambda m, a, out, key=(tree, part): seen.update({key: out}))
    ids = positions((4, 4))
    with torch.no_grad(), phase(q, Phase.FLOAT):
        fp(pixels(ids), ids)
        q(pixels(ids), ids)
    assert not torch.equal(seen["hf", "linear"], seen["hf", "clipped"]), "the bounds take effect"
    for part in ("linear", "clipped"):
        torch.testing.assert_close(seen["ours", part], seen["hf", part], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", ["w8a8", "w4a16", "float"])
def test_saved_and_loaded_gives_the_same_bits(tmp_path, preset):
    """Clip bounds, rotary tables and the folded projection come back from the folder."""
    fp = vision(use_clipped_linears=True, standardize=True)
    q = prepared(fp, preset)
    ids = positions((4, 4), (2, 4))
    given = {"pixel_values": pixels(ids), "pixel_position_ids": ids}
    pyquant.calibrate(q, [given], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "model")
    loaded = pyquant.load_quantized(tmp_path / "model")
    profile = gemma4.VisionProfile(pixel_position_ids=ids)
    with torch.no_grad():
        assert torch.equal(loaded(**given).last_hidden_state, q(**given).last_hidden_state)
        assert torch.equal(loaded.as_export_module(profile)(given["pixel_values"]), q(**given).last_hidden_state)


def test_the_float_model_runs_unchanged_after_everything():
    fp, ids = vision(standardize=True, use_clipped_linears=True), positions((4, 4))
    given = {"pixel_values": pixels(ids), "pixel_position_ids": ids}
    state = {name: t.clone() for name, t in fp.state_dict().items()}
    with torch.no_grad():
        before = fp(**given).last_hidden_state
        q = prepared(fp)
        pyquant.calibrate(q, [given], progress=False)
        pyquant.convert(q)
        pyquant.export(q, gemma4.VisionProfile(grid=(4, 4)))
        q.to(torch.bfloat16)
        assert torch.equal(fp(**given).last_hidden_state, before)
        assert all(torch.equal(t, state[name]) for name, t in fp.state_dict().items())
        with phase(prepared(fp), Phase.FLOAT):
            pass
