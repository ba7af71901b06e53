# SPDX-License-Identifier: Apache-2.0
"""The host of a Gemma4 bundle over eager graphs: its tokens are those of generate() of the tree, in every layout.

Logits are soft-capped to small ranges here; a strong repetition penalty makes each step choose another token.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant.errors import InputError, ProfileError
from pyquant.models.gemma4.whole_host import host
from tests.models.eager_bundle import Eager
from tests.models.gemma4_bundle_tiny import PROMPTS, A, for_release, given, joined, profile, tree
from tests.models.gemma4_model_tiny import IMAGE
from tests.models.gemma4_text_tiny import WINDOW

NEW = 2 * WINDOW + 4  # past two wraps of the ring, whatever the prompt
OPTIONS: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "repetition_penalty": 3.0}
_EAGER: dict[Any, Eager] = {}


class AnImageToken:
    """Makes the first new token a placeholder of images."""

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] > self.prompt:
            return scores
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([IMAGE]), 0.0)


def eager(form: str = "e2b", **changes: Any) -> Eager:
    """Shared by tests with the same profile."""
    key = (form, *sorted((name, str(value)) for name, value in changes.items()))
    if key not in _EAGER:
        _EAGER[key] = Eager(tree(form=form)[1], profile(**changes))
    return _EAGER[key]


def tokens(run: Eager, inputs: dict[str, Tensor], new: int = NEW) -> Tensor:
    out: Tensor = host(run.manifest).generate(run, **inputs, max_new_tokens=new, **OPTIONS)
    return out


def expected(inputs: dict[str, Tensor], form: str = "e2b", new: int = NEW) -> Tensor:
    _, q = tree(form=form)
    out: Tensor = q.generate(**for_release(inputs), max_new_tokens=new, **OPTIONS)
    return out


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
@pytest.mark.parametrize("name", PROMPTS)
def test_tokens_of_every_kind_of_prompt(name: str, layers: str) -> None:
    inputs = given(name, seed=5)
    out = tokens(eager(layers=layers), inputs)
    assert torch.equal(out, expected(inputs))
    assert len(set(out[0, -6:].tolist())) > 3, "the tokens vary, so that they show something"


@pytest.mark.parametrize("name", ["long", "all"])
def test_per_head_and_full_masks(name: str) -> None:
    inputs = given(name, seed=6)
    for changes in ({"attention": "per_head"}, {"sliding": "full"}, {"token_embedding": "fixed"}):
        assert torch.equal(tokens(eager(**changes), inputs), expected(inputs)), changes


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_unequal_prompts(side: str) -> None:
    """A padded row gives what it gives alone; transformers' own right padding is another matter."""
    names = ["adjacent", "short", "audio", "long"]
    out = tokens(eager(batch_size=4), joined(names, seed=3, side=side))
    left = joined(names, seed=3)
    assert torch.equal(out[:, -NEW:], expected(left)[:, -NEW:])
    assert torch.equal(out[:, :-NEW], joined(names, seed=3, side=side)["input_ids"])


def test_frames_of_a_video_at_once() -> None:
    run = eager(video_frames=2)
    inputs = given("video", seed=4)
    assert torch.equal(tokens(run, inputs), expected(inputs))
    assert [name for name in run.calls if name.startswith("vision")] == ["vision_f2_h2_w4", "vision_h2_w4"]


def test_patches_in_any_order_with_padding_anywhere() -> None:
    inputs = given("adjacent", seed=2)
    order = torch.randperm(inputs["pixel_values"].shape[1], generator=torch.Generator().manual_seed(0))
    mixed = dict(inputs)
    for name in ("pixel_values", "image_position_ids"):
        mixed[name] = inputs[name][:, order]
    assert torch.equal(tokens(eager(), mixed), tokens(eager(), inputs))


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
@pytest.mark.parametrize("name", ["long", "all", "audio"])
def test_append_is_one_prefill(name: str, layers: str) -> None:
    """A prompt longer than every prefill length goes through it, and on through append graphs."""
    inputs = given(name, seed=7)
    run = eager(layers=layers, prefill_lengths=(5,), append_lengths=(3, 6))
    assert torch.equal(tokens(run, inputs), expected(inputs))
    assert any(call.startswith("append_s") for call in run.calls)


