# SPDX-License-Identifier: Apache-2.0
"""Images become patches and positions, in the order that transformers' image processor has (it needs torchvision)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyquant.errors import InputError
from pyquant.models.gemma4 import image_batches, patchify


def image(height: int, width: int) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height * 100 + width))


def test_patches_are_rows_of_y_x_channel():
    pixels = image(8, 12)
    patches, positions = patchify(pixels, 2)
    assert patches.shape == (24, 12)
    for patch, (x, y) in zip(patches, positions.tolist(), strict=True):
        assert torch.equal(patch, pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten())
    assert positions[:7].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [5, 0], [0, 1]]


FORMS = {
    "channels_first": lambda pixels: pixels.permute(2, 0, 1),
    "numpy": lambda pixels: pixels.numpy(),
    "float64": lambda pixels: pixels.double().numpy(),
    "uint8": lambda pixels: (pixels * 255).round().to(torch.uint8).numpy(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_an_image_gives_the_same(form):
    pixels = (image(4, 8) * 255).round() / 255
    patches, _ = patchify(form(pixels), 2)
    torch.testing.assert_close(patches, patchify(pixels, 2)[0], rtol=0, atol=1e-6)
    assert patches.dtype == torch.float32


def test_batches_pad_to_the_largest_image():
    given = list(
        image_batches([image(8, 8), image(4, 8), image(4, 4)], patch_size=2, pooling_kernel_size=2, batch_size=2)
    )
    assert [tuple(batch["pixel_values"].shape) for batch in given] == [(2, 16, 12), (1, 4, 12)]
    assert (given[0]["pixel_position_ids"][1, 8:] == -1).all()
    assert (given[0]["pixel_values"][1, 8:] == 0).all()
    assert (given[1]["pixel_position_ids"] >= 0).all()


def test_batches_pad_to_num_patches():
    (batch,) = image_batches([image(4, 4)], patch_size=2, pooling_kernel_size=2, num_patches=12)
    assert batch["pixel_position_ids"].shape == (1, 12, 2)


BAD = {
    "gray": (np.zeros((4, 4)), r"an image is \(height, width, 3\) or \(3, height, width\), got \(4, 4\)"),
    "rgba": (np.zeros((4, 4, 4)), r"got \(4, 4, 4\)"),
    "odd_sides": (np.zeros((4, 6, 3)), "4 x 6 pixels, but its sides must be multiples of 4"),
    "integers": (np.zeros((4, 4, 3), dtype=np.int64), "uint8 from 0 to 255 or floating point .* got torch.int64"),
    "too_large": (np.zeros((8, 8, 3)), "image 0 has 16 patches, more than num_patches=4"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_other_images_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        list(image_batches([bad], patch_size=2, pooling_kernel_size=2, num_patches=4))


def test_a_batch_of_none_is_refused():
    with pytest.raises(InputError, match="batch_size is a positive integer, got 0"):
        list(image_batches([image(4, 4)], patch_size=2, pooling_kernel_size=2, batch_size=0))
