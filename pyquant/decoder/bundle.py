# SPDX-License-Identifier: Apache-2.0
"""Which graphs a DecoderProfile makes of a model, and the manifest for a host that runs them.

It owns the list and the words that families share. Writing files is exporter/bundle.py; host.py follows the
manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar

import torch
import transformers
from torch import nn

from pyquant.decoder import host_data
from pyquant.decoder.causal_lm import CausalLM
from pyquant.decoder.ends import HeadProfile, embedding_profile
from pyquant.decoder.generation import asks_nothing
from pyquant.decoder.graphs import TextProfile
from pyquant.decoder.kind import LayerKind, named
from pyquant.decoder.model import DecoderModel
from pyquant.errors import ProfileError
from pyquant.exporter.profile import ExportProfile
from pyquant.wrap.attention import FILL
from pyquant.wrap.bands import block_length
from pyquant.wrap.base import QModule

Part = tuple[nn.Module, Any]


class BundleParts:
    """The graphs and the manifest of one profile and one quantized model `q`, with a head or without.

    A family derives from it: `FAMILY` is its room, the hooks add graphs and words. Raises ProfileError for a model of
    another family, or one that is shorter than the profile.
    """

    FAMILY: ClassVar[str]
    MODELS: ClassVar[tuple[type[QModule], ...]]  # with a head, without

    def __init__(self, profile: Any, q: nn.Module) -> None:
        if not isinstance(q, self.MODELS):
            known = " or ".join(cls.__name__.removeprefix("Quant") for cls in self.MODELS)
            raise ProfileError(
                f"{self.FAMILY}.Profile is for a quantized {known}, got {type(q).__name__}; its parts have "
                "profiles of their own, such as TextProfile"
            )
        self.profile: Any = profile
        self.q = q
        self.model: Any = q.model if isinstance(q, CausalLM) else q
        limit = self.text.config.max_position_embeddings
        if profile.max_seq_len > limit:
            raise ProfileError(
                f"max_seq_len {profile.max_seq_len} is beyond the model's max_position_embeddings, {limit}; use a "
                "shorter one"
            )
        if profile.sliding == "banded":
            self._require_bands()

    def _require_bands(self) -> None:
        windows = {kind.window for kind in self.text.kinds if kind.window is not None and not kind.ahead}
        if not windows:
            raise ProfileError('sliding="banded" is for a causal model whose layers have windows; leave it out')
        for length, window in product(self.profile.prefill_lengths, sorted(windows)):
            if block_length(length, window, 2) is None:
                raise ProfileError(
                    f'sliding="banded": the prefill length {length} has no two equal blocks of {window - 1} tokens or '
                    f'more for a window of {window}; use a multiple of the window, or sliding="auto"'
                )

    def require_ranges(self, part: QModule, setting: str) -> None:
        """Raise ProfileError where `setting` of the profile needs a `part` of the tree that convert was told is unused,
        so that it has no ranges."""
        learned = (site for site in part.all_sites() if not (site.role.is_constant or site.role.known_range))
        sites = [site for site in learned if site.spec is not None]
        if sites and part.state.converted and all(site.qparams is None for site in sites):
            raise ProfileError(
                f"the profile has {setting}, and {part.path!r} of this tree saw no calibration data (convert was told "
                f"that it is unused), so that it has no ranges; calibrate with data that reaches it, or leave {setting}"
                " out"
            )

    @property
    def text(self) -> DecoderModel:
        """The stack of layers."""
        text: DecoderModel = self.model
        return text

    # --- graphs ---

    def graphs(self) -> dict[str, Part]:
        """File name -> (wrapper, its own profile), in the order in which a host runs them."""
        profile = self.profile
        parts = [*self.encoders(), *self.embeddings()]
        for length in profile.prefill_lengths:
            parts += self.before_prefill(length)
            parts += self._text_parts(length, 0)
        for length in profile.append_lengths:
            parts += self.before_prefill(length)
            parts += self._text_parts(length, profile.cache_len)
        parts += self._text_parts(1, profile.cache_len)
        parts += self.head()
        return {part_profile.name: (part, part_profile) for part, part_profile in parts}

    def head(self) -> list[Part]:
        """The final norm and the head, of a model that has one."""
        return [(self.q, HeadProfile(self.profile.batch_size))] if isinstance(self.q, CausalLM) else []

    def encoders(self) -> list[Part]:
        """Graphs of what is not text."""
        return []

    def before_prefill(self, length: int) -> list[Part]:
        """Graphs between the token embedding and a prefill or append of `length`."""
        return []

    def text_profile(self, length: int, past: int, layer: int | None) -> TextProfile:
        """The profile of one graph of the stack."""
        profile = self.profile
        return TextProfile(
            profile.batch_size, length, past, layer=layer, attention=profile.attention, sliding=profile.sliding
        )

    def embeddings(self) -> list[Part]:
        """Graphs that look up what belongs to a token."""
        return [(self.text.embed_tokens, each) for each in self.embedding_profiles("token_embedding", "inputs_embeds")]

    def embedding_profiles(self, name: str, output: str) -> list[ExportProfile]:
        """One of open length, or one for each length, as the profile's token_embedding says."""
        profile, kinds = self.profile, list[ExportProfile]()
        if profile.token_embedding != "fixed":
            kinds.append(embedding_profile(profile.batch_size, None, name, output))
        if profile.token_embedding != "dynamic":
            kinds += [embedding_profile(profile.batch_size, length, name, output) for length in self._widths()]
        return kinds

    def _widths(self) -> list[int]:
        return sorted({1, *self.profile.prefill_lengths, *self.profile.append_lengths})

    def _text_parts(self, length: int, past: int) -> list[Part]:
        layers = range(len(self.text.layers)) if self.profile.layers == "per_layer" else [None]
        return [(self.text, self.text_profile(length, past, layer)) for layer in layers]

    # --- the manifest ---

    def manifest(self) -> dict[str, Any]:
        """The entries that export_bundle merges into the manifest; those of `graphs` go to the graphs of that name."""
        profile, text = self.profile, self.text
        return {
            "family": self.FAMILY,
            "transformers": transformers.__version__,
            "batch_size": profile.batch_size,
            "max_seq_len": profile.max_seq_len,
            "prefill_lengths": list(profile.prefill_lengths),
            "append_lengths": list(profile.append_lengths),
            "layers": profile.layers,
            "num_hidden_layers": len(text.layers),
            **self.more(),
            **{named("rotary", variant): self.rotary(variant) for variant in text.variants},
            "mask": {"fill": FILL, "keep": 0.0},
            "cache": {
                "capacity": profile.cache_len,
                "layout": "batch, kv_heads, tokens, head_dim",
                "layers": [_layer_entry(kind, profile.cache_len) for kind in text.kinds],
            },
            "generation": _generation(self.q),
            "host": [*self.steps(), *self._more_steps()],
            "host_data": self.host_data(),
            "graphs": {name: self.describe(part_profile) for name, (_, part_profile) in self.graphs().items()},
        }

    def more(self) -> dict[str, Any]:
        """Entries that only this family has."""
        return {}

    def host_data(self) -> dict[str, Any]:
        """What `steps` say, as data; see host_data.py."""
        return host_data.of_text(self.text.variants)

    def steps(self) -> tuple[str, ...]:
        """What a host does, in order."""
        return (NUMBERS, _PADDING, _EMBED, ROTARY, *LAST_STEPS)

    def _more_steps(self) -> tuple[str, ...]:
        windows = any(kind.window is not None for kind in self.text.kinds)
        bands = any(entry.get("bands") for entry in map(self.describe, self._profiles()))
        found = ((_RING, windows), (_BANDS, bands), (_APPEND, bool(self.profile.append_lengths)))
        return tuple(words for words, wanted in found if wanted)

    def _profiles(self) -> list[Any]:
        return [profile for _, profile in self.graphs().values()]

    @torch.no_grad()
    def rotary(self, variant: str) -> dict[str, Any]:
        """HF's frequencies. Raises ProfileError for a kind of rotary embedding whose frequencies depend on the
        length."""
        rotary = self.text.rotary_of(variant)
        refuse_changing(rotary.rope_type(variant))
        frequencies, scaling = rotary.frequencies(variant)
        return {
            "inv_freq": frequencies.tolist(),
            "attention_scaling": scaling,
            "signed_sin": "the first half of sin is negated",
        }

    def describe(self, profile: Any) -> dict[str, Any]:
        """`kind` and what a tensor means; "range" are the integers that an input takes, both ends included."""
        if isinstance(profile, HeadProfile):
            return {"kind": "lm_head", "meaning": _MEANING["lm_head"]}
        if isinstance(profile, TextProfile):
            layer = {} if profile.layer is None else {"layer": profile.layer}
            bands = {"bands": blocks} if (blocks := self._bands(profile)) else {}
            return {
                "kind": profile.kind,
                "seq_len": profile.seq_len,
                **layer,
                **bands,
                "meaning": self.text_meaning(),
            }
        length = profile.inputs["input_ids"]
        entry = {"kind": "token_embedding", "meaning": _MEANING["token_embedding"], "range": self.id_range()}
        return entry if length.dynamic is not None else {**entry, "seq_len": length.shape[1]}

    def _bands(self, profile: TextProfile) -> dict[str, int]:
        """Mask -> tokens of a block, where layers attend in bands."""
        layers = range(len(self.text.kinds)) if profile.layer is None else [profile.layer]
        found = {self.text.kinds[i].mask: profile.block(self.text.kinds[i]) for i in layers}
        return {mask: block for mask, block in found.items() if block is not None}

    def id_range(self) -> dict[str, list[int]]:
        """The token ids that a graph takes."""
        return {"input_ids": [0, int(self.text.config.vocab_size) - 1]}

    def text_meaning(self) -> Mapping[str, str]:
        """The words for the tensors of prefill and decode."""
        return {**TABLES, **_MEANING["text"]}


