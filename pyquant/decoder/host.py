# SPDX-License-Identifier: Apache-2.0
"""The host side of a bundle: everything between the graphs, from the manifest alone, without a model.

It owns the steps that the manifest's `host` lists in words: padding, positions, masks, cache. Slots of the cache are
cache.py, prompts and turns of a chat turn.py. The loop over tokens is transformers' own (generation.py). Files and
runtimes are the caller's, who passes `run(graph, inputs)`; a family adds what is not text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyquant.decoder import host_data
from pyquant.decoder.cache import CacheState, KeyValue
from pyquant.decoder.generation import GenerationRequest, NextLogits
from pyquant.decoder.kind import variants
from pyquant.decoder.layout import Variant, kinds_of, slots_of, variants_of
from pyquant.decoder.turn import Past, Prompt, Turn, checked, require_whole
from pyquant.errors import InputError

#: Graph name and its inputs by name -> its outputs by name, all floats as float32.
Run = Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Embedded:
    """What enters the first layer (B, S, D), and what the family adds to it, by name of the graph input."""

    hidden: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class Host:
    """Generates text with the graphs of one bundle. Keeps nothing between calls.

    A family with more than text overrides `generate`, which makes its own kind of Prompt, `embedded`, and `flow`.
    Raises InputError for a bundle that cannot generate (a model without a head), CircleError for one whose host_data
    asks for other steps than these.
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
        self.prefill_lengths: Sequence[int] = sorted(manifest["prefill_lengths"])
        self.append_lengths: Sequence[int] = sorted(manifest.get("append_lengths", ()))
        self.per_layer = manifest["layers"] == "per_layer"
        self.fill = float(manifest["mask"]["fill"])
        self.data = host_data.read(manifest)
        self.variants = variants_of(manifest)
        self.kinds = kinds_of(manifest, self.variants)
        variants(self.kinds)
        self.slots = slots_of(manifest) if "decode" in self.NEEDS else {}
        host_data.require(self.data, self.flow())

    def flow(self) -> Mapping[str, Any]:
        """host_data as this host does it, with the numbers and names that it reads there."""
        return host_data.of_variants(self.data["variants"])

    @torch.no_grad()
    def generate(
        self,
        run: Run,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        past: Past | None = None,
        **options: Any,
    ) -> Tensor:
        """input_ids (B, S) -> (B, S + new), as transformers' generate: rows that have ended go on with padding.

        past: the conversation that input_ids continue, which goes on to the end of the answer; see Session.chat.
        options: see GenerationRequest; what they leave open follows the model's generation config. Raises InputError
        for prompts or lengths that the bundle has no graph or no room for, and for options that it cannot do; `past`
        is then as it was.
        """
        turn = self.turn(input_ids, attention_mask, past, options)
        return self.answer(run, turn, turn.prompt(), past)

    @torch.no_grad()
    def hidden_states(self, run: Run, input_ids: Tensor) -> Tensor:
        """Hidden states (B, S, D) before the final norm of text (B, S) without padding: what the likelihood of text is
        computed from. Raises InputError as `generate`."""
        turn = self.turn(input_ids, torch.ones_like(input_ids), None, {"max_new_tokens": 1})
        return self.prefill(run, turn.prompt(), turn.state)

    # --- before the graphs ---

    def turn(
        self, input_ids: Tensor, attention_mask: Tensor | None, past: Past | None, options: Mapping[str, Any]
    ) -> Turn:
        """What one call is about. Raises InputError for what no graph takes, or has no room for."""
        request = GenerationRequest(self.manifest["generation"], options)
        ids, mask = checked(input_ids, attention_mask, self.batch, request)
        if any(variant.window is not None for variant in self.variants.values()):
            require_whole(mask)
        turn = Turn.of(ids, mask, past, self.empty(), request)
        self._require_graphs(turn)
        used, width = int((turn.state.lengths + turn.real.sum(dim=1)).max()), turn.all_ids.shape[1]
        room = self.longest - used + 1
        if room < 1:
            raise InputError(
                f"{used} tokens are more than max_seq_len {self.longest} of this bundle; "
                + ("shorten the prompt" if past is None else "start another chat")
                + ", or export with a longer one"
            )
        new = request.new_tokens(width, room)
        if new < 1:
            raise InputError(f"max_new_tokens is at least 1 (max_length: more than the prompt), got {new}")
        if new > room:
            what = "a prompt" if past is None else "a conversation"
            raise InputError(
                f"{what} of {used} tokens and max_new_tokens={new} need a cache longer than max_seq_len "
                f"{self.longest} of this bundle; at most {room} new tokens fit"
            )
        return turn.with_room(new)

    def _require_graphs(self, turn: Turn) -> None:
        known, width = list(self.prefill_lengths), turn.ids.shape[1]
        if self.append_lengths or (not turn.continues and width <= max(known)):
            return
        hint = "append_lengths=(64,), graphs that take more tokens onto a filled cache"
        if turn.continues:
            raise InputError(f"this bundle cannot go on with a chat: it has no append graph; export with {hint}")
        raise InputError(
            f"the prompt has {width} tokens, more than every prefill length of this bundle {known}; shorten it, "
            f"or export with a longer one in prefill_lengths, or with {hint}"
        )

    def parts(self, width: int, continues: bool) -> list[tuple[str, int, int, int]]:
        """(graph, first place, place behind the last, places of the graph) of each part of so many new tokens.

        The shortest prefill that holds them; else the longest, and append graphs for what is left: the longest of
        them, and for the last part the shortest that holds it.
        """
        found: list[tuple[str, int, int, int]] = []
        start = 0
        while start < width:
            kind = "append" if found or continues else "prefill"
            lengths = self.append_lengths if kind == "append" else self.prefill_lengths
            count = min(width - start, max(lengths))
            length = min(each for each in lengths if each >= count)
            found.append((f"{kind}_s{length}", start, start + count, length))
            start += count
        return found

    # --- through the graphs ---

    def answer(self, run: Run, turn: Turn, prompt: Prompt, past: Past | None) -> Tensor:
        """The tokens of `turn` and what follows them (B, S + new), by the loop of its request; `past` has them then."""
        request = turn.request
        out = request.answer(self.steps(run, prompt, turn), turn.all_ids, turn.all_real, turn.new)
        new = out.shape[1] - turn.all_ids.shape[1]
        if past is not None:
            past.take(out, torch.cat([turn.all_real, request.real_of(new)], dim=1), turn.state)
        return out[:, turn.before :]

    def steps(self, run: Run, prompt: Prompt, turn: Turn) -> NextLogits:
        """What generates after `prompt`."""
        return Steps(self, run, prompt, turn)

    def tokens(self, run: Run, ids: Tensor) -> Tensor:
        """Embeddings (B, S, D) of ids (B, S)."""
        fixed = f"token_embedding_s{ids.shape[1]}"
        name = fixed if fixed in self.graphs else "token_embedding"
        return run(name, {"input_ids": ids.int()})["inputs_embeds"]

    def text_ids(self, ids: Tensor) -> Tensor:
        """ids as the tables of tokens take them; a family whose placeholders have no rows of their own overrides it."""
        return ids

    def embedded(self, run: Run, prompt: Prompt) -> Embedded:
        """What enters the first layer for a prompt, or for a part of it in the places of one graph."""
        return Embedded(self.tokens(run, prompt.ids))

    def embedded_token(self, run: Run, token: Tensor) -> Embedded:
        """What enters the first layer for one more token of each row, ids (B,)."""
        return Embedded(self.tokens(run, token[:, None]))

    def prefill(self, run: Run, prompt: Prompt, state: CacheState) -> Tensor:
        """Hidden states (B, S, D) of a prompt behind what `state` has, whose keys and values are put there."""
        hidden = []
        continues = bool((state.lengths > 0).any())
        for name, start, stop, length in self.parts(prompt.ids.shape[1], continues):
            part = prompt.part(start, stop, length)
            out = self._through(run, name, self.embedded(run, part), part, state, past=continues or start > 0)
            hidden.append(out[:, : stop - start])
        state.deltas = prompt.deltas
        return torch.cat(hidden, dim=1)

    def decode(self, run: Run, token: Tensor, state: CacheState, going: Tensor | None = None) -> Tensor:
        """The hidden state (B, 1, D) of one more token (B,) for each row; rows that are not `going` (B,) keep their
        cache as it is."""
        at = (state.lengths[:, None] + state.deltas).expand(3, -1, -1)
        real = torch.ones(self.batch, 1, dtype=torch.bool, device="cpu") if going is None else going[:, None]
        prompt = Prompt(token[:, None], real, at, state.deltas)
        return self._through(run, "decode", self.embedded_token(run, token), prompt, state, past=True)

    def _through(
        self, run: Run, name: str, embedded: Embedded, prompt: Prompt, state: CacheState, *, past: bool
    ) -> Tensor:
        """Hidden states of the tokens of one graph, whose keys and values are put into `state`."""
        inputs = self.tables(prompt.positions) | self.masks(name, prompt, state, past=past)
        hidden, new = self._layers(run, name, embedded, inputs, state if past else None)
        state.add({layer: pair for layer, pair in new.items() if layer in state.layers}, prompt.real.sum(dim=1))
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
            own = self.variants[kind.variant]
            given = {key: inputs[key] for key in (own.mask, *own.tables)}
            given |= {"hidden_states": hidden, **self.layer_extras(i, embedded)}
            if kind.shares is not None:
                given |= self._shared(kind.shares, new, past)
            elif past is not None and i in past.layers:  # a window of 1 keeps nothing
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
        kept = None if past is None else past.layers.get(layer)
        parts = [new[layer]] if kept is None else [kept, new[layer]]
        keys, values = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        return {"shared_key": keys, "shared_value": values}

    def logits(self, run: Run, hidden: Tensor) -> Tensor:
        """hidden (B, 1, D) of one place of each row -> (B, vocabulary) float32."""
        return run("lm_head", {"hidden_states": hidden})["logits"][:, 0].float()

    # --- tables and state ---

    def tables(self, positions: Tensor) -> dict[str, Tensor]:
        """positions (axes, B, S) -> cos and signed_sin (B, S, head_dim) of each variant."""
        tables: dict[str, Tensor] = {}
        for variant in self.variants.values():
            tables |= dict(zip(variant.tables, variant.rotary.at(positions), strict=True))
        return tables

    def masks(self, graph: str, prompt: Prompt, state: CacheState, *, past: bool) -> dict[str, Tensor]:
        """(B, 1, Q, K) of 0 and the fill for each variant, as `graph` takes them for `prompt` behind `state`; with
        a `past`, the keys in the slots of the cache come first."""
        lengths = state.lengths[:, None]
        query_at = lengths + torch.arange(prompt.ids.shape[1], dtype=torch.int64, device="cpu")
        bands, masks = self._bands(graph), {}
        for name, variant in self.variants.items():
            if variant.mask in bands:
                key_at, there = _banded(bands[variant.mask], prompt.real)
            else:
                key_at, there = query_at[:, None], prompt.real[:, None]
                if past and (slots := self.slots[name]):
                    places = state.places(slots)[:, None]
                    key_at, there = torch.cat([places, key_at], dim=2), torch.cat([places >= 0, there], dim=2)
            keep = self.sees(variant, query_at[:, :, None], key_at, prompt) & there
            values = torch.zeros(keep.shape, dtype=torch.float32, device="cpu").masked_fill(~keep, self.fill)
            masks[variant.mask] = values[:, None]
        return masks

    def sees(self, variant: Variant, query_at: Tensor, key_at: Tensor, prompt: Prompt) -> Tensor:
        """Whether queries at places (B, Q, 1) of their rows may look at keys at places (B, 1 or Q, K), bool (B, Q, K).
        A family with blocks of tokens that see each other overrides it; `prompt` is what the queries are of."""
        keep = key_at <= query_at
        return keep if variant.window is None else keep & (key_at > query_at - variant.window)

    def _bands(self, name: str) -> Mapping[str, int]:
        """Mask -> tokens of a block, of the graph `name` or of its layers."""
        layers = [f"{name}_layer{i}" for i in range(len(self.kinds))] if self.per_layer else [name]
        found: dict[str, int] = {}
        for each in layers:
            found |= self.graphs.get(each, {}).get("bands", {})
        return found

    def empty(self) -> CacheState:
        """A cache without tokens."""
        layers: dict[int, KeyValue] = {}
        for i, kind in enumerate(self.kinds):
            slots = self.slots.get(kind.variant, 0)
            if kind.shares is None and slots:
                shape = (self.batch, kind.kv_heads, slots, kind.head_dim)
                layers[i] = (
                    torch.zeros(shape, dtype=torch.float32, device="cpu"),
                    torch.zeros(shape, dtype=torch.float32, device="cpu"),
                )
        lengths = torch.zeros(self.batch, dtype=torch.int64, device="cpu")
        return CacheState(lengths, lengths[:, None].clone(), layers)

    def _of(self, kind: str) -> list[str]:
        return [name for name, graph in self.graphs.items() if graph.get("kind") == kind]


