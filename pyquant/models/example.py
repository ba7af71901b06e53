# SPDX-License-Identifier: Apache-2.0
"""What a family offers to try it without a checkpoint: a tiny model, and inputs of images and token ids for any of its.

It owns finding the family and resizing an image plainly. A family's own is `example.py` in its room: `tiny_model()`,
`example_inputs(model, images, ids)`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pyquant.errors import InputError, UnknownModuleError

CHANNELS = 3


class Example(Protocol):
    """What the `example.py` of a family's room holds."""

    def tiny_model(self) -> nn.Module:
        """A transformers model of the family, small, with random weights that are the same each time."""

    def example_inputs(
        self, model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Keyword arguments of one call. `images`: arrays or tensors (H, W, 3) or (3, H, W), resized as the model needs
        them; without any and without ids, an image is made up. `ids`: one prompt. Raises InputError."""


def families() -> list[str]:
    """The rooms that have an example."""
    rooms = sorted(path.parent.name for path in Path(__file__).parent.glob("*/example.py"))
    return [room for room in rooms if importlib.util.find_spec(f"{__package__}.{room}.example")]


def example(family: str) -> Example:
    """The example of a room of pyquant/models/, such as `gemma4`. Raises UnknownModuleError."""
    if family not in families():
        raise UnknownModuleError(f"there is no tiny model of {family!r}; there are {', '.join(families())}")
    return cast("Example", importlib.import_module(f"{__package__}.{family}.example"))


def example_of(model: nn.Module) -> Example:
    """The example of the family that a transformers model belongs to. Raises UnknownModuleError."""
    for cls in type(model).__mro__:
        parts = cls.__module__.split(".")
        if parts[:2] == ["transformers", "models"] and len(parts) > 2 and parts[2] in families():
            return example(parts[2])
    raise UnknownModuleError(
        f"pyquant can make no inputs for a {type(model).__name__} by itself; it can for models of "
        f"{', '.join(families())}; use a checkpoint folder with a processor"
    )


def made_up_image(height: int = 32, width: int = 32) -> Tensor:
    """uint8 (height, width, 3): a gradient, a disc and some noise; the same each time."""
    y, x = torch.meshgrid(
        torch.linspace(0, 1, height, dtype=torch.float32, device="cpu"),
        torch.linspace(0, 1, width, dtype=torch.float32, device="cpu"),
        indexing="ij",
    )
    disc = ((x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.06).float()
    noise = torch.rand(height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    return (torch.stack([x, 0.7 * y + 0.3 * disc, 0.5 * disc + 0.2 * noise], dim=-1) * 255).to(torch.uint8)


def resized(image: Any, height: int, width: int) -> Tensor:
    """float32 (3, height, width) in [0, 1], bilinear, whatever the aspect was. Raises InputError for another form."""
    pixels = torch.as_tensor(image, device="cpu")
    if pixels.dim() == 3 and pixels.shape[0] == CHANNELS != pixels.shape[-1]:
        pixels = pixels.permute(1, 2, 0)
    if pixels.dim() != 3 or pixels.shape[-1] != CHANNELS or not pixels.numel():
        raise InputError(
            f"an image is (height, width, {CHANNELS}) or ({CHANNELS}, height, width), got {tuple(pixels.shape)}"
        )
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    planes = pixels.permute(2, 0, 1)[None]
    planes = nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return planes[0].clamp(0, 1)


@torch.no_grad()
def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter at random, in place, so that nothing is left at one or zero: matrices of variance 1 / fan_in,
    gains near 1, biases and tables near 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
        if parameter.dim() == 1:
            parameter.copy_(0.2 * noise if name.endswith("bias") else 1 + 0.2 * noise)
        elif "embed" in name and "proj" not in name:
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model
