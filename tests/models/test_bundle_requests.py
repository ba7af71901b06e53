# SPDX-License-Identifier: Apache-2.0
"""What a user asks and what data shows become profiles: each guess, and each request that a family cannot serve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

from pyquant.errors import InputError, ProfileError, UnknownModuleError
from pyquant.models import family_of, gemma4, qwen3_vl
from pyquant.models.gemma4 import request as gemma4_request
from pyquant.models.qwen3_vl import request as qwen_request
from pyquant.models.request import Request, Sizes

QWEN = Qwen3VLConfig(text_config={"max_position_embeddings": 512}, vision_config={"spatial_merge_size": 2})
GEMMA = Gemma4VisionConfig(pooling_kernel_size=2, position_embedding_size=16)
SMALL, WIDE = (1, 4, 4), (1, 4, 8)
SEEN = [Sizes(70, (WIDE,)), Sizes(20, (SMALL, WIDE)), Sizes(9)]


def test_qwen_guesses_lengths_and_grids_from_the_data_and_says_so() -> None:
    made = qwen_request.choose(QWEN, Request(), SEEN)
    profile = qwen3_vl.Profile(max_seq_len=192, image_grids=(SMALL, WIDE), prefill_lengths=(128,))
    assert made.profiles == profile, "70 + 64 and 70, in steps of 64"
    assert made.guesses == (
        "image grids 4x4, 4x8: those of the calibration data",
        "max sequence length 192: the longest prompt has 70 tokens, and 64 for the answer, in steps of 64",
        "prefill length 128: the longest prompt has 70 tokens, in steps of 64",
    )
    assert made.settings == {
        "max_seq_len": 192,
        "image_grids": [[1, 4, 4], [1, 4, 8]],
        "batch_size": 1,
        "prefill_lengths": [128],
    }


def test_qwen_takes_what_is_asked_and_guesses_no_more() -> None:
    request = Request(100, (WIDE, WIDE, (2, 4, 4)), (16, 80), 3, "per_layer", "per_head")
    made = qwen_request.choose(QWEN, request, SEEN)
    assert made.guesses == ("image grids: the calibration data has [(1, 4, 4)] too, which the bundle will refuse",)
    assert made.profiles == qwen3_vl.Profile(
        max_seq_len=100,
        image_grids=(WIDE, (2, 4, 4)),
        prefill_lengths=(16, 80),
        batch_size=3,
        layers="per_layer",
        attention="per_head",
    )


def test_append_lengths_take_what_is_longer_than_a_prefill() -> None:
    made = qwen_request.choose(QWEN, Request(100, (WIDE, SMALL), (16, 32), append_lengths=(8,)), SEEN)
    assert made.guesses == ()
    assert made.profiles.append_lengths == (8,)
    assert made.settings["append_lengths"] == [8]
    with pytest.raises(ProfileError, match="append_lengths: every number is at least 1"):
        Request(append_lengths=(0,))


def test_qwen_says_which_data_the_asked_lengths_cannot_take() -> None:
    made = qwen_request.choose(QWEN, Request(100, (WIDE, SMALL), (16, 32)), SEEN)
    assert made.guesses == (
        "prefill lengths [16, 32]: 1 of 3 calibration prompts are longer (up to 70 tokens), and the bundle will refuse "
        "such prompts",
    )


def test_qwen_guesses_stay_within_what_is_given_and_what_the_model_can() -> None:
    made = qwen_request.choose(QWEN, Request(max_seq_len=40), SEEN)
    assert (made.profiles.max_seq_len, made.profiles.prefill_lengths) == (40, (40,))
    assert made.guesses[-1].endswith("70 tokens, in steps of 64, but no more than max_seq_len")
    assert made.guesses[-2] == (
        "max sequence length 40: 1 of 3 calibration prompts are longer (up to 70 tokens), and the bundle will refuse "
        "such prompts"
    )
    assert not any("sequence" in guess for guess in qwen_request.choose(QWEN, Request(max_seq_len=70), SEEN).guesses)
    made = qwen_request.choose(QWEN, Request(), [Sizes(500)])
    assert (made.profiles.max_seq_len, made.profiles.prefill_lengths) == (512, (512,))
    assert made.profiles.image_grids == ()


def test_one_graph_of_all_takes_the_images_of_one_prompt() -> None:
    equal = [Sizes(20, (WIDE, SMALL, WIDE)), Sizes(30, (WIDE, SMALL, WIDE))]
    made = qwen_request.choose(QWEN, Request(layers="whole"), equal)
    assert made.profiles == qwen3_vl.Profile(max_seq_len=64, image_grids=(WIDE, SMALL, WIDE), layers="whole")
    with pytest.raises(ProfileError, match="layers='whole' is one graph for prompts with the same images"):
        qwen_request.choose(QWEN, Request(layers="whole"), SEEN)
    made = qwen_request.choose(QWEN, Request(layers="whole", image_grids=(SMALL, SMALL)), SEEN)
    assert made.profiles.image_grids == (SMALL, SMALL)


def test_a_vision_model_alone_gets_a_graph_for_each_grid() -> None:
    made = qwen_request.choose(QWEN.vision_config, Request(), [Sizes(0, (SMALL, WIDE)), Sizes(0, (WIDE,))])
    assert made.profiles == {
        "vision_t1_h4_w4": qwen3_vl.VisionProfile(SMALL),
        "vision_t1_h4_w8": qwen3_vl.VisionProfile(WIDE),
    }
    with pytest.raises(ProfileError, match="a vision model alone has no max_seq_len, layers; leave it out"):
        qwen_request.choose(QWEN.vision_config, Request(max_seq_len=9, layers="stack"), SEEN)


def test_what_qwen_cannot_serve_is_said() -> None:
    with pytest.raises(ProfileError, match=r"the image grid 1x4x5 \(frames x height x width\): "):
        qwen_request.choose(QWEN, Request(image_grids=((1, 4, 5),)), SEEN)
    with pytest.raises(ProfileError, match="max_seq_len 513 is beyond the model's max_position_embeddings, 512"):
        qwen_request.choose(QWEN, Request(max_seq_len=513), SEEN)
    with pytest.raises(UnknownModuleError, match="of a whole Qwen3-VL or of its vision model, not of a qwen3_vl_text"):
        qwen_request.choose(QWEN.text_config, Request(), SEEN)
    many = [Sizes(9, ((1, 2, 2 * width),)) for width in range(1, 10)]
    with pytest.raises(
        ProfileError, match=r"images of 9 grids \(2x2, 2x4, 2x6, \.\.\.\), and a graph is made for each"
    ):
        qwen_request.choose(QWEN, Request(), many)


def test_sizes_of_a_qwen_batch() -> None:
    batch = {
        "input_ids": torch.zeros(2, 7, dtype=torch.int64),
        "image_grid_thw": torch.tensor([SMALL, WIDE]),
        "video_grid_thw": torch.tensor([[3, 4, 4]]),
    }
    assert qwen_request.sizes(batch) == Sizes(7, (SMALL, WIDE, (3, 4, 4)), rows=2)
    assert qwen_request.sizes({"inputs_embeds": torch.zeros(1, 5, 8), "image_grid_thw": torch.zeros(0, 3)}) == Sizes(5)
    with pytest.raises(InputError, match="grid_thw"):
        qwen_request.sizes({"input_ids": batch["input_ids"], "image_grid_thw": torch.tensor([[1, 0, 4]])})


def test_gemma_takes_grids_from_positions_and_leaves_shared_padding_out() -> None:
    positions = torch.full((2, 9, 2), -1)
    positions[0, :4] = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    positions[1, :6] = torch.tensor([[x, y] for y in range(3) for x in range(2)])
    batch = gemma4_request.inputs({"pixel_values": torch.ones(2, 9, 12), "image_position_ids": positions})
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values": (2, 6, 12),
        "pixel_position_ids": (2, 6, 2),
    }
    assert gemma4_request.sizes(batch) == Sizes(0, ((1, 2, 2), (1, 3, 2)), rows=2)
    with pytest.raises(InputError, match="needs pixel_position_ids"):
        gemma4_request.sizes({"pixel_values": torch.ones(1, 2, 3)})
    first = {"pixel_values": torch.ones(2, 9, 12), "image_position_ids": positions.flip(1)}
    assert gemma4_request.inputs(first)["pixel_position_ids"].equal(positions.flip(1)), "padding before the patches"
    none = {"input_ids": torch.ones(1, 3), "pixel_values": torch.ones(0, 9, 12), "image_position_ids": positions[:0]}
    assert gemma4_request.sizes(gemma4_request.inputs(none)) == Sizes(3)


def test_gemma_makes_a_graph_for_each_grid() -> None:
    made = gemma4_request.choose(GEMMA, Request(batch_size=2), [Sizes(0, (SMALL,)), Sizes(0, (WIDE,))])
    assert made.profiles == {
        "vision_h4_w4": gemma4.VisionProfile(grid=(4, 4), batch_size=2),
        "vision_h4_w8": gemma4.VisionProfile(grid=(4, 8), batch_size=2),
    }
    for grid, message in (((1, 4, 5), "do not tile"), ((1, 4, 18), "position table"), ((2, 4, 4), "not 2 frames")):
        with pytest.raises(ProfileError, match=message):
            gemma4_request.choose(GEMMA, Request(image_grids=(grid,)), SEEN)


@pytest.mark.parametrize(
    "wrong",
    [{"max_seq_len": 0}, {"batch_size": 0}, {"prefill_lengths": (4, -1)}, {"image_grids": ((1, 0, 2),)}],
    ids=str,
)
def test_numbers_below_one_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match=f"{next(iter(wrong))}: every number is at least 1"):
        Request(**wrong)


def test_a_class_finds_its_family_or_says_that_there_is_none() -> None:
    assert family_of(Gemma4VisionModel).requests is gemma4_request
    with pytest.raises(UnknownModuleError, match="Linear belongs to no model family of pyquant"):
        family_of(nn.Linear)