def _layer_entry(kind: LayerKind, capacity: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"kv_heads": kind.kv_heads, "head_dim": kind.head_dim}
    if kind.shares is None and kind.window is not None:  # otherwise that of the whole cache
        entry["capacity"] = kind.kept(capacity)
    optional = {"window": kind.window, "shares": kind.shares, "variant": kind.variant or None}
    return entry | {name: value for name, value in optional.items() if value is not None}


def refuse_changing(kind: str) -> None:
    """Raise ProfileError for rotary embeddings of a `kind` (HF's rope_type) that a manifest cannot describe."""
    if kind in ("dynamic", "longrope"):
        raise ProfileError(
            f"rotary embeddings of type {kind!r} change their frequencies with the length of the sequence, which a "
            "manifest cannot say; set rope_type to 'default' or 'yarn' for the lengths of this bundle"
        )


def _generation(q: nn.Module) -> dict[str, Any]:
    """What the model's generation config asks for beyond transformers' defaults, by transformers' names."""
    config = getattr(q, "generation_config", None)
    if config is None:
        return {}
    entries: dict[str, Any] = json.loads(config.to_json_string())
    if isinstance(bias := config.sequence_bias, dict):  # JSON has no tuples as keys; transformers takes pairs as well
        entries["sequence_bias"] = [[list(tokens), value] for tokens, value in bias.items()]
    return {name: value for name, value in entries.items() if not (name in _METADATA or asks_nothing(name, value))}