def test_a_model_whose_images_see_themselves() -> None:
    """Also an image longer than the window."""
    for name in ("adjacent", "all", "long", "image_last"):
        inputs = given(name, seed=8)
        assert torch.equal(tokens(eager("vision"), inputs), expected(inputs, "vision")), name
    causal = tokens(eager(), given("adjacent", seed=8))
    assert not torch.equal(causal, tokens(eager("vision"), given("adjacent", seed=8)))
    with pytest.raises(InputError, match="cut at token 4, within an image"):
        tokens(eager("vision", prefill_lengths=(4,), append_lengths=(4,)), given("adjacent"))


@pytest.mark.parametrize("experts", ["dense", "gather", None])
def test_a_model_with_experts(experts: str | None) -> None:
    """Keys that are values, no per-layer inputs, two of four experts for each token."""
    inputs = given("image_last", seed=4)
    assert torch.equal(tokens(eager("experts", experts=experts), inputs), expected(inputs, "experts"))
    whole = profile(layers="whole", prefill_lengths=(), experts=experts).graphs(tree(form="experts")[1])
    assert whole["model"][1].experts == experts


def test_the_whole_model_in_one_graph() -> None:
    inputs = given("all", seed=9)
    _, images, frames, clips = PROMPTS["all"]
    shapes = (*images, *[(2, 4)] * frames)
    run = eager(
        layers="whole", image_shapes=shapes, audio_lengths=tuple(clip + 1 for clip in clips), prefill_lengths=()
    )
    assert torch.equal(tokens(run, inputs, 6), expected(inputs, new=6))
    forced = {**OPTIONS, "logits_processor": [AnImageToken(inputs["input_ids"].shape[1])], "max_new_tokens": 4}
    _, q = tree()
    out = host(run.manifest).generate(run, **inputs, **forced)
    assert torch.equal(out, q.generate(**for_release(inputs), **forced))
    assert not bool((run.seen["model"]["input_ids"] == IMAGE).any()), "a placeholder has no row of its own"
    with pytest.raises(InputError, match=r"prompts with images of \[\(2, 6\), \(4, 4\)"):
        tokens(run, given("adjacent"))


def test_what_the_bundle_cannot_do_is_said() -> None:
    run = eager()
    inputs = given("image_first")
    y, x = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    wide = {"image_position_ids": torch.stack([x, y], -1).reshape(1, -1, 2), "pixel_values": torch.zeros(1, 24, 12)}
    with pytest.raises(InputError, match=r"no vision graph for an image of \(6, 4\) patches, only for \[\(4, 4\)"):
        tokens(run, inputs | wide)
    with pytest.raises(InputError, match="are no whole grid"):
        tokens(run, inputs | {"image_position_ids": torch.ones_like(inputs["image_position_ids"])})
    beyond = inputs["image_position_ids"].clone()
    beyond[0, 3] = torch.tensor([-1, 1])  # where (3, 0) was: the same number, line by line
    with pytest.raises(InputError, match="are no whole grid"):
        tokens(run, inputs | {"image_position_ids": beyond})
    clip = {"input_features": torch.zeros(1, 30, 8), "input_features_mask": torch.ones(1, 30)}
    with pytest.raises(InputError, match="no audio graph for a clip of 30 frames"):
        tokens(run, given("audio") | clip)
    with pytest.raises(InputError, match="has 4 image placeholder tokens"):
        tokens(run, {name: inputs[name] for name in ("input_ids", "attention_mask")})
    with pytest.raises(InputError, match="mm_token_type_ids contradict"):
        tokens(run, inputs | {"mm_token_type_ids": torch.zeros_like(inputs["input_ids"])})
    with pytest.raises(InputError, match=r"mm_token_type_ids is \(1, 3\), expected a tensor \(1, "):
        tokens(run, inputs | {"mm_token_type_ids": torch.zeros(1, 3, dtype=torch.int64)})


