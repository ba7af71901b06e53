# SPDX-License-Identifier: Apache-2.0
"""The manifest's `host_data` of a Qwen3-VL bundle: written by bundle.py, and what host.py does with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyquant.decoder import host_data
from pyquant.models.qwen3_vl.grids import Grid

TENSORS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}


def flow(
    text: Mapping[str, Any],
    *,
    merge: int,
    tokens: Mapping[str, int],
    taps: int,
    fused: bool,
    whole: Sequence[Grid] | None = None,
) -> dict[str, Any]:
    """text: the entries of its text model. merge: patches of a side of a row. tokens: image and video -> placeholder.

    taps: layers behind which rows are added. fused: whether prompts may have images. whole: the images of the one graph
    of layers="whole".
    """
    addends = [f"deepstack_{k}" for k in range(taps)]
    found = {
        **text,
        "positions": {"rule": "grids", "merge": merge},
        "media": [
            host_data.media(name, tokens[name], "vision", *tensors, by_frame=name == "video")
            for name, tensors in TENSORS.items()
            if name in tokens
        ],
        "towers": [host_data.tower("vision", "grids", "pixel_values", ["image_embeds", *addends], merge=merge)],
    }
    if whole is not None:
        items = [list(grid) for grid in whole]
        given = [{"tower": "vision", "input": "pixel_values", "items": items}] if items else []
        return {**found, "model": host_data.whole("visual_index", given)}
    if fused:
        rows = ["visual_embeds", *(f"visual_{name}" for name in addends)]
        fusion = host_data.fusion("text_embeds", "visual_index", [("vision", rows)], "inputs_embeds", addends)
        found["embedding"] = [*text["embedding"], fusion]
        found["layer_inputs"] = [{"input": "deepstack", "value": "deepstack_{layer}"}]
    return found