class Steps:
    """The logits of each next token, one call after another: the prompt, then decode steps over one cache."""

    def __init__(self, host: Host, run: Run, prompt: Prompt, turn: Turn) -> None:
        self.host, self.run, self.prompt, self.turn = host, run, prompt, turn
        self.started = False

    def __call__(self, tokens: Tensor) -> Tensor:
        """All tokens so far (B, S) -> logits (B, vocabulary)."""
        state = self.turn.state
        if self.started:
            hidden = self.host.decode(self.run, tokens[:, -1], state, self.turn.request.going)
            return self.host.logits(self.run, hidden)
        self.started = True
        hidden = self.host.prefill(self.run, self.prompt, state)
        rows = torch.arange(self.host.batch, dtype=torch.int64, device="cpu")
        return self.host.logits(self.run, hidden[rows, self.prompt.real.sum(dim=1) - 1][:, None])


def _banded(block: int, real: Tensor) -> tuple[Tensor, Tensor]:
    """The places (1, S, 2 * block) of the keys of each query's band, and where (B, S, 2 * block) a token is there."""
    first = torch.arange(real.shape[1], dtype=torch.int64, device="cpu") // block * block - block
    key_at = first[:, None] + torch.arange(2 * block, dtype=torch.int64, device="cpu")
    return key_at[None], real[:, key_at.clamp(min=0)] & (key_at >= 0)
