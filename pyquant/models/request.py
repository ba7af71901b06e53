# SPDX-License-Identifier: Apache-2.0
"""What a user asks of a bundle, what calibration data shows, and what a family makes of both: profiles, and guesses.

It owns the form that all families share. A family's own is `request.py` in its room: `inputs`, `sizes`, `choose`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, cast

from torch import Tensor

from pyquant.errors import ProfileError, UnknownModuleError

Grid = tuple[int, int, int]
MOST_GRIDS = 8  # each is a graph with all weights of the vision model in it


@dataclass(frozen=True)
class Request:
    """What was asked for; None or () where the data is to say it.

    `image_grids` are (frames, height, width) in patches, `prefill_lengths` and `max_seq_len` tokens.
    """

    max_seq_len: int | None = None
    image_grids: tuple[Grid, ...] = ()
    prefill_lengths: tuple[int, ...] = ()
    batch_size: int = 1
    layers: str | None = None
    attention: str | None = None

    def __post_init__(self) -> None:
        counts: dict[str, list[int]] = {
            "max_seq_len": [] if self.max_seq_len is None else [self.max_seq_len],
            "batch_size": [self.batch_size],
            "prefill_lengths": list(self.prefill_lengths),
            "image_grids": [side for grid in self.image_grids for side in grid],
        }
        for name, values in counts.items():
            if any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in values):
                raise ProfileError(f"{name}: every number is at least 1, got {getattr(self, name)}")

    def refuse(self, names: Sequence[str], what: str) -> None:
        """Raise ProfileError when one of `names` was asked for, which `what` has no use for."""
        default = {each.name: each.default for each in fields(self)}
        given = [name for name in names if getattr(self, name) != default[name]]
        if given:
            raise ProfileError(f"{what} has no {', '.join(given)}; leave it out")


@dataclass(frozen=True)
class Sizes:
    """What one batch shows: how many tokens a row has (0: no text), the grid of each image and video, how many rows."""

    tokens: int = 0
    grids: tuple[Grid, ...] = ()
    rows: int = 1


@dataclass(frozen=True)
class BundleChoice:
    """The profiles for `export_bundle`, the settings they come from, and a line for each that nobody asked for."""

    profiles: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    guesses: tuple[str, ...] = ()


class Family(Protocol):
    """What the `request.py` of a family's room holds."""

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a processor or a file gives, under the names of the model's arguments."""

    def sizes(self, batch: Mapping[str, Tensor]) -> Sizes:
        """What a batch of the model's arguments shows. Raises InputError."""

    def choose(self, config: Any, request: Request, seen: Sequence[Sizes]) -> BundleChoice:
        """Profiles for a model of `config`. Raises ProfileError for a request that it cannot serve."""


def family_of(cls: type) -> Family:
    """The family of a transformers class. Raises UnknownModuleError for one that has no bundles here."""
    parts = cls.__module__.split(".")
    room = f"{__package__}.{parts[2]}" if parts[:2] == ["transformers", "models"] and len(parts) > 2 else ""
    if not room or not importlib.util.find_spec(room) or not importlib.util.find_spec(f"{room}.request"):
        raise UnknownModuleError(
            f"pyquant makes no bundles of a {cls.__name__} by itself; quantize it from Python, with a profile of your "
            f"own: pyquant.prepare, calibrate, convert, export"
        )
    return cast("Family", importlib.import_module(f"{room}.request"))


def grids_of(request: Request, seen: Sequence[Sizes]) -> tuple[tuple[Grid, ...], list[str]]:
    """The grids asked for, or else all that the data has; and the guess in words. Raises ProfileError for too many."""
    if request.image_grids:
        return tuple(dict.fromkeys(request.image_grids)), []
    found = tuple(sorted({grid for sizes in seen for grid in sizes.grids}))
    if len(found) > MOST_GRIDS:
        raise ProfileError(
            f"the calibration data has images of {len(found)} grids ({_said(found[:3])}, ...), and a graph is made for "
            f"each; name those that the device will use: --image-grid HxW (in Python: image_grids)"
        )
    return found, [f"image grids {_said(found)}: those of the calibration data"] if found else []


def rounded(count: int, unit: int = 64) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit


def _said(grids: Sequence[Grid]) -> str:
    return ", ".join(f"{h}x{w}" if t == 1 else f"{t}x{h}x{w}" for t, h, w in grids)
