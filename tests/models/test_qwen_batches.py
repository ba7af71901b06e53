# SPDX-License-Identifier: Apache-2.0
"""Prompts and images as inputs, against transformers' own image processor."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from qwen_model_tiny import END, IMAGE, START, config, model

import pyquant
from pyquant.errors import InputError
from pyquant.models import qwen3_vl
from pyquant.models.qwen3_vl import patchify, prompt_batch
from pyquant.wrap import Phase, set_phase


def image(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow_processor() -> Any:
    """transformers' image processor that needs no torchvision; its home moved."""
    for home in ("image_processing_pil_qwen2_vl", "image_processing_qwen2_vl"):
        try:
            module = importlib.import_module(f"transformers.models.qwen2_vl.{home}")
        except ImportError:
            continue
        for name in ("Qwen2VLImageProcessorPil", "Qwen2VLImageProcessor"):
            if hasattr(module, name):
                return getattr(module, name)
    return None


@pytest.mark.parametrize(("patch", "temporal", "merge"), [(4, 2, 2), (16, 2, 2), (4, 1, 1), (2, 2, 3)])
def test_patches_are_those_of_the_processor(patch: int, temporal: int, merge: int) -> None:
    make = pillow_processor()
    assert make is not None
    side = patch * merge
    picture = image(side * 2, side * 3)
    processor = make(
        patch_size=patch, temporal_patch_size=temporal, merge_size=merge, do_resize=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    expected = processor(images=[picture], return_tensors="pt")
    for given in (picture, torch.from_numpy(picture), picture.transpose(2, 0, 1), picture.astype(np.float32) / 255):
        got, grid = patchify(given, patch_size=patch, temporal_patch_size=temporal, merge_size=merge)
        torch.testing.assert_close(got, expected["pixel_values"], rtol=0, atol=1e-6)
        assert list(grid) == expected["image_grid_thw"][0].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts(side: Any) -> None:
    fp = model()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    rows = [[1, 2, image(16, 16), 3], [image(8, 24, 1), image(8, 8, 2), 4, 5, 6], [7]]
    given = prompt_batch(rows, fp.config, pad_token_id=66, side=side)
    assert given["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 6], [1, 2, 2]]
    valid = given["attention_mask"].bool()
    assert given["input_ids"][0, valid[0]].tolist() == [1, 2, START, *[IMAGE] * 4, END, 3]
    assert given["input_ids"][2, valid[2]].tolist() == [7]
    with torch.no_grad():
        expected, got = fp(**given).logits, q(**given).logits
    torch.testing.assert_close(got[valid], expected[valid], rtol=1e-5, atol=1e-5)


REFUSED: dict[str, tuple[Any, str]] = {
    "shape": (np.zeros((8, 8), np.uint8), "an image is"),
    "channels": (np.zeros((8, 8, 4), np.uint8), "an image is"),
    "sides": (image(8, 12), "multiples of 8"),
    "none": (np.zeros((0, 8, 3), np.uint8), "multiples of 8"),
    "integers": (np.zeros((8, 8, 3), np.int32), "uint8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        prompt_batch([[1, given]], config())


def test_empty() -> None:
    for rows in ([], [[1], []]):
        with pytest.raises(InputError, match="at least one row"):
            qwen3_vl.prompt_batch(rows, config())
