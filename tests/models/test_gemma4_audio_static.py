# SPDX-License-Identifier: Apache-2.0
"""The audio tower as static graphs: one length, any clip that is not longer; eager = exported = file = HF's numbers."""

from __future__ import annotations

import functools
import sys

import gemma4_model_tiny
import pytest
import torch
from gemma4_audio_tiny import CONFIGS, audio, config, features, hf, mask, randomized, states

import pyquant
from pyquant import circle
from pyquant.errors import InputError, ProfileError
from pyquant.exporter import CircleProgram
from pyquant.models import gemma4
from pyquant.models.gemma4 import AudioProfile, clip_inputs
from pyquant.policy import literal
from pyquant.verify import compare
from pyquant.verify.runtimes import onert, tico
from pyquant.verify.tolerance import deep_faults, op_faults
from pyquant.wrap import Phase, QModule, phase

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
SHORTEST, LONGEST = 1, 3000
LENGTHS = (SHORTEST, 47, 130)
EXPORTS = [("w8a8", "clipped", length, 1) for length in LENGTHS]  # recipe, config, length, batch size
EXPORTS += [("w8a8", "other_chunks", 60, 2), ("w4a16", "clipped", 60, 1), ("w8a16", "tight_clamps", 47, 2)]


@functools.cache
def quantized(recipe: str, name: str) -> tuple[torch.nn.Module, QModule]:
    fp = audio(**CONFIGS[name])
    q = pyquant.prepare(fp, pyquant.Policy.preset(recipe))
    pyquant.calibrate(q, [{"input_features": features(1, n, seed=n)} for n in (100, 61, 48, 1)], progress=False)
    pyquant.convert(q)
    return fp, q


@functools.cache
def exported(recipe: str, name: str, length: int, batch: int) -> CircleProgram:
    return pyquant.export(quantized(recipe, name)[1], AudioProfile(length, batch))


def clips(length: int, batch: int) -> dict[str, torch.Tensor]:
    """Clips of which the first has padding, as the graph takes them."""
    valid = [max(1, length - 11), *[length] * (batch - 1)]
    return clip_inputs(AudioProfile(length, batch), features(batch, length, seed=9), mask(length, *valid))


@pytest.mark.parametrize(("recipe", "name", "length", "batch"), EXPORTS)
def test_the_file_computes_what_eager_computes(recipe, name, length, batch):
    fp, q = quantized(recipe, name)
    program, given = exported(recipe, name, length, batch), clips(length, batch)
    assert program.missing_qparams() == []
    assert circle.check(program.to_bytes()) == []
    with torch.no_grad():
        eager = q(given["input_features"], given["attention_mask"].bool()).last_hidden_state
        expected = fp(given["input_features"], given["attention_mask"].bool()).last_hidden_state
    report = compare(program, None, given)
    assert op_faults(report) == []
    assert all(output.exported_equal for output in report.outputs)
    assert torch.equal(program.adapter(*given.values()), eager)
    assert eager.shape == (batch, AudioProfile(length).tokens, 24)
    assert deep_faults(program, None, given, {"soft_tokens": expected}, report) == []


def test_the_graph_is_made_of_operators_that_every_target_has():
    """Convolutions without a TRANSPOSE, contexts without unfold, and a mask that costs the layers one ADD each."""
    program = exported("w8a8", "clipped", 130, 1)
    found = [op.op for op in program.graph.operators]
    assert found.count("CONV_2D") == found.count("DEPTHWISE_CONV_2D") == 2
    assert found.count("TRANSPOSE") == 2 * 4  # query, keys, values and output of each layer
    assert found.count("TANH") == found.count("SOFTMAX") == 2
    assert program.check("luci") == []
    assert [t.name for t in program.inputs] == ["input_features", "attention_mask"]
    scale = program.inputs[1].quant.scale[0]
    assert float(torch.tensor(scale) * 255) == 1.0, "the mask is exact"