_METADATA = ("transformers_version", "_from_model_config")
TABLES = {
    "attention_mask*": (
        "0 where a query may look, the fill elsewhere: later places, padding, unused places of the cache"
    ),
    "cos*": "cosine of position times frequency, for both halves of a head, times attention_scaling",
    "signed_sin*": "sine of the same, its first half negated",
}
_MEANING: dict[str, dict[str, str]] = {
    "token_embedding": {"input_ids": "token ids; padding may be any", "inputs_embeds": "embeddings of text"},
    "text": {
        "inputs_embeds": "what enters the first layer",
        "past_key*": "rotated keys of the cache, from place 0 of each row on",
        "past_value*": "values of the cache, in the same order",
        "new_key*": "rotated keys of the new tokens, to be written behind those of each row in the cache",
        "new_value*": "values of the new tokens, in the same order",
        "shared_key": "all keys of the layer that this one reads: its cache, then its new ones",
        "shared_value": "all values of that layer, in the same order",
        "hidden_states": "hidden states before the final norm (an input of a layer: before that layer)",
        "hidden_states_out": "hidden states after this layer",
    },
    "lm_head": {
        "hidden_states": "of the last token of each row, before the final norm, which is in this graph",
        "logits": "of the next token",
    },
}
NUMBERS = (
    "numbers: an integer q of a tensor with `quant` stands for (q - zero_point) * scale; a number x becomes "
    "round(x / scale) + zero_point, halves away from zero, kept within the type (a signed one of zero_point 0: "
    "without its lowest value)"
)
_PADDING = "remove padding: each row starts at place 0 of a prefill length that holds the longest"
_EMBED = "token_embedding of the prompt"
ROTARY = (
    "rotary: angle j of a token is inv_freq[j] times its position, which counts the row's tokens from 0; cos and sin "
    "are attention_scaling times those of the angles, written twice side by side, and the first half of sin is negated"
)
LAST_TOKEN = (
    "lm_head on the hidden state of each row's last token; choose the next token by `generation`, as transformers' "
    "generate does: penalties, temperature and what follows it, sampling, tokens that end a text"
)
LAST_STEPS = (
    "prefill: mask later places and places from the end of each row on; write new keys and values of real tokens into "
    "the cache from place 0 on",
    LAST_TOKEN,
    "decode: past keys and values at places 0 to length - 1 of each row, the new token at the end of the mask; its "
    "position is that of the last token plus 1 on every axis; write new keys and values at place length",
    "where an output and the input it goes to have unequal quantization, quantize again",
)
_RING = (
    "cache of a layer with a window: the token at place p of a row stands in slot p modulo the layer's capacity "
    "(cache.layers), so that the last ones are kept; of a prompt longer than that write the last ones only. Slot s of "
    "a row of `length` tokens holds place length - 1 - ((length - 1 - s) modulo capacity), nothing where that is "
    "negative; its mask keeps places that are less than `window` before the query's"
)
_BANDS = (
    "bands: a graph's entry names masks with the tokens of a block; such a mask has 2 * block columns: for the query "
    "at place p the keys from place (p div block - 1) * block on, those before place 0 masked"
)
_APPEND = (
    "append: as decode, with several new tokens of each row, from the first place on, behind the past in the mask; "
    "mask later places and places from the end of a row's new ones on; write new keys and values of real tokens from "
    "place length on. A prompt longer than every prefill length goes through the longest of them, and on in parts; a "
    "further turn begins with the last token of the answer, which is not in the cache yet"
)
