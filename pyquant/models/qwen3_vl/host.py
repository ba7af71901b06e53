# SPDX-License-Identifier: Apache-2.0
"""The host side of a Qwen3-VL bundle: all between the graphs, from the manifest alone, without a model.

It owns the steps that the manifest's `host` says in words: padding, visual rows, positions, masks, cache, the loop over
tokens. Files and runtimes are the caller's, who hands in `run(graph, inputs)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.models.qwen3_vl.fusion import visual_index
from pyquant.models.qwen3_vl.grids import Grid, grids_of
from pyquant.models.qwen3_vl.positions import rope_index, token_types, visual_tokens

#: Graph name and its inputs by name -> its outputs by name, all floats as float32.
Run = Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]
#: Logits (B, vocabulary) float32 and all tokens so far (B, S) -> the next token of each row, int64 (B,).
Sampler = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Row:
    """The state of a batch: `lengths` (B,) tokens in the cache of each row, `deltas` (B, 1) from there to positions,
    `keys` and `values` of each layer, (B, Hkv, capacity, head_dim)."""

    lengths: Tensor
    deltas: Tensor
    keys: list[Tensor]
    values: list[Tensor]


class Host:
    """Generates text with the graphs of one bundle. Keeps nothing between calls.

    Raises InputError for a bundle that cannot generate (layers="whole", or a model without a head).
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.manifest = manifest
        self.graphs: Mapping[str, Any] = manifest["graphs"]
        self.batch, self.longest = int(manifest["batch_size"]), int(manifest["max_seq_len"])
        missing = [kind for kind in ("prefill", "decode", "lm_head") if not self._of(kind)]
        if missing:
            raise InputError(
                f"the bundle has no {' and no '.join(missing)} graph, so it cannot generate; export a "
                'Qwen3VLForConditionalGeneration with layers="stack" or "per_layer"'
            )
        self.capacity = int(manifest["cache"]["capacity"])
        self.merge = int(manifest["positions"]["spatial_merge_size"])
        self.layers = int(manifest["num_hidden_layers"])
        self.per_layer = manifest["layers"] == "per_layer"
        self.fill = float(manifest["mask"]["fill"])
        rotary = manifest["rotary"]
        self.inv_freq, self.axis = torch.tensor(rotary["inv_freq"]), torch.tensor(rotary["axis"])
        self.attention_scaling = float(rotary["attention_scaling"])

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
        ids, mask = self._checked(input_ids, attention_mask)
        ended = _ids(self._default("eos_token_id", eos_token_id))
        padding = _ids(self._default("pad_token_id", pad_token_id)) or ended or [0]
        longest = int(mask.sum(dim=1).max())
        length = self._bucket(longest, max_new_tokens)
        types = self._types(ids, mask, mm_token_type_ids)
        ids_in, types_in, real = (_compact(t, mask, length) for t in (ids, types, mask))
        visual = self._visual(run, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
        grids = visual.grids
        positions, deltas = rope_index(types_in, *grids, real, merge=self.merge)
        hidden, addends = self._embedded(run, ids_in, types_in * real, visual)
        state = self._empty(real.sum(dim=1), deltas)
        hidden = self._prefill(run, length, hidden, addends, positions, real, state)
        logits = self._logits(run, hidden[torch.arange(self.batch), state.lengths - 1][:, None])
        done = torch.zeros(self.batch, dtype=torch.bool)
        tokens = ids
        for step in range(max_new_tokens):
            chosen = logits.argmax(dim=-1) if sampler is None else sampler(logits, tokens).reshape(-1)
            chosen = torch.where(done, padding[0], chosen.long())
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
            done |= torch.isin(chosen, torch.tensor(ended, dtype=torch.int64))
            if bool(done.all()) or step + 1 == max_new_tokens:
                break
            logits = self._logits(run, self._decode(run, chosen, state))
        return tokens

    # --- before the graphs ---

    def _checked(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if not isinstance(input_ids, Tensor):
            raise InputError(
                f"input_ids are a tensor of integers ({self.batch}, tokens), got a {type(input_ids).__name__}; a "
                "processor's batch is given as generate(**batch), without what is no argument of generate"
            )
        if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.shape[0] != self.batch:
            raise InputError(
                f"input_ids are integers ({self.batch}, tokens) for this bundle, which was exported with "
                f"batch_size={self.batch}; got {input_ids.dtype} {tuple(input_ids.shape)}"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape:
            raise InputError(
                f"attention_mask is {tuple(mask.shape)}, expected that of input_ids {tuple(input_ids.shape)}"
            )
        mask = mask != 0
        if not bool(mask.any(dim=1).all()):
            raise InputError("a row of attention_mask is all padding; every row needs a token")
        return input_ids.long().cpu(), mask.cpu()

    def _bucket(self, longest: int, new: int) -> int:
        """The shortest prefill length for a prompt of `longest` tokens and `new` tokens after it."""
        if new < 1:
            raise InputError(f"max_new_tokens is at least 1, got {new}")
        known = self.manifest["prefill_lengths"]
        if longest > max(known):
            raise InputError(
                f"the prompt has {longest} tokens, more than every prefill length of this bundle {known}; shorten it, "
                "or export with a longer one in prefill_lengths"
            )
        if longest + new - 1 > self.longest:
            raise InputError(
                f"a prompt of {longest} tokens and max_new_tokens={new} need a cache longer than max_seq_len "
                f"{self.longest} of this bundle; at most {self.longest - longest + 1} new tokens fit"
            )
        return int(min(length for length in known if length >= longest))

    def _types(self, ids: Tensor, mask: Tensor, given: Tensor | None) -> Tensor:
        places = self.manifest["positions"]
        types = token_types(ids, places["image_token_id"], places["video_token_id"])
        if given is not None and not torch.equal(given.long().cpu()[mask], types[mask]):
            raise InputError("mm_token_type_ids contradict the placeholder tokens in input_ids; leave them out")
        return types

    def _default(self, name: str, given: int | Sequence[int] | None) -> int | Sequence[int] | None:
        found: int | Sequence[int] | None = self.manifest["generation"].get(name) if given is None else given
        return found

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
        if pixels is None and grid_thw is None:
            return [], ()
        if pixels is None or grid_thw is None:
            raise InputError(f"{source} and {name} belong together, and only one of them is given")
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

    # --- through the graphs ---

    def _embedded(self, run: Run, ids: Tensor, types: Tensor, visual: Visual) -> tuple[Tensor, list[Tensor]]:
        """What enters the first layer (B, S, D), and the deepstack addends alike."""
        length = ids.shape[1]
        hidden = self._tokens(run, ids)
        index = visual_index(types, visual.images, visual.videos)
        if not visual.rows:
            return hidden, [torch.zeros_like(hidden)] * self.manifest["deepstack"]
        name = f"fusion_s{length}"
        room = int(self.graphs[name]["visual_tokens"])
        rows, *deepstack = (torch.cat([part, part.new_zeros(room - len(part), part.shape[1])]) for part in visual.rows)
        inputs = {"text_embeds": hidden, "visual_embeds": rows, "visual_index": index.int()}
        out = run(name, inputs | {f"visual_deepstack_{k}": feature for k, feature in enumerate(deepstack)})
        return out["inputs_embeds"], [out[f"deepstack_{k}"] for k in range(len(deepstack))]

    def _tokens(self, run: Run, ids: Tensor) -> Tensor:
        fixed = f"token_embedding_s{ids.shape[1]}"
        name = fixed if fixed in self.graphs else "token_embedding"
        return run(name, {"input_ids": ids.int()})["inputs_embeds"]

    def _prefill(
        self,
        run: Run,
        length: int,
        hidden: Tensor,
        addends: list[Tensor],
        positions: Tensor,
        real: Tensor,
        state: Row,
    ) -> Tensor:
        keep = torch.ones(length, length, dtype=torch.bool).tril()[None] & real[:, None, :]
        inputs = self._tables(positions) | {"attention_mask": self._mask(keep)}
        hidden, new = self._layers(run, f"prefill_s{length}", hidden, addends, inputs, None)
        for layer, pair in enumerate(new):
            for held, made in zip((state.keys[layer], state.values[layer]), pair, strict=True):
                kept = min(length, self.capacity)
                held[:, :, :kept] = made[:, :, :kept] * real[:, None, :kept, None]
        return hidden

    def _decode(self, run: Run, token: Tensor, state: Row) -> Tensor:
        """The hidden state (B, 1, D) of one more token for each row."""
        at = (state.lengths[:, None] + state.deltas).expand(3, -1, -1)
        places = torch.arange(self.capacity + 1)
        keep = (places < state.lengths[:, None]) | (places == self.capacity)
        inputs = self._tables(at) | {"attention_mask": self._mask(keep[:, None])}
        hidden, new = self._layers(run, "decode", self._tokens(run, token[:, None]), [], inputs, state)
        rows = torch.arange(self.batch)
        inside = state.lengths < self.capacity
        for layer, (key, value) in enumerate(new):
            state.keys[layer][rows[inside], :, state.lengths[inside]] = key[inside, :, 0]
            state.values[layer][rows[inside], :, state.lengths[inside]] = value[inside, :, 0]
        state.lengths = state.lengths + 1
        return hidden

    def _layers(
        self,
        run: Run,
        name: str,
        hidden: Tensor,
        addends: list[Tensor],
        inputs: dict[str, Tensor],
        past: Row | None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Hidden states after all layers, and what each adds to the cache."""
        if not self.per_layer:
            inputs = {**inputs, "inputs_embeds": hidden, **{f"deepstack_{k}": held for k, held in enumerate(addends)}}
            if past is not None:
                inputs |= {f"past_key_{i}": held for i, held in enumerate(past.keys)}
                inputs |= {f"past_value_{i}": held for i, held in enumerate(past.values)}
            out = run(name, inputs)
            return out["hidden_states"], [(out[f"new_key_{i}"], out[f"new_value_{i}"]) for i in range(self.layers)]
        new = []
        for i in range(self.layers):
            given = {**inputs, "hidden_states": hidden}
            if i < len(addends):
                given["deepstack"] = addends[i]
            if past is not None:
                given |= {"past_key": past.keys[i], "past_value": past.values[i]}
            out = run(f"{name}_layer{i}", given)
            hidden = out["hidden_states_out"]
            new.append((out["new_key"], out["new_value"]))
        return hidden, new

    def _logits(self, run: Run, hidden: Tensor) -> Tensor:
        return run("lm_head", {"hidden_states": hidden})["logits"][:, 0].float()

    # --- tables and state ---

    def _tables(self, positions: Tensor) -> dict[str, Tensor]:
        """positions (3, B, S) -> cos and signed_sin (B, S, head_dim)."""
        angles = positions.float()[self.axis].permute(1, 2, 0) * self.inv_freq
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return {"cos": torch.cat([cos, cos], dim=-1), "signed_sin": torch.cat([-sin, sin], dim=-1)}

    def _mask(self, keep: Tensor) -> Tensor:
        """keep (B, Q, K) bool -> (B, 1, Q, K) of 0 and the fill."""
        return torch.zeros(keep.shape).masked_fill(~keep, self.fill)[:, None]

    def _empty(self, lengths: Tensor, deltas: Tensor) -> Row:
        cache = self.manifest["cache"]
        shape = (self.batch, int(cache["kv_heads"]), self.capacity, int(cache["head_dim"]))
        held = [[torch.zeros(shape) for _ in range(self.layers)] for _ in range(2)]
        return Row(lengths.long(), deltas, *held)

    def _of(self, kind: str) -> list[str]:
        return [name for name, graph in self.graphs.items() if graph.get("kind") == kind]


@dataclass(frozen=True)
class Visual:
    """[rows, deepstack_0, ...] of all images, then all videos; how many of each; their grids."""

    rows: list[Tensor]
    images: int
    videos: int
    grids: tuple[tuple[Grid, ...], tuple[Grid, ...]]


def _vision(grid: Grid) -> str:
    return f"vision_t{grid[0]}_h{grid[1]}_w{grid[2]}"


def _ids(given: int | Sequence[int] | None) -> list[int]:
    if given is None:
        return []
    return [int(given)] if isinstance(given, int) else [int(token) for token in given]


def _compact(values: Tensor, mask: Tensor, length: int) -> Tensor:
    """Each row's real entries from place 0 on, zeros up to `length`."""
    out = values.new_zeros(len(values), length)
    for row, keep in enumerate(mask):
        out[row, : int(keep.sum())] = values[row, keep]
    return out