def test_one_calibration_serves_every_length():
    """The sites of a graph do not depend on its length, and exporting one leaves the others as they are."""
    _, q = quantized("w8a8", "clipped")
    first = exported("w8a8", "clipped", 47, 1)
    other = exported("w8a8", "clipped", 130, 1)
    grids = [{str(t.quant) for t in program.graph.tensors} for program in (first, other)]
    assert grids[0] == grids[1]
    assert pyquant.export(q, AudioProfile(47)).to_bytes() == first.to_bytes()


@pytest.mark.parametrize("frames", [1, 37, 100, 130])
def test_a_shorter_clip_has_its_own_numbers(frames):
    """What a host does: pad to the graph's length, and keep the first tokens."""
    _, q = quantized("w8a8", "clipped")
    program = exported("w8a8", "clipped", 130, 1)
    x = features(1, frames, seed=3)
    given = clip_inputs(AudioProfile(130), x)
    given["input_features"][:, frames:] = 7.0  # whatever the host left there
    soft = tico.run(program, list(given.values()))["soft_tokens"]
    with torch.no_grad():
        alone = q(x).last_hidden_state
    soft = soft[:, : gemma4.tokens_of(frames)]
    step = program.outputs[0].quant.scale[0]
    assert float(((soft - alone).abs() > 0.5 * step).float().mean()) < 0.02  # a rounding flip at 8 bits, at most
    torch.testing.assert_close(soft, alone, rtol=0, atol=4 * step)


def test_the_longest_clip_at_full_width_of_one_layer():
    """30 s: 750 tokens in 63 blocks."""
    fp = randomized(hf.Gemma4AudioModel(config(num_hidden_layers=1)))
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [{"input_features": features(1, 400)}], progress=False)
    pyquant.convert(q)
    program = pyquant.export(q, AudioProfile(LONGEST))
    given = clip_inputs(AudioProfile(LONGEST), features(1, LONGEST), mask(LONGEST, 2999))
    report = compare(program, None, given)
    assert op_faults(report) == []
    assert program.outputs[0].shape == (1, 750, 24)
    assert program.name == "gemma4_audio_t3000"


@pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")
@pytest.mark.parametrize(
    ("name", "length", "batch"), [("clipped", SHORTEST, 1), ("clipped", 130, 2), ("other_chunks", 60, 1)]
)
def test_the_float_file_computes_on_onert_what_hf_computes(name, length, batch):
    fp, q = quantized("float", name)
    program = pyquant.export(q, AudioProfile(length, batch), target="onert")
    assert program.check("onert") == []
    given = clips(length, batch)
    with torch.no_grad():
        expected = fp(given["input_features"], given["attention_mask"].bool()).last_hidden_state
    (got,) = onert.run(program, list(given.values())).values()
    error = float((got - expected.reshape(got.shape)).abs().max())
    assert error <= 1e-4 * max(1.0, float(expected.abs().max())), error


@pytest.mark.parametrize("recipe", ["w8_onert", "w4_onert", "q8_onert"])
def test_recipes_of_onert_leave_convolutions_float(recipe):
    """Their rows are no blocks, and onert has no kernel for other integers; linears inside lconv1d are quantized."""
    q = pyquant.prepare(audio(), pyquant.Policy.preset(recipe))
    kernels = {
        site.path: site.spec for site in q.all_sites() if site.path.endswith(":weight") and site.role == "weight"
    }
    floats = {path for path, spec in kernels.items() if spec is None}
    assert len(floats) == 4
    assert all("conv" in path.rpartition(".")[2] for path in floats)
    assert kernels["layers.0.lconv1d.linear_start.linear:weight"] is not None


