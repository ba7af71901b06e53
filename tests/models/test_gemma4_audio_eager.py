# SPDX-License-Identifier: Apache-2.0
"""The audio tower's wrappers against transformers: padding, lengths, masks, types, calibration, errors, files."""

from __future__ import annotations

import copy

import pytest
import torch
from gemma4_audio_tiny import CONFIGS, audio, config, features, hf, mask, randomized, states

import pyquant
from pyquant.errors import InputError, PhaseError, UnknownModuleError
from pyquant.metrics import sqnr_db
from pyquant.models import gemma4
from pyquant.models.gemma4.audio.chunks import Chunks
from pyquant.wrap import Phase, phase

# Frames, and the valid ones of each clip; a block is 48 frames.
CLIPS = {
    "one_frame": (1, (1,)),
    "one_token": (4, (4, 1)),
    "less_than_a_chunk": (23, (23, 6)),
    "a_chunk": (48, (48, 47)),
    "a_frame_more": (49, (49, 48)),
    "several_chunks": (207, (130, 207, 1)),
    "an_empty_clip": (60, (0, 60)),
}


def prepared(fp, preset="w8a8"):
    return pyquant.prepare(fp, pyquant.Policy.preset(preset))


def quantized(fp, preset="w8a16", lengths=(100, 61, 48)):
    q = prepared(fp, preset)
    pyquant.calibrate(q, [{"input_features": features(1, n, seed=n)} for n in lengths], progress=False)
    pyquant.convert(q)
    return q


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    worst = float((actual.double() - expected.double()).abs().max()) / float(expected.double().abs().max())
    assert worst <= tolerance, f"off by {worst:.2e} of the largest value"


@pytest.mark.parametrize("name", CONFIGS)
def test_float_phase_is_transformers_at_every_length_and_padding(name):
    """Padding tokens too: a query that may look nowhere looks everywhere alike, as where HF fills with a constant."""
    fp = audio(**CONFIGS[name])
    q = prepared(fp)
    weights = copy.deepcopy(fp.state_dict())
    tolerance = 3e-5 if name == "tight_clamps" else 1e-5  # values at the clamps: HF's own float order shows
    with torch.no_grad(), phase(q, Phase.FLOAT):
        for frames, valid in CLIPS.values():
            x = features(len(valid), frames)
            for given in (None, mask(frames, *valid), mask(frames, *[frames] * len(valid)).long()):
                before = x.clone()
                expected, got = fp(x, given), q(input_features=x, attention_mask=given)
                close(got.last_hidden_state, expected.last_hidden_state, tolerance)
                assert type(got) is type(expected)
                if given is None:
                    assert got.attention_mask is None
                else:
                    assert torch.equal(got.attention_mask, expected.attention_mask)
                assert torch.equal(x, before)
    assert all(torch.equal(value, weights[name]) for name, value in fp.state_dict().items())


def test_padding_may_stand_anywhere():
    fp, x = audio(), features(2, 90)
    holes = mask(90, 90, 90)
    holes[0, 11:30], holes[1, :17], holes[1, 80:] = False, False, False
    with torch.no_grad(), phase(q := prepared(fp), Phase.FLOAT):
        close(q(x, holes).last_hidden_state, fp(x, holes).last_hidden_state)


@pytest.mark.parametrize("wrapped", [False, True], ids=["transformers", "pyquant"])
def test_a_padded_clip_is_the_clip_alone(wrapped):
    """An oracle of its own: it holds for transformers, and for the wrapper."""
    fp = audio(use_clipped_linears=True)
    model = prepared(fp) if wrapped else fp
    x = features(3, 120)
    valid = (33, 120, 70)
    with torch.no_grad():
        together = model(x, mask(120, *valid)).last_hidden_state
        for row, frames in enumerate(valid):
            alone = model(x[row : row + 1, :frames]).last_hidden_state
            close(together[row : row + 1, : gemma4.tokens_of(frames)], alone)


def test_thirty_seconds():
    fp = randomized(hf.Gemma4AudioModel(config(num_hidden_layers=1)))
    x = features(1, 3000)
    with torch.no_grad(), phase(q := prepared(fp), Phase.FLOAT):
        out, expected = q(x).last_hidden_state, fp(x).last_hidden_state
    assert out.shape == (1, 750, 24)
    close(out, expected)


