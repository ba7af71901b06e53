# SPDX-License-Identifier: Apache-2.0
"""The host side of a Gemma4 bundle: what comes before the decoder's graphs, from the manifest alone.

It owns rows of images, videos and audio, their places in the prompt, and per-layer inputs. Padding, masks and cache are
pyquant.decoder.host, the loop over tokens pyquant.decoder.generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyquant.decoder import host_data
from pyquant.decoder.host import Embedded, Host, Run
from pyquant.decoder.layout import Variant
from pyquant.decoder.turn import Past, Prompt, Turn, check_types, cut
from pyquant.errors import InputError
from pyquant.models.gemma4 import table
from pyquant.models.gemma4.audio.profiles import AudioProfile, clip_inputs
from pyquant.models.gemma4.flow import Towers, flow
from pyquant.models.gemma4.images import Picture, frames_of, groups, ordered
from pyquant.models.gemma4.places import TEXT, TOKENS, Counts, place_index, types_of, visual_runs

if TYPE_CHECKING:
    from typing_extensions import Self


class Gemma4Host(Host):
    """Generates text with the graphs of one Gemma4 bundle. Keeps nothing between calls."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.towers = Towers.of(host_data.read(manifest))
        tokens = self.towers.tokens
        self.placeholders = {kind: tokens.get(name.removesuffix("_token_id")) for kind, name in TOKENS.items()}
        super().__init__(manifest)
        self.lengths = self.clip_lengths()
        self.per_layer_inputs = bool(self._of("per_layer_projection"))

    def flow(self) -> Mapping[str, Any]:
        """What it does, with the numbers and names that it reads."""
        towers = self.towers if "media" in self.data else None
        return flow(super().flow(), towers, per_layer=bool(self._of("per_layer_projection")))

    def clip_lengths(self) -> list[int]:
        """Frames of the graphs for clips."""
        return sorted(int(self.graphs[name]["frames"]) for name in self._of("audio"))

    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) in patches of the graphs for images."""
        found = (tuple(self.graphs[name]["shape"]) for name in self._of("vision"))
        return list(dict.fromkeys((height, width) for height, width in found))

    @torch.no_grad()
    def generate(
        self,
        run: Run,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        *,
        pixel_values_videos: Tensor | None = None,
        video_position_ids: Tensor | None = None,
        num_frames_per_video: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        past: Past | None = None,
        **options: Any,
    ) -> Tensor:
        """input_ids (B, S) -> (B, S + new), as transformers' generate: rows that have ended go on with padding.

        Images, videos and clips are those of input_ids, in the forms that QuantGemma4Model takes. past: the
        conversation that input_ids continue; see Session.chat. options: see GenerationRequest; what they leave open
        follows the model's generation config. Raises InputError for prompts, images, clips or lengths that the bundle
        has no graph or no room for, and for options that it cannot do.
        """
        turn = self.turn(input_ids, attention_mask, past, options)
        types = types_of(turn.ids, self.placeholders) * turn.real
        frames: list[Picture] = []
        if pixel_values_videos is not None:
            each, at, _ = frames_of(pixel_values_videos, video_position_ids, num_frames_per_video)
            frames = ordered(each, at, "pixel_values_videos")
        given = Given(
            [] if pixel_values is None else ordered(pixel_values, image_position_ids, "pixel_values"),
            frames,
            _clips(input_features, input_features_mask),
        )
        own = types_of(input_ids.long().cpu(), self.placeholders)
        check_types(mm_token_type_ids, own, turn.all_real[:, turn.before :])
        prompt = self.seen(run, turn.prompt(), types, given)
        self._check_parts(turn, prompt.blocks)
        return self.answer(run, turn, prompt, past)

    def seen(self, run: Run, prompt: Prompt, types: Tensor, given: Given) -> SoftPrompt:
        """`prompt`, whose places are of `types` (B, S), with what the towers make of its images and clips."""
        images, videos, clips = (
            self._pictures(run, given.images),
            self._pictures(run, given.frames),
            self._audio(run, given.clips),
        )
        counts = Counts(*(0 if rows is None else len(rows) for rows in (images, videos, clips)))
        rows = [each for each in (images, videos) if each is not None]
        index = (place_index(types, counts) - types.numel()).masked_fill(types == TEXT, -1)
        return SoftPrompt(
            prompt.ids,
            prompt.real,
            prompt.positions,
            prompt.deltas,
            rows=index,
            blocks=visual_runs(types),
            visual=torch.cat(rows) if rows else None,
            audio=clips,
        )

    def _check_parts(self, turn: Turn, blocks: Tensor) -> None:
        """Raise InputError where a prompt that goes through several graphs is cut within an image whose tokens see each
        other."""
        width = turn.ids.shape[1]
        for _, _, stop, _ in self.parts(width, turn.continues) if self.towers.together else ():
            if stop < width and bool(((blocks[:, stop - 1] == blocks[:, stop]) & (blocks[:, stop] >= 0)).any()):
                raise InputError(
                    f"the prompt has {width} tokens and is cut at token {stop}, within an image, whose tokens see each "
                    "other; export with a prefill length that holds the prompt up to the end of the image"
                )

    # --- rows of towers ---

    def _pictures(self, run: Run, pictures: Sequence[Picture]) -> Tensor | None:
        """Rows (n, D) of images or frames in turn."""
        if not pictures:
            return None
        found = list[Tensor]()
        for (height, width), several in groups(pictures, self.towers.at_once):
            frames = f"f{len(several)}_" if len(several) > 1 else ""
            name = f"vision_{frames}h{height}_w{width}"
            if name not in self.graphs:
                known = self.shapes()
                only = f", only for {known}; resize the image to one of them, or" if known else ", nor for any other;"
                raise InputError(
                    f"this bundle has no vision graph for an image of {(height, width)} patches{only} "
                    "export with this shape in image_shapes"
                )
            found.append(run(name, {"pixel_values": several})["image_embeds"])
        return torch.cat(found)

    def _audio(self, run: Run, clips: Sequence[Tensor]) -> Tensor | None:
        """Rows (n, D) of clips (frames, mel) in turn."""
        if not clips:
            return None
        found = list[Tensor]()
        for clip in clips:
            fitting = [length for length in self.lengths if length >= len(clip)]
            if not fitting:
                only = f", only for {self.lengths}; cut the clip, or" if self.lengths else ", nor for any other;"
                raise InputError(
                    f"this bundle has no audio graph for a clip of {len(clip)} frames{only} "
                    "export with a longer one in audio_lengths"
                )
            profile = AudioProfile(min(fitting))
            out = run(profile.name, clip_inputs(profile, clip[None]))
            found.append(out["audio_embeds"][: self.towers.rows_of_clip(len(clip))])
        return torch.cat(found)

    # --- into the decoder ---

    def embedded(self, run: Run, prompt: Prompt) -> Embedded:
        """What enters the first layer (B, S, D), and the per-layer inputs (B, S, L, P)."""
        ids = self.text_ids(prompt.ids)
        hidden = self.tokens(run, ids)
        if isinstance(prompt, SoftPrompt) and bool((prompt.rows >= 0).any()):
            hidden = self._joined(run, hidden, prompt)
        if not self.per_layer_inputs:
            return Embedded(hidden)
        given = {"inputs_embeds": hidden, "per_layer_tokens": self.per_layer_tokens(run, ids)}
        made = run(f"per_layer_projection_s{ids.shape[1]}", given)["per_layer_inputs"]
        return Embedded(hidden, {"per_layer_inputs": made})

    def text_ids(self, ids: Tensor) -> Tensor:
        """The padding token at places of images, videos and audio."""
        for token in self.placeholders.values():
            if token is not None:
                ids = ids.masked_fill(ids == token, self.towers.pad)
        return ids

    def embedded_token(self, run: Run, token: Tensor) -> Embedded:
        zeros = torch.zeros(len(token), 1, dtype=torch.int64, device="cpu")
        return self.embedded(run, Prompt(token[:, None], zeros == 0, zeros[None], zeros))

    def per_layer_tokens(self, run: Run, ids: Tensor) -> Tensor:
        """Rows (B, S, L * P) of the per-layer table."""

        def named(name: str) -> str:
            fixed = f"{name}_s{ids.shape[1]}"
            return fixed if fixed in self.graphs else name

        if split := self.manifest.get("per_layer_parts"):
            return table.joined(run, named, split, ids)
        return run(named(table.NAME), {"input_ids": ids.int()})[table.OUTPUT]

    def _joined(self, run: Run, hidden: Tensor, prompt: SoftPrompt) -> Tensor:
        batch, length = prompt.ids.shape
        name = f"fusion_s{length}"
        entry = self.graphs[name]
        visual = 0 if prompt.visual is None else len(prompt.visual)
        index = torch.arange(batch * length, dtype=torch.int64, device="cpu").reshape(batch, length)
        inputs = {"text_embeds": hidden}
        first = batch * length
        for rows, before, word, size in (
            (prompt.visual, 0, "image_embeds", int(entry["visual_tokens"])),
            (prompt.audio, visual, "audio_embeds", int(entry["audio_tokens"])),
        ):
            if not size:
                continue
            count = 0 if rows is None else len(rows)
            here = (prompt.rows >= before) & (prompt.rows < before + count)
            used = prompt.rows[here].sort().values - before
            index[here] = first + torch.searchsorted(used, prompt.rows[here] - before)
            inputs[word] = _filled(rows[used] if rows is not None else None, size, hidden.shape[-1])
            first += size
        return run(name, inputs | {"place_index": index.int()})["inputs_embeds"]

    def layer_extras(self, layer: int, embedded: Embedded) -> Mapping[str, Tensor]:
        inputs = embedded.extras.get("per_layer_inputs")
        return {} if inputs is None else {"per_layer_input": inputs[:, :, layer]}

    # --- masks ---

    def sees(self, variant: Variant, query_at: Tensor, key_at: Tensor, prompt: Prompt) -> Tensor:
        """Also tokens of one run of images, where the model lets them see each other."""
        keep = super().sees(variant, query_at, key_at, prompt)
        names, bounded = self.towers.together or ((), False)
        if not isinstance(prompt, SoftPrompt) or variant.name not in names:
            return keep
        together = self._together(prompt.blocks, query_at, key_at)
        if bounded and variant.window is not None:
            together = together & (key_at > query_at - variant.window)
        return keep | together

    @staticmethod
    def _together(blocks: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
        """blocks (B, S): the run of each place, -1 for none; places count from the first query of a row."""
        first = query_at[:, :1]
        own = (key_at - first).expand(-1, query_at.shape[1], -1)
        inside = (own >= 0) & (own < blocks.shape[1])
        of_keys = blocks[:, None].expand(-1, query_at.shape[1], -1).gather(2, own.clamp(0, blocks.shape[1] - 1))
        return inside & (of_keys == blocks[:, :, None]) & (blocks >= 0)[:, :, None]


@dataclass(frozen=True)
class Given:
    """Images, frames of all videos, and clips (frames, mel) of a call, each in turn; empty without any."""

    images: list[Picture]
    frames: list[Picture]
    clips: list[Tensor]


@dataclass(frozen=True)
class SoftPrompt(Prompt):
    """A Prompt with images, videos or audio: `rows` (B, S) says which row of [visual ; audio] a place holds, -1 for
    text; `blocks` (B, S) the run of visual places that it is of, -1 for none; visual, audio: rows (n, D)."""

    rows: Tensor
    blocks: Tensor
    visual: Tensor | None
    audio: Tensor | None
    clips: tuple[Tensor, ...] = ()

    def part(self, start: int, stop: int, length: int) -> Self:
        rows, blocks = (cut(each, start, stop, length, fill=-1) for each in (self.rows, self.blocks))
        return replace(super().part(start, stop, length), rows=rows, blocks=blocks)


def _clips(features: Tensor | None, mask: Tensor | None) -> list[Tensor]:
    """Clips without padding: features (clips, frames, mel), mask (clips, frames). Raises InputError for features
    without a mask (HF leaves such clips out), and a mask with a hole (HF masks its frames; the graph has one end)."""
    if features is None:
        return []
    if mask is None or features.dim() != 3 or mask.shape != features.shape[:2]:
        raise InputError(
            "input_features (clips, frames, mel) go with input_features_mask (clips, frames); got "
            f"{tuple(features.shape)} and {None if mask is None else tuple(mask.shape)}"
        )
    features, own = features.cpu(), (mask != 0).cpu()
    ends = [int(each.nonzero().max()) + 1 if bool(each.any()) else 0 for each in own]
    for clip, (each, end) in enumerate(zip(own, ends, strict=True)):
        if not bool(each[:end].all()):
            raise InputError(
                f"input_features_mask of clip {clip} has padding at frame {int((~each).nonzero()[0])} before its last "
                f"frame {end - 1}; a clip of a bundle is its first frames, and padding comes after them"
            )
    return [clip[:end] for clip, end in zip(features, ends, strict=True) if end]


def _filled(rows: Tensor | None, size: int, width: int) -> Tensor:
    """Rows (n, D), and zeros up to `size` rows."""
    if rows is None:
        return torch.zeros(size, width, dtype=torch.float32, device="cpu")
    return torch.nn.functional.pad(rows, (0, 0, 0, size - len(rows)))
