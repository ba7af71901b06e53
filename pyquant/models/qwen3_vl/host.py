# SPDX-License-Identifier: Apache-2.0
"""The host side of a Qwen3-VL bundle: what comes before the decoder's graphs, from the manifest alone.

It owns visual rows, their places in the prompt and positions. Padding, masks, cache and the loop over tokens are
pyquant.decoder.host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.host import Embedded, Host, Prompt, Run, Sampler, compact
from pyquant.errors import InputError
from pyquant.models.qwen3_vl.fusion import visual_index
from pyquant.models.qwen3_vl.grids import Grid, grids_of
from pyquant.models.qwen3_vl.pixels import present, require_floating
from pyquant.models.qwen3_vl.positions import rope_index, token_types, visual_tokens
from pyquant.models.qwen3_vl.text import named_addends


class Qwen3VLHost(Host):
    """Generates text with the graphs of one Qwen3-VL bundle. Keeps nothing between calls."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        super().__init__(manifest)
        self.merge = int(manifest["positions"]["spatial_merge_size"])

    @torch.no_grad()
    def generate(
        self,
        run: Run,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        *,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        max_new_tokens: int = 20,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """input_ids (B, S) -> (B, S + new), as transformers' generate: rows that have ended go on with padding.

        Greedy, or what `sampler` chooses. eos_token_id and pad_token_id default to those of the model. Raises
        InputError for prompts, images or lengths that the bundle has no graph or no room for.
        """
        ids, mask = self.checked(input_ids, attention_mask)
        length = self.bucket(int(mask.sum(dim=1).max()), max_new_tokens)
        types = self._types(ids, mask, mm_token_type_ids)
        ids_in, types_in, real = (compact(t, mask, length) for t in (ids, types, mask))
        visual = self._visual(run, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
        positions, deltas = rope_index(types_in, *visual.grids, real, merge=self.merge)
        return self.loop(
            run,
            ids,
            mask,
            Prompt(ids_in, real, positions, deltas),
            self._embedded(run, ids_in, types_in * real, visual),
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            sampler=sampler,
        )

    def _types(self, ids: Tensor, mask: Tensor, given: Tensor | None) -> Tensor:
        places = self.manifest["positions"]
        types = token_types(ids, places["image_token_id"], places["video_token_id"])
        if given is not None and not torch.equal(given.long().cpu()[mask], types[mask]):
            raise InputError("mm_token_type_ids contradict the placeholder tokens in input_ids; leave them out")
        return types

    # --- visual rows ---

    def _visual(
        self,
        run: Run,
        pixels: Tensor | None,
        image_grid_thw: Any,
        video_pixels: Tensor | None,
        video_grid_thw: Any,
    ) -> Visual:
        images, image_grids = self._tower(run, pixels, image_grid_thw, "pixel_values", "image_grid_thw")
        videos, video_grids = self._tower(run, video_pixels, video_grid_thw, "pixel_values_videos", "video_grid_thw")
        made = images + videos
        count = sum(visual_tokens(grid, self.merge) for grid in image_grids)
        rows = [torch.cat(parts) for parts in zip(*made, strict=True)]
        return Visual(rows, count, (len(rows[0]) if rows else 0) - count, (image_grids, video_grids))

    def _tower(
        self, run: Run, pixels: Tensor | None, grid_thw: Any, source: str, name: str
    ) -> tuple[list[list[Tensor]], tuple[Grid, ...]]:
        """What the vision graphs make of each image or frame, [image_embeds, deepstack_0, ...]."""
        pixels, grid_thw = present(pixels, grid_thw)
        if pixels is None and grid_thw is None:
            return [], ()
        if pixels is None or grid_thw is None:
            raise InputError(f"{source} and {name} belong together, and only one of them is given")
        require_floating(pixels)
        grids = grids_of(grid_thw, self.merge, pixels.shape[0])
        made, start = [], 0
        for graph, frames, patches in [call for grid in grids for call in self._calls(grid)]:
            for _ in range(frames):
                out = run(graph, {"pixel_values": pixels[start : start + patches].float()})
                made.append([out["image_embeds"], *(out[f"deepstack_{k}"] for k in range(self.manifest["deepstack"]))])
                start += patches
        return made, grids

    def _calls(self, grid: Grid) -> list[tuple[str, int, int]]:
        """(graph, how often, patches each): frames never attend to each other, so a video may go frame by frame."""
        t, h, w = grid
        for frames, name in ((1, _vision(grid)), (t, _vision((1, h, w)))):
            if name in self.graphs:
                return [(name, frames, t * h * w // frames)]
        known = [tuple(held) for held in self.manifest["image_grids"]]
        raise InputError(
            f"this bundle has no vision graph for the grid {grid}, only for {known}; resize the image to one of them, "
            "or export with this grid in image_grids"
        )

    # --- into the decoder ---

    def _embedded(self, run: Run, ids: Tensor, types: Tensor, visual: Visual) -> Embedded:
        """What enters the first layer (B, S, D), and the deepstack addends of the same shape."""
        length = ids.shape[1]
        hidden = self.tokens(run, ids)
        index = visual_index(types, visual.images, visual.videos)
        if not visual.rows:
            return Embedded(hidden, named_addends([torch.zeros_like(hidden)] * self.manifest["deepstack"]))
        name = f"fusion_s{length}"
        room = int(self.graphs[name]["visual_tokens"])
        rows, *deepstack = (torch.cat([part, part.new_zeros(room - len(part), part.shape[1])]) for part in visual.rows)
        inputs = {"text_embeds": hidden, "visual_embeds": rows, "visual_index": index.int()}
        out = run(name, inputs | {f"visual_deepstack_{k}": feature for k, feature in enumerate(deepstack)})
        return Embedded(out["inputs_embeds"], named_addends([out[f"deepstack_{k}"] for k in range(len(deepstack))]))

    def layer_extras(self, layer: int, embedded: Embedded) -> Mapping[str, Tensor]:
        addend = embedded.extras.get(f"deepstack_{layer}")
        return {} if addend is None else {"deepstack": addend}


@dataclass(frozen=True)
class Visual:
    """[rows, deepstack_0, ...] of all images, then all videos; how many of each; their grids."""

    rows: list[Tensor]
    images: int
    videos: int
    grids: tuple[tuple[Grid, ...], tuple[Grid, ...]]


def _vision(grid: Grid) -> str:
    return f"vision_t{grid[0]}_h{grid[1]}_w{grid[2]}"
