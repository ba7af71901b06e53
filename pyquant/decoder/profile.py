# SPDX-License-Identifier: Apache-2.0
"""DecoderProfile: the lengths and the layout of a bundle, checked as far as that goes without a model.

It owns what a user asks for. Which graphs that makes of a model, and their manifest, is bundle.py; a family adds what
only it has (image grids).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from pyquant.decoder.bundle import BundleParts
from pyquant.decoder.graphs import Attention, Sliding
from pyquant.errors import ProfileError

Layers = Literal["stack", "per_layer"]
Embedding = Literal["auto", "dynamic", "fixed", "both"]


@dataclass(frozen=True)
class DecoderProfile:
    """A bundle of a language model: `pyquant.export_bundle(q, folder, llama.Profile(max_seq_len=512, ...))`.

    max_seq_len: prompt and answer together, in tokens; the cache holds one less, in layers with a window no more than
    window - 1. prefill_lengths: one prefill graph each, a prompt takes the shortest that holds it; by default
    max_seq_len. append_lengths: one graph each that takes so many new tokens onto a filled cache: for prompts longer
    than every prefill length, and for chats (Session.chat); by default none. batch_size: rows of every graph.

    layers: "stack" has one graph for all decoder layers, "per_layer" one for each; in some families "whole" is the
    model before its head in one graph of max_seq_len places. attention: all heads in one product,
    or one product per head. sliding: layers with a window attend in prefill to all keys under a mask ("full"), to
    blocks of keys ("banded": fewer products, smaller masks, the same numbers), or "auto": in blocks where three or more
    fit. token_embedding: "dynamic" is one graph of open length (a shape signature), "fixed" one for
    each length, "both" these together; each graph holds the whole table. "auto" picks the one that the target reads:
    see for_target. one_file: all graphs in one file, each with a signature, which share the weights (for runtimes that
    know signatures, such as pyquant's own), or a file each.

    Raises ProfileError for what no model could accept. What contradicts one model is raised when it is exported.
    """

    max_seq_len: int
    prefill_lengths: Any = field(default=(), kw_only=True)
    append_lengths: Any = field(default=(), kw_only=True)
    batch_size: int = field(default=1, kw_only=True)
    layers: str = field(default="stack", kw_only=True)
    attention: Attention = field(default="batched", kw_only=True)
    sliding: Sliding = field(default="auto", kw_only=True)
    token_embedding: Embedding = field(default="auto", kw_only=True)
    one_file: bool = field(default=False, kw_only=True)
    LAYERS: ClassVar[Any] = Layers
    PARTS: ClassVar[type[BundleParts]] = BundleParts

    def __post_init__(self) -> None:
        for name, least in (("max_seq_len", 2), ("batch_size", 1)):
            _require_count(name, getattr(self, name), least)
        choices = {"layers": self.LAYERS, "attention": Attention, "sliding": Sliding, "token_embedding": Embedding}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise ProfileError(f"{name} is one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        object.__setattr__(self, "prefill_lengths", self._lengths())
        object.__setattr__(self, "append_lengths", self._appended())

    def _lengths(self) -> tuple[int, ...]:
        if self.layers == "whole" and tuple(self.prefill_lengths) not in ((), (self.max_seq_len,)):
            raise ProfileError('layers="whole" has the one length max_seq_len; leave prefill_lengths out')
        given = _counts("prefill_lengths", self.prefill_lengths or (self.max_seq_len,), 1)
        for length in given:
            if length > self.max_seq_len:
                raise ProfileError(
                    f"the prefill length {length} is more than max_seq_len {self.max_seq_len}, which the prompt is a "
                    "part of; raise max_seq_len, or leave that length out"
                )
        return given

    def _appended(self) -> tuple[int, ...]:
        given = _counts("append_lengths", self.append_lengths, 2)  # one token is what decode takes
        if given and self.layers == "whole":
            raise ProfileError('layers="whole" has no cache to append to; leave append_lengths out')
        for length in given:
            if length > self.cache_len:
                raise ProfileError(
                    f"the append length {length} does not fit behind a first token into max_seq_len "
                    f"{self.max_seq_len}; raise max_seq_len, or leave that length out"
                )
        return given

    @property
    def cache_len(self) -> int:
        """Tokens that the cache of the decode graph holds."""
        return self.max_seq_len - 1

    def for_target(self, target: str) -> DecoderProfile:
        """This profile with token_embedding decided: "dynamic", which reads any length from one table.

        "fixed" for onert with several rows, whose Q4_0 tables are read through reshapes that know their sizes.
        """
        if self.token_embedding != "auto":
            return self
        return replace(self, token_embedding="fixed" if target == "onert" and self.batch_size > 1 else "dynamic")

    def graphs(self, q: nn.Module) -> Mapping[str, tuple[nn.Module, Any]]:
        """File name -> the part of `q` and the profile that make that graph; token_embedding="auto" means that of
        target "circle". Raises ProfileError when the model cannot take this profile."""
        return self.PARTS(self.for_target("circle"), q).graphs()

    def manifest(self, q: nn.Module) -> dict[str, Any]:
        """What a host has to know beyond shapes: meanings, cache, rotary frequencies, token ids, and its steps."""
        return self.PARTS(self.for_target("circle"), q).manifest()


def _counts(name: str, given: Any, least: int) -> tuple[int, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ProfileError(f"{name} are integers such as (64, 256), got {given!r}")
    for length in given:
        _require_count(f"each of {name}", length, least)
    return tuple(sorted(set(given)))


def _require_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ProfileError(f"{name} is an integer of at least {least}, got {value!r}")
