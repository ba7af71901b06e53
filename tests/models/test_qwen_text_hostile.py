# SPDX-License-Identifier: Apache-2.0
"""What contradicts itself or the model is an error at once: inputs, masks, caches, deepstack features, profiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import qwen_text_tiny as tiny
import torch

import pyquant
from pyquant import ExportProfile, Policy
from pyquant.errors import CalibrationError, InputError, PhaseError, ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.qwen3_vl import TextProfile
from pyquant.wrap import Phase, QModule, phase

TWO = tiny.BATCHES["two"]
B, S, D = 2, 7, tiny.D
IDS, EMBEDS = tiny.token_ids(TWO), tiny.states(TWO)
WHERE = TWO.visual
N = int(WHERE.sum())
FEATURE = torch.ones(N, D)


@pytest.fixture(scope="module")
def tree() -> QModule:
    return tiny.converted(tiny.text(), [tiny.deepstacked(TWO)], "w8a8", ("embed_tokens:act_out",))


def cached(tree: QModule, tokens: int) -> Any:
    with torch.no_grad():
        return tree(inputs_embeds=EMBEDS[:, :tokens], use_cache=True).past_key_values


INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, r"either input_ids \(B, S\) or inputs_embeds \(B, S, D\), and not both"),
    "both": ({"input_ids": IDS, "inputs_embeds": EMBEDS}, "and not both"),
    "float_ids": ({"input_ids": IDS.float()}, r"input_ids is torch.float32 of shape \(2, 7\), expected integers"),
    "flat_ids": ({"input_ids": IDS[0]}, r"input_ids is torch.int64 of shape \(7,\)"),
    "flat_embeds": ({"inputs_embeds": EMBEDS[0]}, r"inputs_embeds is torch.float32 of shape \(7, 24\)"),
    "integer_embeds": ({"inputs_embeds": EMBEDS.long()}, "expected floating point"),
    "short_mask": (
        {"inputs_embeds": EMBEDS, "attention_mask": torch.ones(B, S - 1)},
        r"attention_mask is \(2, 6\), but the call has 2 rows and 7 tokens after 0 in the cache: expected \(2, 7\)",
    ),
    "long_mask": ({"inputs_embeds": EMBEDS, "attention_mask": torch.ones(B, S + 1)}, r"expected \(2, 7\)"),
    "mask_of_other_rows": ({"inputs_embeds": EMBEDS, "attention_mask": torch.ones(3, S)}, "has 2 rows"),
    "flat_mask": ({"inputs_embeds": EMBEDS, "attention_mask": torch.ones(S)}, r"of shape \(7,\); expected \(batch"),
    "3d_mask": ({"inputs_embeds": EMBEDS, "attention_mask": torch.ones(B, S, S)}, r"of shape \(2, 7, 7\)"),
    "4d_mask": (
        {"inputs_embeds": EMBEDS, "attention_mask": torch.ones(B, 1, S, S + 2)},
        r"attention_mask is \(2, 1, 7, 9\), but the call needs \(2, 1 or heads, 7, 7\)",
    ),
    "short_positions": (
        {"inputs_embeds": EMBEDS, "position_ids": torch.zeros(3, B, S - 1)},
        r"position_ids is \(3, 2, 6\), expected \(2, 7\), or \(3, 2, 7\)",
    ),
    "two_axes": ({"inputs_embeds": EMBEDS, "position_ids": torch.zeros(2, B, S)}, r"position_ids is \(2, 2, 7\)"),
    "flat_positions": ({"inputs_embeds": EMBEDS, "position_ids": torch.zeros(S)}, r"position_ids is \(7,\)"),
    "recording": ({"inputs_embeds": EMBEDS, "output_hidden_states": True}, "output_hidden_states=True is not"),
    "bidirectional": ({"inputs_embeds": EMBEDS, "is_causal": False}, "is_causal=False makes the text model"),
    "features_without_mask": (
        {"inputs_embeds": EMBEDS, "deepstack_visual_embeds": [FEATURE]},
        r"visual_pos_masks is None, expected bool of shape \(2, 7\)",
    ),
    "mask_of_other_shape": (
        {"inputs_embeds": EMBEDS, "visual_pos_masks": WHERE[:, 1:], "deepstack_visual_embeds": [FEATURE]},
        r"visual_pos_masks is \(2, 6\)",
    ),
    "too_few_rows": (
        {"inputs_embeds": EMBEDS, "visual_pos_masks": WHERE, "deepstack_visual_embeds": [FEATURE, FEATURE[1:]]},
        rf"deepstack_visual_embeds\[1\] is \({N - 1}, 24\), expected \({N}, 24\)",
    ),
    "too_many_rows": (
        {"inputs_embeds": EMBEDS, "visual_pos_masks": WHERE, "deepstack_visual_embeds": [torch.ones(N + 1, D)]},
        rf"is \({N + 1}, 24\), expected \({N}, 24\)",
    ),
    "too_wide": (
        {"inputs_embeds": EMBEDS, "visual_pos_masks": WHERE, "deepstack_visual_embeds": [torch.ones(N, D + 1)]},
        r"25\), expected",
    ),
    "too_many_features": (
        {"inputs_embeds": EMBEDS, "visual_pos_masks": WHERE, "deepstack_visual_embeds": [FEATURE] * 4},
        "has 4 features, but the quantized text model has sites for 3",
    ),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("now", [Phase.FLOAT, Phase.QUANTIZED], ids=lambda p: p.name)
def test_inputs_that_contradict_themselves(tree, name, now):
    given, message = INPUTS[name]
    with phase(tree, now), torch.no_grad(), pytest.raises(InputError, match=message):
        tree(**given)


def test_calibration_refuses_them_too():
    q = pyquant.prepare(tiny.text(), Policy.preset("w8a8"))
    for name in ("short_mask", "flat_mask", "3d_mask", "too_few_rows"):
        given, message = INPUTS[name]
        given = {**given, **({"attention_mask": given["attention_mask"] * 0} if "attention_mask" in given else {})}
        with pytest.raises(CalibrationError, match=message):
            pyquant.calibrate(q, [given], progress=False)
    with pytest.raises(CalibrationError, match="masks every new token of the batch"):
        pyquant.calibrate(q, [{"input_ids": IDS, "attention_mask": torch.zeros(B, S)}], progress=False)


@pytest.mark.parametrize("mask", [2, 5, 9])
def test_a_mask_that_is_not_of_past_and_new_tokens(tree, mask):
    cache = cached(tree, 4)
    with torch.no_grad(), pytest.raises(InputError, match=r"2 tokens after 4 in the cache: expected \(2, 6\)"):
        tree(inputs_embeds=EMBEDS[:, 4:6], attention_mask=torch.ones(B, mask), past_key_values=cache)
    assert cache.get_seq_length() == 4


PROFILES: dict[str, tuple[Callable[[], Any], str]] = {
    "no_rows": (lambda: TextProfile(0, 8), "TextProfile.batch_size is an integer of at least 1, got 0"),
    "no_tokens": (lambda: TextProfile(1, 0), "seq_len is an integer of at least 1"),
    "negative_past": (lambda: TextProfile(1, 1, past_len=-1), "past_len is an integer of at least 0, got -1"),
    "truth": (lambda: TextProfile(True, 8), "batch_size is an integer"),
    "float": (lambda: TextProfile(1, 8.0), "seq_len is an integer"),
    "negative_layer": (lambda: TextProfile(1, 8, layer=-1), "layer is an integer of at least 0"),
    "negative_taps": (lambda: TextProfile(1, 8, deepstack=-1), "deepstack is an integer of at least 0"),
    "attention": (lambda: TextProfile(1, 8, attention="flash"), "'batched' or 'per_head', got 'flash'"),
}


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_that_no_model_could_accept(name):
    make, message = PROFILES[name]
    with pytest.raises(ProfileError, match=message):
        make()


CONTRADICTIONS: dict[str, tuple[Any, str]] = {
    "too_long": (
        TextProfile(1, 129),
        "0 cached and 129 new tokens are more than .* max_position_embeddings, 128",
    ),
    "cache_too_long": (TextProfile(1, 1, past_len=128), "128 cached and 1 new tokens are more"),
    "too_many_taps": (TextProfile(1, 8, deepstack=4), "has 4 deepstack inputs, but QuantQwen3VLTextModel adds 3"),
    "no_such_layer": (TextProfile(1, 8, layer=3), "TextProfile.layer is 3, but the model has 3 layers"),
    "other_kind": (
        ExportProfile({"x": TensorSpec((1, 8))}),
        r"with a TextProfile\(.*of its family, got ExportProfile",
    ),
    "none": (None, "needs a profile"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_profiles_that_contradict_the_model(tree, name):
    profile, message = CONTRADICTIONS[name]
    with pytest.raises(ProfileError, match=message):
        pyquant.export(tree, profile)


@pytest.mark.parametrize("part", ["layer", "attention"])
def test_parts_alone_have_no_deepstack_and_know_their_profile(tree, part):
    module = tree.layers[0] if part == "layer" else tree.layers[0].self_attn
    with pytest.raises(ProfileError, match=r"has 1 deepstack inputs, but .* adds 0"):
        module.as_export_module(TextProfile(1, 8, deepstack=1))
    with pytest.raises(ProfileError, match="got ExportProfile"):
        module.as_export_module(ExportProfile({"x": TensorSpec((1, 8))}))


def test_the_rotary_tables_have_no_graph(tree):
    with pytest.raises(ProfileError, match="rotary tables are inputs of the static graphs"):
        pyquant.export(tree.rotary_emb, TextProfile(1, 8))


def test_export_before_convert():
    q = pyquant.prepare(tiny.text(), Policy.preset("w8a8"))
    with pytest.raises(PhaseError, match="CALIBRATE"):
        pyquant.export(q, TextProfile(1, 8))
    with pytest.raises(PhaseError, match="export before the tree is ready"):
        q.as_export_module(TextProfile(1, 8))


def test_text_alone_teaches_all_but_the_images():
    """Convert names the sites that only images reach, and what to do."""
    q = pyquant.prepare(tiny.text(), Policy.preset("w8a8"))
    pyquant.calibrate(q, [{"input_ids": IDS}], progress=False)
    with pytest.raises(CalibrationError, match=r"3 of \d+ sites have no usable range") as caught:
        pyquant.convert(q)
    assert [line.split(": saw")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        ":deepstack_0",
        ":deepstack_1",
        ":deepstack_2",
    ]
    assert "convert(unused=...)" in str(caught.value)
    pyquant.convert(q, unused=tiny.TEXT_ONLY)
    assert pyquant.export(q, TextProfile(1, 1, past_len=5, layer=0)).name == "decode_layer0"


def test_garbage_in_padding_changes_nothing(tree):
    rows = tiny.BATCHES["left"]
    given = tiny.deepstacked(rows)
    noise = torch.where(rows.valid[..., None], given["inputs_embeds"], 50 * tiny.randn(*rows.shape, D, seed=8))
    with torch.no_grad():
        clean, dirty = (
            tree(**{**given, "inputs_embeds": x}).last_hidden_state for x in (given["inputs_embeds"], noise)
        )
    assert torch.equal(clean[rows.valid], dirty[rows.valid])


def test_weights_that_are_loaded_after_prepare_count():
    late, early = tiny.text(), tiny.randomized(tiny.text(), 5)
    q = pyquant.prepare(late, Policy.preset("w8a8"))
    late.load_state_dict(early.state_dict())
    with phase(q, Phase.FLOAT), torch.no_grad():
        given = tiny.deepstacked(TWO)
        tiny.close(q(**given).last_hidden_state, early(**given).last_hidden_state)
