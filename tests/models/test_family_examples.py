# SPDX-License-Identifier: Apache-2.0
"""Each family's tiny model and example inputs: the model runs on them, and patches lie as transformers' processor puts
them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pyquant
from pyquant import models, trace
from pyquant.errors import InputError, UnknownModuleError
from pyquant.models import example

torch.set_num_threads(1)
FAMILIES = models.FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_model_is_the_same_each_time_and_nothing_in_it_is_idle(family: str) -> None:
    room = models.by_name(family).example
    model, again = room.tiny_model(), room.tiny_model()
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) < 200_000
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert p.unique().numel() > 1, name
    assert models.family_of(type(model)).example is room
    batch = room.example_inputs(model)
    with torch.no_grad():
        out = model(**batch)[0]
        text = models.name_of(type(model)) == "llama"
        other = {"ids": [5, 6, 7]} if text else {"images": [np.zeros((9, 7, 3), np.uint8)]}
        changed = model(**room.example_inputs(model, **other))[0]
    assert bool(out.isfinite().all())
    assert out.shape != changed.shape or not torch.equal(out, changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_quantizes_well_enough_to_show_something(family: str) -> None:
    room = models.by_name(family).example
    model = room.tiny_model()
    batch = room.example_inputs(model)
    q = pyquant.prepare(model, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    with torch.no_grad():
        a, b = model(**batch)[0], q(**batch)[0]
    assert pyquant.verify.sqnr_db(a, b) > 25


def test_qwen_patches_lie_as_transformers_puts_them() -> None:
    hf = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    from pyquant.models.qwen3_vl.example import _patches

    vision = models.by_name("qwen3_vl").example.tiny_model().config.vision_config
    processor = hf.Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_resize=False,
    )
    image = example.made_up_image(32, 48)
    expected = processor(image.permute(2, 0, 1).numpy(), return_tensors="pt", input_data_format="channels_first")
    found = _patches(image.permute(2, 0, 1).float() / 255, vision)
    assert expected["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert torch.allclose(found, expected["pixel_values"], atol=1e-6)


def test_every_part_of_gemma4_has_an_example() -> None:
    """`tiny:gemma4` is the vision tower; inputs of a model are those of its kind."""
    family = models.by_name("gemma4")
    seen = set()
    for part in (family.example, *family.parts):
        model = part.tiny_model()
        own, chosen = part.example_inputs(model), family.example.example_inputs(model)
        assert {name: value.tolist() for name, value in own.items()} == {n: v.tolist() for n, v in chosen.items()}
        with torch.no_grad():
            assert bool(model(**chosen)[0].isfinite().all())
        seen.add(type(model).__name__)
    assert seen == {"Gemma4VisionModel", "Gemma4ForConditionalGeneration", "Gemma4AudioModel", "Gemma4ForCausalLM"}


def test_images_in_a_prompt_of_gemma4() -> None:
    example = models.by_name("gemma4").example
    model = models.by_name("gemma4").parts[0].tiny_model()
    assert sum(p.numel() for p in model.parameters()) < 200_000
    image, token = np.zeros((9, 7, 3), np.uint8), model.config.image_token_id
    given = example.example_inputs(model, [image, image])
    assert int((given["input_ids"] == token).sum()) == int(given["mm_token_type_ids"].sum()) == 2 * 16
    assert given["image_position_ids"].shape == (2, 64, 2)
    assert "pixel_values" not in example.example_inputs(model, ids=[5, 6])
    with pytest.raises(InputError, match=r"has 3 image placeholder tokens \(258\), and 1 images have 16 soft tokens"):
        example.example_inputs(model, [image], ids=[token] * 3)
    with pytest.raises(InputError, match="ids are 0 to 263, got 264"):
        example.example_inputs(model, ids=[264])


def test_resizing_keeps_what_has_the_size_already() -> None:
    image = example.made_up_image(8, 12)
    same = example.resized(image, 8, 12)
    assert torch.allclose(same, image.permute(2, 0, 1).float() / 255, atol=1e-6)
    assert torch.equal(example.resized(image.permute(2, 0, 1), 8, 12), same)
    assert example.resized(image, 3, 5).shape == (3, 3, 5)
    assert example.resized(torch.full((4, 4, 3), 128, dtype=torch.uint8), 2, 2).unique().tolist() == pytest.approx(
        [128 / 255]
    )


def test_ids_and_images_of_a_prompt() -> None:
    room = models.by_name("qwen3_vl").example
    model = room.tiny_model()
    own = room.example_inputs(model, ids=[1, 2, 3])
    assert own["input_ids"].tolist() == [[1, 2, 3]]
    assert "pixel_values" not in own
    image = np.zeros((5, 5, 3), np.uint8)
    token = model.config.image_token_id
    placed = room.example_inputs(model, [image], ids=[7, *[token] * 4, 8])
    assert placed["input_ids"].tolist() == [[7, *[token] * 4, 8]]
    assert placed["mm_token_type_ids"].tolist() == [[0, 1, 1, 1, 1, 0]]
    for ids in ([token], [-1], []):
        with pytest.raises(InputError):
            room.example_inputs(model, [image], ids=ids)


def test_what_there_is_no_example_of() -> None:
    with pytest.raises(UnknownModuleError, match="there is no model family 'gpt2'; there are gemma4, llama"):
        models.by_name("gpt2")
    with pytest.raises(UnknownModuleError, match="Linear belongs to no model family of pyquant"):
        models.family_of(nn.Linear)
    with pytest.raises(InputError, match="an image is"):
        example.resized(torch.zeros(4, 4), 2, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_wrappers_know_whom_they_stand_for(family: str) -> None:
    """Also where the wrapped tree hangs under another prefix, as in an adapter or a user's own module."""
    model = models.by_name(family).example.tiny_model()
    q = pyquant.prepare(model, pyquant.Policy.preset("float"))
    names = {name for name, _ in model.named_modules()}
    pairs = trace.counterparts(model, q)
    assert set(pairs.values()) <= names
    assert len(pairs) == len(set(pairs.values())) > 0.8 * sum(not list(m.children()) for m in model.modules())
    outer = nn.ModuleDict({"inner": q})
    assert trace.counterparts(model, outer) == {f"inner.{name}" if name else "inner": p for name, p in pairs.items()}
    assert trace.counterparts(model, model) == {}


def test_made_up_ids_fit_a_vocabulary_smaller_than_bytes() -> None:
    """Found on examples/digits/vlm, which has 30 tokens: `pyquant trace --image` printed `ids are 0 to 29, got 87`."""
    room = models.by_name("qwen3_vl").example
    model = room.tiny_model()
    model.config.text_config.vocab_size = 30
    for number, name in enumerate(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")):
        setattr(model.config, name, number)
    ids = room.example_inputs(model)["input_ids"][0]
    assert int(ids.max()) < 30
    assert int((ids == 0).sum()) == 4
    assert int((ids == 1).sum()) == 0
    assert int(((ids == 2) | (ids == 3)).sum()) == 2