def test_padding_teaches_calibration_nothing():
    fp, x = audio(), features(2, 100)
    x[0, 37:] = 1e4  # whatever a caller left there
    padded, alone = prepared(fp), prepared(fp)
    with torch.no_grad():
        out = padded(x, mask(100, 37, 100))
        alone(x[:1, :37]), alone(x[1:])
    assert torch.equal(out.attention_mask, fp(x, mask(100, 37, 100)).attention_mask)
    assert not bool(out.last_hidden_state[0, 10:].any())
    for q in (padded, alone):
        pyquant.convert(q)
    for one, other in zip(padded.all_sites(), alone.all_sites(), strict=True):
        assert torch.equal(one.scale, other.scale), one.path


def test_unpadded_clips_calibrate_what_a_padded_batch_needs():
    fp, x = audio(), features(2, 100)
    q = quantized(fp)
    assert not q.uncalibrated_sites()
    with torch.no_grad():
        out = q(x, mask(100, 41, 100)).last_hidden_state
        alone = q(x[:1, :41]).last_hidden_state
    assert sqnr_db(alone, out[:1, :11]) > 60  # rounding flips of 16 bits


def test_hf_audio_reach_is_twelve_keys_with_itself():
    """Trap: `attention_context_left` is 13, and the window is 12 keys, the query's own among them."""
    allowed = Chunks.of(config()).window(torch.device("cpu"))
    assert allowed.shape == (12, 24)
    assert allowed.sum(dim=1).tolist() == [12.0] * 12
    assert all(allowed[i, 12 + i] and allowed[i, i + 1] and not allowed[i, i] for i in range(12))


@pytest.mark.parametrize("sizes", [(12, 12, 0), (4, 6, 2), (5, 3, 7), (3, 11, 0), (7, 0, 1)])
@pytest.mark.parametrize("length", [1, 4, 5, 23, 36])
def test_contexts_are_hf_unfold(sizes, length):
    chunks = Chunks(*sizes)
    x = torch.randn(2, length, 6)
    padded = torch.nn.functional.pad(x, (0, 0, chunks.past, chunks.future + chunks.size - 1))
    expected = padded.unfold(1, chunks.context, chunks.size).movedim(-1, 2)
    assert torch.equal(chunks.contexts(x), expected)


def test_relative_keys_and_scales_are_constants_of_the_float_model():
    """Trap: relative_k_proj is no clipped linear, and acts on a constant; it and both scales are folded."""
    fp = audio().layers[1].self_attn
    q = prepared(fp)
    x = states(1, 20)
    encoding = hf.Gemma4AudioRelPositionalEncoding(fp.config)
    with torch.no_grad(), phase(q, Phase.FLOAT):
        assert q.relative_key.shape == (4, 8, 13)
        close(q(x, encoding(x))[0], fp(x, encoding(x))[0])
        close(q(x, encoding(x))[1], fp(x, encoding(x))[1])


@torch.no_grad()
def test_an_edit_of_what_the_constants_are_made_of_is_noticed():
    fp = audio()
    q = prepared(fp)
    fp.layers[1].self_attn.per_dim_scale.add_(0.3)
    fp.layers[1].self_attn.relative_k_proj.weight.mul_(1.5)
    fp.rel_pos_enc.inv_timescales.mul_(2)
    names = r"'rel_pos_enc.inv_timescales', 'layers.1.self_attn.per_dim_scale', 'layers.1.*relative_k_proj.weight' of"
    with pytest.raises(PhaseError, match=f"calibrate: {names} the float model changed after prepare"):
        pyquant.calibrate(q, [(features(1, 60),)], progress=False)


def test_constants_that_are_loaded_into_a_tree_are_used():
    one, two = prepared(audio()), prepared(randomized(audio(), 1))
    x = features(1, 60)
    with torch.no_grad(), phase(one, Phase.FLOAT), phase(two, Phase.FLOAT):
        two.load_state_dict(one.state_dict())
        assert torch.equal(two(x).last_hidden_state, one(x).last_hidden_state)