def test_frame_counts_that_contradict_the_frames() -> None:
    run, inputs = eager(video_frames=2), given("video", seed=4)
    with pytest.raises(InputError, match=r"num_frames_per_video is \[9\], 9 frames, but pixel_values_videos has"):
        tokens(run, inputs | {"num_frames_per_video": torch.tensor([9])})


def test_a_clip_is_its_first_frames() -> None:
    run, inputs = eager(), given("audio")
    mask = inputs["input_features_mask"].clone()
    mask[0, 2] = 0
    with pytest.raises(InputError, match="mask of clip 0 has padding at frame 2 before its last frame"):
        tokens(run, inputs | {"input_features_mask": mask})
    with pytest.raises(InputError, match=r"go with input_features_mask \(clips, frames\); got .* and None"):
        tokens(run, {name: each for name, each in inputs.items() if name != "input_features_mask"})


@pytest.mark.parametrize(("name", "what"), [("image_first", "vision"), ("audio", "audio")])
def test_a_bundle_without_a_tower_names_no_sizes(name: str, what: str) -> None:
    run = eager(image_shapes=(), audio_lengths=())
    with pytest.raises(InputError, match=f"no {what} graph for .*, nor for any other; export with"):
        tokens(run, given(name))


def test_a_mask_with_a_hole_and_values_that_are_no_numbers() -> None:
    """A window of transformers counts a hole, and the ring of a bundle does not hold it."""
    inputs = given("long", seed=1)
    mask = inputs["attention_mask"].clone()
    mask[0, 5] = 0
    with pytest.raises(InputError, match="attention_mask is 0 at token 5 of row 0, between tokens"):
        tokens(eager(), inputs | {"attention_mask": mask})
    image = given("image_first", seed=1)
    pixels = image["pixel_values"].clone()
    pixels[0, 2, 3] = torch.nan
    with pytest.raises(InputError, match=r"'vision_h4_w4': input 'pixel_values' has nan at \[0, 2, 3\]"):
        tokens(eager(), image | {"pixel_values": pixels})


def test_a_tower_without_ranges() -> None:
    fp, _ = tree()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [given("long", seed) for seed in (1, 2)], progress=False)
    towers = [f"model.{name}*" for name in ("vision_tower", "audio_tower", "embed_vision", "embed_audio")]
    pyquant.convert(q, unused=towers)
    with pytest.raises(ProfileError, match=r"has image_shapes, and 'model\.vision_tower' of this tree saw"):
        profile().graphs(q)
    assert "prefill_s8" in profile(image_shapes=(), audio_lengths=()).graphs(q)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_shapes": (A, A)}, "one is there twice"),
        ({"image_shapes": 4}, "image_shapes are"),
        ({"video_frames": -1}, "video_frames is"),
        ({"video_frames": 2, "image_shapes": ()}, "and there is none"),
        ({"audio_lengths": 8}, "audio_lengths are"),
        ({"audio_lengths": (0,)}, "length is a positive integer"),
        ({"layers": "whole"}, "leave prefill_lengths out"),
        ({"layers": "whole", "prefill_lengths": (), "video_frames": 2}, "leave video_frames out, or use"),
        ({"layers": "whole", "prefill_lengths": (), "sliding": "banded"}, 'leave sliding="banded" out, or use'),
        ({"experts": "some"}, "experts is one of dense, gather or None"),
    ],
)
def test_profiles_that_no_model_takes(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ProfileError, match=match):
        profile(**changes)


def test_profiles_that_this_model_does_not_take() -> None:
    _, q = tree()
    for changes, match in (
        ({"image_shapes": ((3, 4),)}, "pool"),
        ({"image_shapes": ((4, 40),)}, "position table"),
        ({"max_seq_len": 500}, "max_position_embeddings"),
        ({"experts": "dense"}, "the model has no experts"),
    ):
        with pytest.raises(ProfileError, match=match):
            profile(**changes).graphs(q)
    with pytest.raises(ProfileError, match="has no audio_tower"):
        profile(image_shapes=()).graphs(q.model.language_model)
