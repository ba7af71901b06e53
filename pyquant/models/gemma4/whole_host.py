# SPDX-License-Identifier: Apache-2.0
"""The host of a Gemma4 bundle with the whole model in one graph; and the choice between it and the other one.

It owns what that graph takes besides text. The loop is pyquant.decoder.whole, images and clips are host.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder import host_data, whole
from pyquant.decoder.generation import NextLogits
from pyquant.decoder.host import Run
from pyquant.decoder.turn import Past, Prompt, Turn, cut
from pyquant.errors import InputError
from pyquant.models.gemma4.audio.profiles import AudioProfile, clip_inputs
from pyquant.models.gemma4.flow import flow
from pyquant.models.gemma4.host import Gemma4Host, Given, SoftPrompt
from pyquant.models.gemma4.places import TEXT, Counts, place_index, visual_runs


class WholeGemma4Host(Gemma4Host):
    """Generates with the whole model in one graph (layers="whole"): the images and clips of a prompt are those of the
    profile, in order."""

    NEEDS = whole.NEEDS

    def turn(
        self, input_ids: Tensor, attention_mask: Tensor | None, past: Past | None, options: Mapping[str, Any]
    ) -> Turn:
        whole.refuse_past(past)
        return super().turn(input_ids, attention_mask, past, options)

    def flow(self) -> Mapping[str, Any]:
        towers = self.towers if "media" in self.data else None
        return flow(host_data.of_variants(self.data["variants"]), towers, per_layer=False, whole=self._only())

    def _only(self) -> tuple[list[tuple[int, int]], list[int]]:
        """Shapes of the images and lengths of the clips of the graph, as host_data lists them."""
        items = {each["tower"]: each["items"] for each in self.data["model"].get("media", ())}
        shapes = [(int(height), int(width)) for height, width in items.get("vision", ())]
        return shapes, [int(length) for (length,) in items.get("audio", ())]

    def clip_lengths(self) -> list[int]:
        return self._only()[1]

    def shapes(self) -> list[tuple[int, int]]:
        return self._only()[0]

    def seen(self, run: Run, prompt: Prompt, types: Tensor, given: Given) -> SoftPrompt:
        """In all the places of the graph. Raises InputError for other images or clips than those of the graph."""
        pictures = [*given.images, *given.frames]
        shapes, known = [shape for shape, _ in pictures], self.shapes()
        fits = len(given.clips) == len(self.lengths) and all(map(_holds, self.lengths, given.clips))
        if shapes != known or not fits:
            raise InputError(
                f'this bundle has the model in one graph (layers="whole"), for prompts with images of {known} patches '
                f"and clips of up to {self.lengths} frames, and this one has images of {shapes} and clips of "
                f'{[len(clip) for clip in given.clips]}; export with these, or with layers="stack", which takes any'
            )
        soft = [self.soft_tokens(shape) for shape in shapes]
        images = sum(soft[: len(given.images)])
        counts = Counts(images, sum(soft) - images, sum(self.towers.rows_of_clip(len(clip)) for clip in given.clips))
        index = self._padded_clips(place_index(types, counts), types.numel() + sum(soft), given.clips)
        rows = torch.where(types == TEXT, -1, index - types.numel() + self.batch * self.longest)
        width = prompt.ids.shape[1]
        places = prompt.part(0, width, self.longest)
        pixels = [patches for _, patches in pictures]
        return SoftPrompt(
            places.ids,
            places.real,
            places.positions,
            places.deltas,
            rows=cut(rows, 0, width, self.longest, fill=-1),
            blocks=cut(visual_runs(types), 0, width, self.longest, fill=-1),
            visual=torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True) if pixels else None,
            audio=None,
            clips=tuple(given.clips),
        )

    def soft_tokens(self, shape: tuple[int, int]) -> int:
        """Rows of an image of (height, width) patches."""
        return shape[0] * shape[1] // self.towers.pool**2

    def _padded_clips(self, index: Tensor, first: int, clips: Sequence[Tensor]) -> Tensor:
        """Row indices from `first` on, of clips in turn without padding -> the same with the padding of each graph."""
        shifted, start, row = index.clone(), first, first
        for clip, length in zip(clips, self.lengths, strict=True):
            rows = self.towers.rows_of_clip(len(clip))
            own = (index >= row) & (index < row + rows)
            shifted[own] = index[own] - row + start
            row, start = row + rows, start + self.towers.rows_of_clip(length)
        return shifted

    def steps(self, run: Run, prompt: Prompt, turn: Turn) -> NextLogits:
        assert isinstance(prompt, SoftPrompt)
        inputs: dict[str, Tensor] = {}
        if prompt.visual is not None:
            inputs["pixel_values"] = prompt.visual
        for i, (length, clip) in enumerate(zip(self.lengths, prompt.clips, strict=True)):
            given = clip_inputs(AudioProfile(length), clip[None])
            inputs |= {f"input_features_{i}": given["input_features"], f"audio_mask_{i}": given["attention_mask"]}
        if inputs:
            places = torch.arange(prompt.ids.numel(), dtype=torch.int64, device="cpu").reshape(prompt.ids.shape)
            inputs["place_index"] = torch.where(prompt.rows < 0, places, prompt.rows).int()
        return whole.WholeSteps(self, run, prompt, inputs)


def _holds(length: int, clip: Tensor) -> bool:
    return len(clip) <= length


def host(manifest: Mapping[str, Any]) -> Gemma4Host:
    """The host of a bundle with this manifest. Raises InputError for one that cannot generate."""
    return WholeGemma4Host(manifest) if manifest["layers"] == "whole" else Gemma4Host(manifest)