def test_relative_keys_are_of_the_positions_of_the_model():
    """A model cast to bfloat16 has rounded timescales; what the attention folds are the model's, not the config's."""
    fp = audio()
    fp.rel_pos_enc.inv_timescales.mul_(1.01)
    x = features(1, 60)
    with torch.no_grad(), phase(q := prepared(fp), Phase.FLOAT):
        close(q(x).last_hidden_state, fp(x).last_hidden_state)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)], ids=["bf16", "fp16"])
def test_low_precision_models_run_in_every_phase(dtype, tolerance):
    fp = audio(use_clipped_linears=True).to(dtype)
    x, valid = features(2, 60), mask(60, 60, 31)
    q = prepared(fp, "w8a16")
    with torch.no_grad():
        expected = fp(x, valid)
        real = expected.attention_mask
        observed = q(x, valid).last_hidden_state
        assert observed.dtype == expected.last_hidden_state.dtype
        close(observed[real], expected.last_hidden_state[real], tolerance)
        pyquant.convert(q)
        close(q(x, valid).last_hidden_state[real], expected.last_hidden_state[real], 0.15)


def test_gradient_clipping_is_a_clamp_where_a_value_can_reach_it():
    """Trap: 1e10 means nothing in float32; in float16 it is the largest number, and a small one is a clamp."""
    assert not [site for site in prepared(audio()).all_sites() if "clipped" in site.path.rpartition(":")[2]]
    half = prepared(audio().half())
    assert half.layers[0].bounds == (-65504.0, 65504.0)
    tight = prepared(audio(gradient_clipping=0.9))
    assert tight.layers[0].lconv1d.bounds == (-0.9, 0.9)
    assert {name for name, _ in tight.layers[0].own_sites()} == {
        "attn_residual",
        "clipped_in",
        "clipped_attn",
        "clipped_out",
    }


@pytest.mark.parametrize("preset", ["w8a8", "w4a16", "float"])
def test_saved_and_loaded_gives_the_same_bits(tmp_path, preset):
    """Clip bounds, scales and relative keys come back from the folder."""
    q = quantized(audio(use_clipped_linears=True), preset)
    given = {"input_features": features(2, 70), "attention_mask": mask(70, 70, 33)}
    pyquant.save_quantized(q, tmp_path / "model")
    loaded = pyquant.load_quantized(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(**given).last_hidden_state, q(**given).last_hidden_state)


X = features(2, 30)
WRONG = {
    "no_batch": ((X[0],), r"takes input_features \(batch, frames, mel bins\).*got \(30, 16\) and None"),
    "mask_of_others": ((X, mask(31, 3, 4)), r"got \(2, 30, 16\) and \(2, 31\)"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_inputs_that_contradict_the_model_say_so(given, message):
    with pytest.raises(InputError, match=message), torch.no_grad():
        prepared(audio())(*given)


def test_a_batch_of_padding_alone_is_nothing_to_calibrate_with():
    q, nothing = prepared(audio()), mask(30, 0, 0)
    with pytest.raises(InputError, match="has no frame of a clip"), torch.no_grad():
        q(X, nothing)
    with torch.no_grad(), phase(q, Phase.FLOAT):
        close(q(X, nothing).last_hidden_state, audio()(X, nothing).last_hidden_state)


def test_masks_and_positions_of_others_say_so():
    q = prepared(audio().layers[0].self_attn)
    x = states(1, 14)
    with pytest.raises(InputError, match=r"attention_mask is \(1, 1, 14, 14\)"), torch.no_grad():
        q(x, attention_mask=torch.zeros(1, 1, 14, 14))
    with pytest.raises(InputError, match=r"\(1, 13, 32\) are not those of the config"), torch.no_grad():
        q(x, torch.randn(1, 13, 32))


def test_a_fill_that_masks_nothing_is_refused():
    with pytest.raises(UnknownModuleError, match=r"attention_invalid_logits_value=1e-09 beside .*_cap=50"):
        prepared(audio(attention_invalid_logits_value=1e-9))


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_outputs_that_are_not_computed_are_refused_by_name(name):
    q = prepared(audio())
    with pytest.raises(InputError, match=f"{name}=True is not supported"):
        q(X, **{name: True})
    assert isinstance(q(X, return_dict=False), tuple)
