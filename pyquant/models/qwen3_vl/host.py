# SPDX-License-Identifier: Apache-2.0
"""The host side of a Qwen3-VL bundle: what comes before the decoder's graphs, from the manifest alone.

It owns visual rows, their places in the prompt and positions, and the host of the whole model in one graph. Padding,
masks and cache are pyquant.decoder.host, the loop over tokens pyquant.decoder.generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyquant.decoder import host_data, whole
from pyquant.decoder.generation import NextLogits
from pyquant.decoder.host import Embedded, Host, Run
from pyquant.decoder.turn import Past, Prompt, Turn, check_types, cut
from pyquant.errors import InputError
from pyquant.models.qwen3_vl.flow import flow
from pyquant.models.qwen3_vl.fusion import visual_index
from pyquant.models.qwen3_vl.grids import Grid, grids_of
from pyquant.models.qwen3_vl.pixels import present, require_floating
from pyquant.models.qwen3_vl.positions import rope_index, token_types, visual_tokens
from pyquant.models.qwen3_vl.text import named_addends

if TYPE_CHECKING:
    from typing_extensions import Self


class Qwen3VLHost(Host):
    """Generates text with the graphs of one Qwen3-VL bundle. Keeps nothing between calls."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        data = host_data.read(manifest)
        self.merge = int(data["positions"]["merge"])
        self.placeholders = {str(media["name"]): int(media["token_id"]) for media in data["media"]}
        self.taps = len(data["towers"][0]["outputs"]) - 1
        super().__init__(manifest)

    def flow(self) -> dict[str, Any]:
        """What it does, with the numbers and names that it reads."""
        return flow(
            super().flow(),
            merge=self.merge,
            tokens=self.placeholders,
            taps=self.taps,
            fused=bool(self._of("fusion")),
            whole=self.only(),
        )

    def only(self) -> Sequence[Grid] | None:
        """The images that every prompt has to have; None: any that there is a graph for."""
        return None

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
        past: Past | None = None,
        **options: Any,
    ) -> Tensor:
        """input_ids (B, S) -> (B, S + new), as transformers' generate: rows that have ended go on with padding.

        Images and videos are those of input_ids. past: the conversation that input_ids continue; see Session.chat.
        options: see GenerationRequest; what they leave open follows the model's generation config. Raises InputError
        for prompts, images or lengths that the bundle has no graph or no room for, and for options that it cannot do.
        """
        turn = self.turn(input_ids, attention_mask, past, options)
        types = self._types(turn.ids) * turn.real
        check_types(mm_token_type_ids, self._types(input_ids.long().cpu()), turn.all_real[:, turn.before :])
        images = self._visuals(pixel_values, image_grid_thw, "pixel_values", "image_grid_thw")
        videos = self._visuals(pixel_values_videos, video_grid_thw, "pixel_values_videos", "video_grid_thw")
        start = turn.state.lengths + turn.state.deltas[:, 0]
        positions, deltas = rope_index(types, images.grids, videos.grids, turn.real, merge=self.merge, start=start)
        prompt = Prompt(turn.ids, turn.real, positions, turn.state.deltas + deltas)
        return self.answer(run, turn, self.seen(run, prompt, types, images, videos), past)

    def seen(self, run: Run, prompt: Prompt, types: Tensor, images: Visuals, videos: Visuals) -> Prompt:
        """`prompt`, whose places are of `types` (B, S), with what the tower makes of its images."""
        index = visual_index(types, images.tokens(self.merge), videos.tokens(self.merge))
        made = [row for each in (images, videos) for row in self._tower(run, each)]
        features = tuple(torch.cat(parts) for parts in zip(*made, strict=True))
        return VisualPrompt(*_fields(prompt), (index - index.numel()).clamp(min=-1), features)

    def _types(self, ids: Tensor) -> Tensor:
        return token_types(ids, self.placeholders["image"], self.placeholders["video"])

    # --- visual rows ---

    def _visuals(self, pixels: Tensor | None, grid_thw: Any, source: str, name: str) -> Visuals:
        pixels, grid_thw = present(pixels, grid_thw)
        if pixels is None and grid_thw is None:
            return Visuals(None, ())
        if pixels is None or grid_thw is None:
            raise InputError(f"{source} and {name} belong together, and only one of them is given")
        require_floating(pixels)
        return Visuals(pixels.float(), grids_of(grid_thw, self.merge, pixels.shape[0]))

    def _tower(self, run: Run, visuals: Visuals) -> list[list[Tensor]]:
        """What the vision graphs make of each image or frame, [image_embeds, deepstack_0, ...]."""
        made, start = [], 0
        for graph, frames, patches in [call for grid in visuals.grids for call in self._calls(grid)]:
            for _ in range(frames):
                assert visuals.pixels is not None
                out = run(graph, {"pixel_values": visuals.pixels[start : start + patches]})
                made.append([out["image_embeds"], *(out[f"deepstack_{k}"] for k in range(self.taps))])
                start += patches
        return made

    def _calls(self, grid: Grid) -> list[tuple[str, int, int]]:
        """(graph, how often, patches each): frames never attend to each other, so a video may go frame by frame."""
        t, h, w = grid
        for frames, name in ((1, _vision(grid)), (t, _vision((1, h, w)))):
            if name in self.graphs:
                return [(name, frames, t * h * w // frames)]
        known = [tuple(each) for name in self._of("vision") for each in self.graphs[name]["grids"]]
        raise InputError(
            f"this bundle has no vision graph for the grid {grid}, only for {known}; resize the image to one of them, "
            "or export with this grid in image_grids"
        )

    # --- into the decoder ---

    def embedded(self, run: Run, prompt: Prompt) -> Embedded:
        """What enters the first layer (B, S, D), and the deepstack addends of the same shape."""
        hidden = self.tokens(run, prompt.ids)
        if not isinstance(prompt, VisualPrompt) or not bool((prompt.rows >= 0).any()):
            return Embedded(hidden, named_addends([torch.zeros_like(hidden)] * self.taps))
        used = prompt.rows[prompt.rows >= 0].sort().values
        batch, length = prompt.ids.shape
        text = torch.arange(batch * length, dtype=torch.int64, device="cpu").reshape(batch, length)
        index = torch.where(prompt.rows < 0, text, batch * length + torch.searchsorted(used, prompt.rows))
        name = f"fusion_s{length}"
        rows, *deepstack = (_filled(each[used], int(self.graphs[name]["visual_tokens"])) for each in prompt.features)
        inputs = {"text_embeds": hidden, "visual_embeds": rows, "visual_index": index.int()}
        out = run(name, inputs | {f"visual_deepstack_{k}": feature for k, feature in enumerate(deepstack)})
        return Embedded(out["inputs_embeds"], named_addends([out[f"deepstack_{k}"] for k in range(len(deepstack))]))

    def layer_extras(self, layer: int, embedded: Embedded) -> Mapping[str, Tensor]:
        addend = embedded.extras.get(f"deepstack_{layer}")
        return {} if addend is None else {"deepstack": addend}


@dataclass(frozen=True)
class VisualPrompt(Prompt):
    """A Prompt with images: `rows` (B, S) says which row of each of `features` (visual tokens, D) a place holds, -1 for
    text."""

    rows: Tensor
    features: tuple[Tensor, ...]

    def part(self, start: int, stop: int, length: int) -> Self:
        return replace(super().part(start, stop, length), rows=cut(self.rows, start, stop, length, fill=-1))


@dataclass(frozen=True)
class Visuals:
    """Images, or videos: all pixels (patches, pixels of a patch) float32, None without any; and the grids."""

    pixels: Tensor | None
    grids: tuple[Grid, ...]

    def tokens(self, merge: int) -> int:
        """Rows that the tower makes of them."""
        return sum(visual_tokens(grid, merge) for grid in self.grids)


class WholeHost(Qwen3VLHost):
    """Generates with the whole model in one graph (layers="whole"), which runs once for each token, without a cache.

    The images of a prompt are those of the profile, in order.
    """

    NEEDS = whole.NEEDS

    def only(self) -> Sequence[Grid]:
        """The images of the graph."""
        return [(t, h, w) for each in self.data["model"].get("media", ()) for t, h, w in each["items"]]

    def turn(
        self, input_ids: Tensor, attention_mask: Tensor | None, past: Past | None, options: Mapping[str, Any]
    ) -> Turn:
        whole.refuse_past(past)
        return super().turn(input_ids, attention_mask, past, options)

    def seen(self, run: Run, prompt: Prompt, types: Tensor, images: Visuals, videos: Visuals) -> Prompt:
        """In all the places of the graph. Raises InputError for other images than those of the graph."""
        grids, known = [*images.grids, *videos.grids], self.only()
        if grids != known:
            raise InputError(
                f'this bundle has the model in one graph (layers="whole"), for prompts with images (then videos) of '
                f"the grids {known}, and this one has {grids}; export with these as image_grids, or with "
                'layers="stack", which takes any of its grids'
            )
        width = prompt.ids.shape[1]
        prompt, types = prompt.part(0, width, self.longest), cut(types, 0, width, self.longest)
        index = visual_index(types, images.tokens(self.merge), videos.tokens(self.merge))
        pixels = [each.pixels for each in (images, videos) if each.pixels is not None]
        return VisualPrompt(*_fields(prompt), index, (torch.cat(pixels),) if pixels else ())

    def steps(self, run: Run, prompt: Prompt, turn: Turn) -> NextLogits:
        assert isinstance(prompt, VisualPrompt)
        visual = {"pixel_values": prompt.features[0], "visual_index": prompt.rows.int()} if prompt.features else {}
        return whole.WholeSteps(self, run, prompt, visual)


def host(manifest: Mapping[str, Any]) -> Qwen3VLHost:
    """The host of a bundle with this manifest. Raises InputError for one that cannot generate."""
    return WholeHost(manifest) if manifest["layers"] == "whole" else Qwen3VLHost(manifest)


def _vision(grid: Grid) -> str:
    return f"vision_t{grid[0]}_h{grid[1]}_w{grid[2]}"


def _fields(prompt: Prompt) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return prompt.ids, prompt.real, prompt.positions, prompt.deltas


def _filled(rows: Tensor, count: int) -> Tensor:
    """(rows, D) and zeros up to `count` rows."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])
