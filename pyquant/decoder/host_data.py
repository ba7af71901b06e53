# SPDX-License-Identifier: Apache-2.0
"""The manifest's `host_data`: what its `host` says in words, as data that a host in another language follows.

It owns the form of the entries that families share. Which ones a bundle has is each family's flow.py; the native
program's reader is csrc/host/manifest.cc, and `pyquant/exporter/manifest.schema.json` describes all of it. Python's
hosts read their numbers and names here too; the order of their steps is code, which `require` compares with the data.

A value is a tensor by name that goes from step to step: `ids` are the tokens, `hidden` what enters the first layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyquant.decoder.kind import LayerKind, named
from pyquant.errors import CircleError

VERSION = 1
IDS, HIDDEN = "ids", "hidden"


def of_text(variants: Mapping[str, LayerKind]) -> dict[str, Any]:
    """The entries of a text model: variants of layers, embeddings of tokens, positions that count them."""
    return of_variants([_variant(variant, kind) for variant, kind in variants.items()])


def of_variants(variants: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same of entries that are there already."""
    return {
        "version": VERSION,
        "variants": list(variants),
        "embedding": [step("token_embedding", {"input_ids": IDS}, {"inputs_embeds": HIDDEN})],
        "positions": {"rule": "tokens"},
    }


def _variant(variant: str, kind: LayerKind) -> dict[str, Any]:
    cos, signed_sin = kind.tables
    entry = {
        "name": variant,
        "mask": kind.mask,
        "cos": cos,
        "signed_sin": signed_sin,
        "rotary": named("rotary", variant),  # the manifest's entry
    }
    return entry if kind.window is None else {**entry, "window": kind.window}


def step(kind: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    """One graph of `kind` for as many places as there are: its inputs from values, values from its outputs."""
    return {"kind": kind, "inputs": dict(inputs), "outputs": dict(outputs)}


def fusion(
    text: str,
    index: str,
    segments: Sequence[tuple[str, Sequence[str]]],
    output: str,
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """The graph that joins text and rows of towers, run where a prompt has such rows.

    segments: (tower, inputs that take its outputs in turn), in the order in which `index` counts rows behind the text.
    more: outputs besides `output` that layers take by these names; zeros like `output` where the graph is not run.
    """
    taken = [{"tower": tower, "inputs": list(inputs)} for tower, inputs in segments]
    outputs = {output: HIDDEN, **{name: name for name in more}}
    return {**step("fusion", {text: HIDDEN}, outputs), "segments": taken, "index": index, "zeros": list(more)}


def media(name: str, token_id: int, tower: str, data: str, sizes: str, *, by_frame: bool = False) -> dict[str, Any]:
    """What a placeholder token stands for. data, sizes: the tensors that a processor gives; what they hold is said by
    the tower's form. by_frame: positions count each frame of an item as an item of its own."""
    entry = {"name": name, "token_id": token_id, "tower": tower, "data": data, "sizes": sizes}
    return {**entry, "by_frame": True} if by_frame else entry


def tower(name: str, form: str, given: str, outputs: Sequence[str], **numbers: Any) -> dict[str, Any]:
    """The graphs of kind `name`, which make rows of media; `given` is their input. Forms:

    grids: data (patches, width) of all items in turn, sizes (items, 3) of frames, height, width in patches; a graph's
    `grids` says which it takes. `merge` x `merge` patches are one row.
    places: data (items, patches, width), sizes (items, patches, 2) of x and y, -1 for padding; a graph's `shape` is
    height and width. `pool` x `pool` patches are one row; `at_once` items of one shape may go through a graph of as
    many `images`.
    frames: data (items, frames, width), sizes (items, frames), 0 for padding; the shortest graph of at least as many
    `frames` takes them, padded by zeros, and `mask` says which are real. Each `frames_per_token` begun are one row.
    """
    return {"name": name, "form": form, "input": given, "outputs": list(outputs), **numbers}


def whole(index: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The one graph of a bundle with layers="whole" (kind `model`): ids, media, index, masks and tables go in.

    items: for each tower `tower`, `input` and the `items` (their sizes) that a prompt has to have; "{item}" in a name
    is the item's number, a name without takes all of them.
    """
    return {"input_ids": "input_ids", **({"index": index, "media": [dict(each) for each in items]} if items else {})}


# --- what a host makes of it ---


def read(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of a bundle's manifest. Raises CircleError where it is missing or of another version."""
    data = manifest.get("host_data")
    if not isinstance(data, Mapping) or data.get("version") != VERSION:
        seen = data.get("version") if isinstance(data, Mapping) else data
        raise CircleError(
            f"host_data of the manifest has version {seen!r}, this pyquant knows {VERSION}; export the bundle again"
        )
    return data


def require(seen: Any, expected: Any, path: str = "host_data") -> None:
    """Raise CircleError at the first entry of `seen` that is not `expected`: what a host does whose flow is code."""
    if isinstance(seen, Mapping) and isinstance(expected, Mapping):
        for key in sorted({*seen, *expected}):
            require(seen.get(key), expected.get(key), f"{path}.{key}")
    elif isinstance(seen, list) and isinstance(expected, list) and len(seen) == len(expected):
        for index, (one, other) in enumerate(zip(seen, expected, strict=True)):
            require(one, other, f"{path}[{index}]")
    elif seen != expected:
        raise CircleError(
            f"{path} of the manifest is {seen!r}, and the host of this model family does {expected!r}; export the "
            "bundle again with this pyquant"
        )
