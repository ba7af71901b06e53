# SPDX-License-Identifier: Apache-2.0
"""What a user requests of a bundle, what calibration data shows, and the profiles that a family makes of both.

It owns the form that all families share. A family's own is `request.py` in its folder; see
family.Requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from pyquant.errors import ProfileError

Grid = tuple[int, int, int]
MOST_GRIDS = 8  # each is a graph with all weights of the vision model in it


@dataclass(frozen=True)
class Request:
    """What was requested; None or () where the data decides.

    `image_grids` are (frames, height, width) in patches, `prefill_lengths`, `append_lengths` and `max_seq_len` tokens,
    `audio_lengths` frames of mel features, `video_frames` frames of one vision graph (0: one). `per_layer_table` is
    where the table of per-layer embeddings goes (gemma4.Profile).
    """

    max_seq_len: int | None = None
    image_grids: tuple[Grid, ...] = ()
    prefill_lengths: tuple[int, ...] = ()
    batch_size: int = 1
    layers: str | None = None
    attention: str | None = None
    audio_lengths: tuple[int, ...] = ()
    video_frames: int = 0
    append_lengths: tuple[int, ...] = ()
    per_layer_table: str | None = None

    def __post_init__(self) -> None:
        counts: dict[str, list[int]] = {
            "max_seq_len": [] if self.max_seq_len is None else [self.max_seq_len],
            "batch_size": [self.batch_size],
            "prefill_lengths": list(self.prefill_lengths),
            "audio_lengths": list(self.audio_lengths),
            "append_lengths": list(self.append_lengths),
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
    """What one batch shows: how many tokens a row has (0: no text), the grid of each image and video, how many rows,
    and the frames of each audio clip."""

    tokens: int = 0
    grids: tuple[Grid, ...] = ()
    rows: int = 1
    clips: tuple[int, ...] = ()


@dataclass(frozen=True)
class BundleChoice:
    """The profiles for `export_bundle`, the settings they come from, and a line for each that nobody asked for."""

    profiles: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    guesses: tuple[str, ...] = ()


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


ANSWER = 64  # tokens that a guessed max_seq_len leaves for the answer


def text_sizes(batch: Mapping[str, Tensor]) -> Sizes:
    """Tokens of a row, and how many rows; 0 tokens where there is no text."""
    text = next((batch[name] for name in ("input_ids", "inputs_embeds") if name in batch), None)
    return Sizes() if text is None else Sizes(int(text.shape[1]), (), len(text))


def text_options(limit: int, request: Request, seen: Sequence[Sizes]) -> tuple[dict[str, Any], list[str]]:
    """The options of a DecoderProfile, and a line for each that nobody asked for.

    limit: the model's max_position_embeddings. Raises ProfileError for lengths that contradict it.
    """
    guesses: list[str] = []
    longest = max((each.tokens for each in seen), default=0)
    lengths, length = request.prefill_lengths, request.max_seq_len
    whole = request.layers == "whole"
    if length is None:
        prompt, answer = max([longest, *lengths]), 0 if whole else ANSWER
        length = min(rounded(prompt + answer), limit)
        room = f", and {answer} for the answer" if answer else ""
        guesses.append(f"max sequence length {length}: the longest prompt has {prompt} tokens{room}, in steps of 64")
    elif length < longest:
        short = sum(each.tokens > length for each in seen)
        guesses.append(
            f"max sequence length {length}: {short} of {len(seen)} calibration prompts are longer (up to {longest} "
            "tokens), and the bundle will refuse such prompts"
        )
    if length > limit:
        raise ProfileError(f"max_seq_len {length} is beyond the model's max_position_embeddings, {limit}")
    if not lengths and not whole:
        lengths = (min(rounded(longest), length),)
        cut = ", but no more than max_seq_len" if lengths[0] < longest else ""
        guesses.append(f"prefill length {lengths[0]}: the longest prompt has {longest} tokens, in steps of 64{cut}")
    elif lengths and max(lengths) < longest and not request.append_lengths:
        short = sum(each.tokens > max(lengths) for each in seen)
        guesses.append(
            f"prefill lengths {list(lengths)}: {short} of {len(seen)} calibration prompts are longer (up to {longest} "
            "tokens), and the bundle will refuse such prompts"
        )
    options: dict[str, Any] = {"max_seq_len": length, "batch_size": request.batch_size, "prefill_lengths": lengths}
    if request.append_lengths:
        options["append_lengths"] = request.append_lengths
    options |= {name: value for name in ("layers", "attention") if (value := getattr(request, name)) is not None}
    return options, guesses


def as_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a profile as they stand in a recipe: lists for tuples."""
    return {name: _listed(value) for name, value in options.items()}


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def rounded(count: int, unit: int = 64) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit


def _said(grids: Sequence[Grid]) -> str:
    return ", ".join(f"{h}x{w}" if t == 1 else f"{t}x{h}x{w}" for t, h, w in grids)
