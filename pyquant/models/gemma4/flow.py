# SPDX-License-Identifier: Apache-2.0
"""The manifest's `host_data` of a Gemma4 bundle: written by bundle.py, and what host.py does with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyquant.decoder import host_data
from pyquant.models.gemma4 import table

if TYPE_CHECKING:
    from typing_extensions import Self

TENSORS = {
    "image": ("vision", "pixel_values", "image_position_ids"),
    "video": ("vision", "pixel_values_videos", "video_position_ids"),
    "audio": ("audio", "input_features", "input_features_mask"),
}


@dataclass(frozen=True)
class Towers:
    """What a host knows of images, videos and clips.

    tokens: image, video, audio -> placeholder, of those that the model has. pad: the token whose row stands for them.
    pool: patches of a side of a row, 0 without graphs for images; at_once: how many frames of a video one graph takes.
    frames_per_token: of a clip, 0 without graphs for clips. together: variants of layers whose images see themselves,
    and whether within the window alone; None without any.
    """

    tokens: Mapping[str, int]
    pad: int = 0
    pool: int = 0
    at_once: int = 0
    frames_per_token: int = 0
    together: tuple[Sequence[str], bool] | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Of a manifest's host_data; a text model has none of them."""
        if "media" not in data:
            return cls({})
        towers = {each["name"]: each for each in data["towers"]}
        vision, audio, blocks = towers.get("vision", {}), towers.get("audio", {}), data.get("together")
        return cls(
            {str(each["name"]): int(each["token_id"]) for each in data["media"]},
            int(data["placeholder_id"]),
            int(vision.get("pool", 0)),
            int(vision.get("at_once", 0)),
            int(audio.get("frames_per_token", 0)),
            None if blocks is None else (list(blocks["variants"]), bool(blocks["bounded"])),
        )

    def rows_of_clip(self, frames: int) -> int:
        """Rows of a clip of so many frames."""
        return -(-frames // self.frames_per_token)


def flow(
    text: Mapping[str, Any],
    towers: Towers | None,
    *,
    per_layer: bool,
    whole: tuple[Sequence[Sequence[int]], Sequence[int]] | None = None,
) -> dict[str, Any]:
    """text: the entries of its text model. towers: None for a text model. per_layer: whether layers take inputs of
    their own. whole: shapes of images and lengths of clips of the one graph of layers="whole"."""
    found = dict(text) if towers is None else {**text, **_media(towers)}
    if whole is not None:
        return {**found, "model": host_data.whole("place_index", _items(*whole))}
    rows = {"vision": "image_embeds", "audio": "audio_embeds"}
    given = {each["name"] for each in found.get("towers", ())}
    segments = [(name, [each]) for name, each in rows.items() if name in given]
    embedding = list(text["embedding"])
    if segments:
        embedding.append(host_data.fusion("text_embeds", "place_index", segments, "inputs_embeds"))
    if per_layer:
        hidden, made = {"inputs_embeds": host_data.HIDDEN}, table.OUTPUT
        embedding += [
            host_data.step(table.NAME, {"input_ids": host_data.IDS}, {made: made}),
            host_data.step("per_layer_projection", {**hidden, made: made}, {"per_layer_inputs": "per_layer_inputs"}),
        ]
        found["layer_inputs"] = [{"input": "per_layer_input", "value": "per_layer_inputs", "axis": 2}]
    return {**found, "embedding": embedding}


def _media(towers: Towers) -> dict[str, Any]:
    """Placeholders, towers and which places see each other."""
    entries = list[dict[str, Any]]()
    if towers.pool:
        numbers: dict[str, Any] = {"pool": towers.pool, "at_once": towers.at_once}
        entries.append(host_data.tower("vision", "places", "pixel_values", ["image_embeds"], **numbers))
    if towers.frames_per_token:
        numbers = {"mask": "attention_mask", "frames_per_token": towers.frames_per_token}
        entries.append(host_data.tower("audio", "frames", "input_features", ["audio_embeds"], **numbers))
    media = [host_data.media(name, towers.tokens[name], *TENSORS[name]) for name in TENSORS if name in towers.tokens]
    found: dict[str, Any] = {"placeholder_id": towers.pad, "media": media, "towers": entries}
    if towers.together is not None:
        variants, bounded = towers.together
        found["together"] = {"media": ["image", "video"], "variants": list(variants), "bounded": bounded}
    return found


def _items(shapes: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """What a prompt of the one graph has to have, in order."""
    items = list[dict[str, Any]]()
    if shapes:
        items.append({"tower": "vision", "input": "pixel_values", "items": [list(shape) for shape in shapes]})
    if lengths:
        names = {"input": "input_features_{item}", "mask": "audio_mask_{item}"}
        items.append({"tower": "audio", **names, "items": [[length] for length in lengths]})
    return items
