# SPDX-License-Identifier: Apache-2.0
"""What contradicts itself or a Gemma4 model is one error that says what was seen and what to do."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gemma4_model_tiny as tiny
import gemma4_text_tiny as text_tiny
import pytest
import torch
from gemma4_model_tiny import FLAT_FRAMES, IMAGE, inputs

import pyquant
from pyquant.cli.main import main
from pyquant.errors import InputError, PyquantError
from pyquant.wrap import Phase, set_phase

A, B, V = ("image", 4, 4), ("image", 2, 2), ("video", 2, 2, 2)
GIVEN = inputs((2, A, 3), mask=False)
IDS = text_tiny.ids(2, 7)
EMBEDS = torch.ones(2, 7, 24)


def floating(fp: Any) -> Any:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    return q


@pytest.fixture(scope="module")
def whole() -> Any:
    return floating(tiny.conditional())


@pytest.fixture(scope="module")
def text() -> Any:
    return floating(text_tiny.causal_lm())


WHOLE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"input_ids": None}, r"either input_ids \(B, S\) or inputs_embeds \(B, S, D\), and not both"),
    "both": ({"inputs_embeds": torch.zeros(1, 9, 24)}, "and not both"),
    "flat_ids": ({"input_ids": IDS[0]}, r"got \(7,\)"),
    "images_without_positions": ({"image_position_ids": None}, r"pixel_position_ids .*got \(1, 16, 12\) and None"),
    "fewer_positions": ({"image_position_ids": GIVEN["image_position_ids"][:, 1:]}, r"\(1, 16, 12\) and \(1, 15, 2\)"),
    "more_images": (
        {"pixel_values": tiny.pixels([(4, 4)] * 2)[0], "image_position_ids": tiny.pixels([(4, 4)] * 2)[1]},
        "the prompt has 4 image placeholder tokens .*, but pixel_values make 8",
    ),
    "smaller_image": (
        {"pixel_values": tiny.pixels([(2, 2)])[0], "image_position_ids": tiny.pixels([(2, 2)])[1]},
        "4 image placeholder tokens .*, but pixel_values make 1 image tokens",
    ),
    "audio_without_a_tower": (
        {"input_features": torch.zeros(1, 8, 16), "input_features_mask": torch.ones(1, 8).bool()},
        "the model has no audio tower",
    ),
    "per_layer_inputs_beside_ids": (
        {"per_layer_inputs": torch.zeros(1, 9, 7, 6)},
        "per_layer_inputs go with inputs_embe",
    ),
    "outputs_beside_pixels": ({"mm_encoder_outputs": {"image": object()}}, "pixel_values or mm_encoder_outputs"),
    "past_the_vocabulary": ({"input_ids": GIVEN["input_ids"] + 20}, "vocabulary|rows"),
    "short_mask": ({"attention_mask": torch.ones(1, 8)}, r"attention_mask is \(1, 8\)"),
    "flat_mask": ({"attention_mask": torch.ones(9)}, "attention_mask is"),
    "mapping_without_a_type": (
        {"attention_mask": {"full_attention": None}},
        "has masks for 'full_attention', and the model has sliding_attention too",
    ),
    "short_positions": ({"position_ids": torch.arange(8)[None]}, r"position_ids is \(1, 8\), expected \(1, 9\)"),
    "recording": ({"output_hidden_states": True}, "output_hidden_states=True"),
    "types_of_another_length": (
        {"mm_token_type_ids": torch.zeros(1, 5).long()},
        r"mm_token_type_ids are \(1, 5\), expected \(1, 9\)",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_the_whole_model_refuses(whole: Any, case: str) -> None:
    change, message = WHOLE[case]
    model = floating(tiny.conditional("vision")) if case == "types_of_another_length" else whole
    with torch.no_grad(), pytest.raises(InputError, match=message):
        model(**{**GIVEN, **change})


@pytest.mark.skipif(not FLAT_FRAMES, reason="this release takes videos of one length only")
def test_frames_that_do_not_add_up(whole: Any) -> None:
    given = inputs((2, V, 1), mask=False)
    with pytest.raises(InputError, match=r"num_frames_per_video is \[3\], 3 frames, but pixel_values_videos has 2"):
        whole(**given | {"num_frames_per_video": torch.tensor([3])})
    with pytest.raises(InputError, match=r"videos need num_frames_per_video \(videos,\)"):
        whole(**given | {"num_frames_per_video": None})


def test_a_tensor_without_an_image_frame_or_clip_is_none() -> None:
    q = pyquant.prepare(tiny.conditional(audio=True), pyquant.Policy.preset("w8a8"))
    given = {"input_ids": torch.tensor([[5, 6, 7]])}
    pixels, places = torch.zeros(0, 16, 12), torch.zeros(0, 16, 2).long()
    empty = {
        "pixel_values": pixels,
        "image_position_ids": places,
        "pixel_values_videos": pixels,
        "video_position_ids": places,
        "input_features": torch.zeros(0, 16, tiny.MEL),
        "input_features_mask": torch.zeros(0, 16, dtype=torch.bool),
    }
    with torch.no_grad():
        assert torch.equal(q(**given, **empty).logits, q(**given).logits)
    pyquant.calibrate(q, [given | empty], progress=False)


def test_placeholders_without_images_are_no_calibration_data() -> None:
    q = pyquant.prepare(tiny.conditional(), pyquant.Policy.preset("w8a8"))
    given = {"input_ids": torch.tensor([[5, IMAGE, IMAGE, 7]])}
    with pytest.raises(
        PyquantError, match="the prompt has 2 image, video or audio placeholder tokens and nothing to put"
    ):
        pyquant.calibrate(q, [given], progress=False)


TEXT: dict[str, tuple[dict[str, Any], str]] = {
    "per_layer_inputs_beside_ids": (
        {"input_ids": IDS, "per_layer_inputs": torch.zeros(2, 7, 7, 6)},
        "per_layer_inputs go with inputs_embeds; with input_ids they are looked up",
    ),
    "per_layer_inputs_of_another_shape": (
        {"inputs_embeds": EMBEDS, "per_layer_inputs": torch.zeros(2, 7, 6, 7)},
        r"per_layer_inputs are \(2, 7, 6, 7\), expected \(2, 7, 7, 6\): batch, tokens, layers, width",
    ),
    "embeddings_that_are_no_row": (
        {"inputs_embeds": EMBEDS},
        r"inputs_embeds at \(0, 0\) are no row of the token table.*pass input_ids, or per_layer_inputs",
    ),
    "ids_past_the_vocabulary": ({"input_ids": IDS + 30}, "0 to 39|row"),
    "ids_below_zero": ({"input_ids": IDS - 40}, "0 to 39|row"),
    "float_ids": ({"input_ids": IDS.float()}, "expected integers"),
    "short_mask": ({"input_ids": IDS, "attention_mask": torch.ones(2, 6)}, r"expected \(2, 7\)"),
    "4d_mask": ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 7, 9)}, r"needs \(2, 1 or heads, 7, 7\)"),
    "bidirectional": ({"input_ids": IDS, "is_causal": False}, "is_causal=False"),
}


@pytest.mark.parametrize("case", TEXT)
def test_the_text_model_refuses(text: Any, case: str) -> None:
    change, message = TEXT[case]
    with torch.no_grad(), pytest.raises(InputError, match=message):
        text(**change)


@pytest.mark.parametrize("given", [None, {}], ids=["none", "empty"])
def test_attention_without_the_keys_that_it_reads(text: Any, given: Any) -> None:
    attention = text.model.layers[-1].self_attn
    tables = torch.zeros(2, 1, 3, attention.head_dim).unbind()
    with pytest.raises(InputError, match=r"self_attn reads keys and values of layer \d: pass shared_kv_states with"):
        attention(torch.zeros(1, 3, EMBEDS.shape[-1]), tables, shared_kv_states=given)


SIBLINGS = {"gemma4_unified": "Gemma4UnifiedForConditionalGeneration", "gemma4_assistant": "Gemma4AssistantForCausalLM"}


def sibling(name: str) -> Any:
    """A tiny model of a class that pyquant does not wrap; skips where this release has none."""
    try:
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        configs = importlib.import_module(f"transformers.models.{name}.configuration_{name}")
    except ImportError:
        pytest.skip(f"this release of transformers has no {name}")
    cls = getattr(module, SIBLINGS[name])
    text = text_tiny.text_config("no_ple" if name == "gemma4_unified" else "e2b").to_dict()
    text |= {"model_type": f"{name}_text", "vocab_size_per_layer_input": 0}
    if name == "gemma4_assistant":
        text.pop("model_type")
    if name == "gemma4_assistant":
        text |= {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 7, "use_double_wide_mlp": False}
        config = configs.Gemma4AssistantConfig(text_config=text, backbone_hidden_size=24)
    else:
        config = configs.Gemma4UnifiedConfig(text_config=text)
    try:
        return cls(config).eval()
    except ValueError as error:  # 5.23 wants owners of the keys in an assistant's config
        pytest.skip(f"this release builds no {cls.__name__} of this size: {error}")


@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings_are_refused_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fp = sibling(name)
    with pytest.raises(PyquantError, match=SIBLINGS[name]) as error:
        pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    assert "Gemma4ForConditionalGeneration" in str(error.value)
    fp.save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"input_ids": [[5, 6, 7]]}\n')
    words = ["quantize", "--model", tmp_path / "model", "--out", tmp_path / "out", "--data", tmp_path / "data.jsonl"]
    words += ["--recipe", "w8a8"]
    assert main([str(word) for word in words]) == 2
    assert SIBLINGS[name] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
