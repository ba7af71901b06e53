# SPDX-License-Identifier: Apache-2.0
"""The host side of a bundle: everything between the graphs, from the manifest alone, without a model.

It owns the steps that the manifest's `host` lists in words: padding, positions, masks, cache. The loop over tokens is
transformers' own (generation.py). Files and runtimes are the caller's, who passes `run(graph, inputs)`; a family adds
what is not text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyquant.decoder.generation import GenerationRequest
from pyquant.decoder.kind import LayerKind, named, variants
from pyquant.errors import InputError

#: Graph name and its inputs by name -> its outputs by name, all floats as float32.
Run = Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]
KeyValue = tuple[Tensor, Tensor]


@dataclass
class CacheState:
    """The cache of a batch: `lengths` (B,) tokens of each row, `deltas` (B, 1) from there to positions, and layer ->
    (keys, values), each (B, Hkv, capacity, head_dim)."""

    lengths: Tensor
    deltas: Tensor
    layers: dict[int, KeyValue]


@dataclass(frozen=True)
class Prompt:
    """What the graphs of a prompt are given: `ids` (B, length) from place 0 on, `real` (B, length) bool, positions
    (axes, B, length), and `deltas` (B, 1), from the tokens of a row to the position after them."""

    ids: Tensor
    real: Tensor
    positions: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class Embedded:
    """What enters the first layer (B, S, D), and what the family adds to it, by name of the graph input."""

    hidden: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class Host:
    """Generates text with the graphs of one bundle. Keeps nothing between calls.

    Raises InputError for a bundle that cannot generate (a model without a head).
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("prefill", "decode", "lm_head")  # kinds of graphs

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.manifest = manifest
        self.graphs: Mapping[str, Any] = manifest["graphs"]
        self.batch, self.longest = int(manifest["batch_size"]), int(manifest["max_seq_len"])
        missing = [kind for kind in self.NEEDS if not self._of(kind)]
        if missing:
            raise InputError(
                f"the bundle has no {' and no '.join(missing)} graph, so it cannot generate; export a model with its "
                "head (such as Qwen3VLForConditionalGeneration)"
            )
        self.capacity = int(manifest["cache"]["capacity"]) if "decode" in self.NEEDS else 0
        self.per_layer = manifest["layers"] == "per_layer"
        self.fill = float(manifest["mask"]["fill"])
        self.kinds = self.layer_kinds()
        self.variants = variants(self.kinds)
        self.rotary = {variant: self.rotary_table(manifest[named("rotary", variant)]) for variant in self.variants}

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The layers as the manifest's cache lists them."""
        return _kinds(self.manifest)

    def rotary_table(self, entry: Mapping[str, Any]) -> RotaryTable:
        """Frequencies and scale of one variant."""
        return RotaryTable(
            torch.tensor(entry["inv_freq"], dtype=torch.float32, device="cpu"),
            float(entry["attention_scaling"]),
            entry.get("axis"),
        )

    @torch.no_grad()
    def generate(self, run: Run, input_ids: Tensor, *, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """input_ids (B, S) -> (B, S + new), as transformers' generate: rows that have ended go on with padding.

        options: see GenerationRequest; what they leave open follows the model's generation config. Raises InputError
        for prompts or lengths that the bundle has no graph or no room for, and for options that it cannot do.
        """
        request = GenerationRequest(self.manifest["generation"], options)
        ids, mask = self.checked(input_ids, attention_mask, request)
        length, new = self.bucket(mask, request)
        prompt = self.prompt(ids, mask, length)
        return request.answer(Steps(self, run, prompt, Embedded(self.tokens(run, prompt.ids))), ids, mask, new)

    @torch.no_grad()
    def hidden_states(self, run: Run, input_ids: Tensor) -> Tensor:
        """Hidden states (B, S, D) before the final norm of text (B, S) without padding, by its prefill graph: what the
        likelihood of text is computed from. Raises InputError as `generate`."""
        request = GenerationRequest({}, {"max_new_tokens": 1})
        ids, mask = self.checked(input_ids, torch.ones_like(input_ids), request)
        prompt = self.prompt(ids, mask, self.bucket(mask, request)[0])
        state = self.empty(prompt.real.sum(dim=1), prompt.deltas)
        return self.prefill(run, Embedded(self.tokens(run, prompt.ids)), prompt, state)[:, : ids.shape[1]]

    # --- before the graphs ---

    def prompt(self, ids: Tensor, mask: Tensor, length: int) -> Prompt:
        """A prompt of text alone, in a graph of `length` places."""
        ids_in, real = (compact(t, mask, length) for t in (ids, mask))
        counted = torch.arange(length, dtype=torch.int64, device="cpu")[None].expand(self.batch, -1)
        return Prompt(ids_in, real, counted[None], torch.zeros(self.batch, 1, dtype=torch.int64, device="cpu"))

    def checked(
        self, input_ids: Tensor, attention_mask: Tensor | None, request: GenerationRequest
    ) -> tuple[Tensor, Tensor]:
        """The prompt int64 (B, S) and where it is real, bool. Raises InputError for another form."""
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
        mask = request.inferred_mask(input_ids) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape:
            raise InputError(
                f"attention_mask is {tuple(mask.shape)}, expected that of input_ids {tuple(input_ids.shape)}"
            )
        mask = mask != 0
        if not bool(mask.any(dim=1).all()):
            raise InputError("a row of attention_mask is all padding; every row needs a token")
        return input_ids.long().cpu(), mask.cpu()

    def bucket(self, mask: Tensor, request: GenerationRequest) -> tuple[int, int]:
        """The shortest prefill length that holds prompts with `mask` (B, S), and how many tokens follow at most."""
        known, longest = self.manifest["prefill_lengths"], int(mask.sum(dim=1).max())
        if longest > max(known):
            raise InputError(
                f"the prompt has {longest} tokens, more than every prefill length of this bundle {known}; shorten it, "
                "or export with a longer one in prefill_lengths"
            )
        room = self.longest - longest + 1
        new = request.new_tokens(mask.shape[1], room)
        if new < 1:
            raise InputError(f"max_new_tokens is at least 1 (max_length: more than the prompt), got {new}")
        if new > room:
            raise InputError(
                f"a prompt of {longest} tokens and max_new_tokens={new} need a cache longer than max_seq_len "
                f"{self.longest} of this bundle; at most {room} new tokens fit"
            )
        return int(min(length for length in known if length >= longest)), new

    # --- through the graphs ---

    def tokens(self, run: Run, ids: Tensor) -> Tensor:
        """Embeddings (B, S, D) of ids (B, S)."""
        fixed = f"token_embedding_s{ids.shape[1]}"
        name = fixed if fixed in self.graphs else "token_embedding"
        return run(name, {"input_ids": ids.int()})["inputs_embeds"]

    def embedded_token(self, run: Run, token: Tensor) -> Embedded:
        """What enters the first layer for one more token of each row, ids (B,)."""
        return Embedded(self.tokens(run, token[:, None]))

    def prefill(self, run: Run, embedded: Embedded, prompt: Prompt, state: CacheState) -> Tensor:
        """Hidden states (B, length, D) of the prompt, whose keys and values are put into `state`."""
        length = prompt.ids.shape[1]
        at = torch.arange(length, dtype=torch.int64, device="cpu")
        keep = torch.ones(length, length, dtype=torch.bool, device="cpu").tril()[None] & prompt.real[:, None, :]
        masks = self.masks(keep, at[:, None], at[None, :])
        hidden, new = self._layers(run, f"prefill_s{length}", embedded, self.tables(prompt.positions) | masks, None)
        for layer, pair in new.items():
            for cached, made in zip(state.layers[layer], pair, strict=True):
                kept = min(length, self.capacity)
                cached[:, :, :kept] = made[:, :, :kept] * prompt.real[:, None, :kept, None]
        return hidden

    def decode(self, run: Run, token: Tensor, state: CacheState) -> Tensor:
        """The hidden state (B, 1, D) of one more token for each row."""
        at = (state.lengths[:, None] + state.deltas).expand(3, -1, -1)
        places = torch.arange(self.capacity + 1, dtype=torch.int64, device="cpu")
        keep = (places < state.lengths[:, None]) | (places == self.capacity)
        key_at = torch.where(places == self.capacity, state.lengths[:, None], places)
        masks = self.masks(keep[:, None], state.lengths[:, None, None], key_at[:, None])
        hidden, new = self._layers(run, "decode", self.embedded_token(run, token), self.tables(at) | masks, state)
        rows = torch.arange(self.batch, dtype=torch.int64, device="cpu")
        inside = state.lengths < self.capacity
        for layer, (key, value) in new.items():
            keys, values = state.layers[layer]
            keys[rows[inside], :, state.lengths[inside]] = key[inside, :, 0]
            values[rows[inside], :, state.lengths[inside]] = value[inside, :, 0]
        state.lengths = state.lengths + 1
        return hidden

    def _layers(
        self, run: Run, name: str, embedded: Embedded, inputs: Mapping[str, Tensor], past: CacheState | None
    ) -> tuple[Tensor, dict[int, KeyValue]]:
        """Hidden states after all layers, and what each adds to the cache."""
        hidden, owners = embedded.hidden, [i for i, kind in enumerate(self.kinds) if kind.shares is None]
        if not self.per_layer:
            given = {**inputs, "inputs_embeds": hidden, **embedded.extras}
            for i, (keys, values) in ({} if past is None else past.layers).items():
                given |= {f"past_key_{i}": keys, f"past_value_{i}": values}
            out = run(name, given)
            return out["hidden_states"], {i: (out[f"new_key_{i}"], out[f"new_value_{i}"]) for i in owners}
        new: dict[int, KeyValue] = {}
        for i, kind in enumerate(self.kinds):
            given = {key: inputs[key] for key in (kind.mask, *kind.tables)}
            given |= {"hidden_states": hidden, **self.layer_extras(i, embedded)}
            if kind.shares is not None:
                given |= self._shared(kind.shares, new, past)
            elif past is not None:
                given |= dict(zip(("past_key", "past_value"), past.layers[i], strict=True))
            out = run(f"{name}_layer{i}", given)
            hidden = out["hidden_states_out"]
            if kind.shares is None:
                new[i] = (out["new_key"], out["new_value"])
        return hidden, new

    def layer_extras(self, layer: int, embedded: Embedded) -> Mapping[str, Tensor]:
        """What the graph of one layer takes of `embedded.extras`."""
        return {}

    @staticmethod
    def _shared(layer: int, new: Mapping[int, KeyValue], past: CacheState | None) -> dict[str, Tensor]:
        """All keys and values of a layer that another one reads."""
        parts = [new[layer]] if past is None else [past.layers[layer], new[layer]]
        keys, values = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        return {"shared_key": keys, "shared_value": values}

    def logits(self, run: Run, hidden: Tensor) -> Tensor:
        """hidden (B, 1, D) of one place of each row -> (B, vocabulary) float32."""
        return run("lm_head", {"hidden_states": hidden})["logits"][:, 0].float()

    # --- tables and state ---

    def tables(self, positions: Tensor) -> dict[str, Tensor]:
        """positions (axes, B, S) -> cos and signed_sin (B, S, head_dim) of each variant."""
        tables: dict[str, Tensor] = {}
        for variant, kind in self.variants.items():
            cos, signed_sin = self.rotary[variant].at(positions)
            tables |= dict(zip(kind.tables, (cos, signed_sin), strict=True))
        return tables

    def masks(self, keep: Tensor, query_at: Tensor, key_at: Tensor) -> dict[str, Tensor]:
        """keep (B, Q, K) bool, where queries and keys stand -> (B, 1, Q, K) of 0 and the fill, for each variant."""
        masks = {}
        for kind in self.variants.values():
            seen = keep if kind.window is None else keep & (key_at > query_at - kind.window)
            masks[kind.mask] = torch.zeros(seen.shape, dtype=torch.float32, device="cpu").masked_fill(~seen, self.fill)[
                :, None
            ]
        return masks

    def empty(self, lengths: Tensor, deltas: Tensor) -> CacheState:
        """A cache of zeros for rows of `lengths` tokens."""
        layers: dict[int, KeyValue] = {}
        for i, kind in enumerate(self.kinds):
            if kind.shares is None:
                shape = (self.batch, kind.kv_heads, self.capacity, kind.head_dim)
                layers[i] = (
                    torch.zeros(shape, dtype=torch.float32, device="cpu"),
                    torch.zeros(shape, dtype=torch.float32, device="cpu"),
                )
        return CacheState(lengths.long(), deltas, layers)

    def _of(self, kind: str) -> list[str]:
        return [name for name, graph in self.graphs.items() if graph.get("kind") == kind]


@dataclass(frozen=True)
class RotaryTable:
    """inv_freq (head_dim / 2,), the factor of cos and sin, and the position axis that drives each frequency."""

    inv_freq: Tensor
    scaling: float
    axis: Sequence[int] | None = None

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (axes, B, S) -> cos and signed_sin, each (B, S, head_dim)."""
        axis = (
            torch.zeros(len(self.inv_freq), dtype=torch.int64, device="cpu")
            if self.axis is None
            else torch.tensor(self.axis, dtype=torch.int64, device="cpu")
        )
        angles = positions.float()[axis].permute(1, 2, 0) * self.inv_freq
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class Steps:
    """The logits of each next token, one call after another: a prefill, then decode steps over one cache."""

    def __init__(self, host: Host, run: Run, prompt: Prompt, embedded: Embedded) -> None:
        self.host, self.run, self.prompt, self.embedded = host, run, prompt, embedded
        self.state: CacheState | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """All tokens so far (B, S) -> logits (B, vocabulary)."""
        if self.state is not None:
            return self.host.logits(self.run, self.host.decode(self.run, tokens[:, -1], self.state))
        self.state = self.host.empty(self.prompt.real.sum(dim=1), self.prompt.deltas)
        hidden = self.host.prefill(self.run, self.embedded, self.prompt, self.state)
        return self.host.logits(
            self.run,
            hidden[torch.arange(self.host.batch, dtype=torch.int64, device="cpu"), self.state.lengths - 1][:, None],
        )


def _kinds(manifest: Mapping[str, Any]) -> tuple[LayerKind, ...]:
    """The layers as the manifest's cache lists them; bundles of pyquant 0.1 had one shape for all."""
    cache = manifest["cache"]
    layers = cache.get("layers") or [cache] * int(manifest["num_hidden_layers"])
    return tuple(
        LayerKind(
            int(each["kv_heads"]),
            int(each["head_dim"]),
            each.get("window"),
            each.get("shares"),
            str(each.get("variant", "")),
        )
        for each in layers
    )


def compact(values: Tensor, mask: Tensor, length: int) -> Tensor:
    """Each row's real entries from place 0 on, zeros up to `length`."""
    out = values.new_zeros(len(values), length)
    for row, keep in enumerate(mask):
        out[row, : int(keep.sum())] = values[row, keep]
    return out