@pytest.mark.parametrize("part", ["layer", "attention"])
def test_parts_with_a_mask_of_hf(part):
    """A layer's graph takes the blocked mask; two clips, one with padding."""
    fp, q = quantized("w8a8", "clipped")
    blocks = {}
    hook = fp.layers[0].register_forward_pre_hook(lambda _, args, kwargs: blocks.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        fp(features(2, 60), mask(60, 60, 30))
    hook.remove()
    float_part, wrapped = (m.layers[0] if part == "layer" else m.layers[0].self_attn for m in (fp, q))
    given = {"hidden_states": states(2, 15), **{k: blocks[k] for k in ("attention_mask", "position_embeddings")}}
    found = gemma4.alone.alone(wrapped, given, {})
    program = pyquant.export(wrapped, found.profile)
    with torch.no_grad():
        eager = wrapped(**given)
        with phase(q, Phase.FLOAT):
            expected = float_part(**given)
            plain = wrapped(**given)
    eager, expected, plain = (out if part == "layer" else out[0] for out in (eager, expected, plain))
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(program.adapter(*found.inputs.values()), eager)
    assert op_faults(compare(program, None, found.inputs)) == []


WRONG = {
    "zero": (lambda: AudioProfile(0), "length is a positive integer, got 0"),
    "no_number": (lambda: AudioProfile(12.0), "length is a positive integer, got 12.0"),
    "batch": (lambda: AudioProfile(12, True), "batch_size is a positive integer, got True"),
    "other_profile": (
        lambda: quantized("w8a8", "plain")[1].as_export_module(gemma4.VisionProfile(grid=(2, 2))),
        r"export it with gemma4.AudioProfile\(length\), got VisionProfile",
    ),
    "positions": (
        lambda: quantized("w8a8", "plain")[1].rel_pos_enc.as_export_module(AudioProfile(4)),
        "a constant of the attention's graph",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_profiles_that_cannot_be(make, message):
    with pytest.raises(ProfileError, match=message):
        make()


def test_clips_that_do_not_fit_say_so():
    profile = AudioProfile(40)
    assert profile.name == "audio_t40"
    assert profile.tokens == gemma4.tokens_of(37) == 10
    with pytest.raises(InputError, match=r"1 clips, the longest of 41 frames, do not fit AudioProfile\(length=40"):
        clip_inputs(profile, features(1, 41))
    with pytest.raises(InputError, match="2 clips, the longest of 40 frames"):
        clip_inputs(profile, features(2, 40))
    with pytest.raises(InputError, match=r"got \(40, 16\) and \(40,\)"):
        clip_inputs(profile, features(1, 40)[0], torch.ones(40))
    longer = clip_inputs(profile, features(1, 90), mask(90, 33))  # all of it padding beyond the graph
    assert longer["input_features"].shape == (1, 40, 16)
    assert longer["attention_mask"].sum() == 33


def test_the_tower_in_the_whole_model():
    """Called as Gemma4Model calls it, and with its embedder as one graph of a bundle."""
    fp = gemma4_model_tiny.model(audio=True).eval()
    x, valid = features(2, 21, mels=gemma4_model_tiny.MEL), mask(21, 21, 9)
    ids = torch.randint(1, gemma4_model_tiny.PLAIN, (2, 14), generator=torch.Generator().manual_seed(0))
    ids[0, 2:8] = ids[1, 4:7] = gemma4_model_tiny.AUDIO
    types = (ids == gemma4_model_tiny.AUDIO).long() * 3
    given = {"input_ids": ids, "input_features": x, "input_features_mask": valid, "mm_token_type_ids": types}
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    with torch.no_grad():
        expected = fp(**given).last_hidden_state
        torch.testing.assert_close(q(**given).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    pyquant.convert(q, unused=[literal(site.path) for site in q.uncalibrated_sites()])
    program = pyquant.export(q, gemma4.SoftTokensProfile(AudioProfile(21, 2), "audio_t21"))
    assert program.missing_qparams() == []
    assert op_faults(compare(program, None, clip_inputs(AudioProfile(21, 2), x, valid))) == []
