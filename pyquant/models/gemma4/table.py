# SPDX-License-Identifier: Apache-2.0
"""Where the table of per-layer embeddings is: in one graph, in several, or beside them for the host.

It owns the choice, the graphs of a split table and the file of the host's. In E2B it has 2.35 G numbers, and a
flatbuffer ends at 2 GiB. What the rows are used for is text/per_layer.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyquant.decoder import row_table
from pyquant.decoder.ends import embedding_profile
from pyquant.errors import InputError
from pyquant.models.gemma4.text.embedding import QuantGemma4TextScaledWordEmbedding
from pyquant.wrap.adapter import GraphAdapter

if TYPE_CHECKING:
    from pyquant.models.gemma4.text.model import QuantGemma4TextModel

PerLayerTable = Literal["auto", "graph", "layers", "rows", "host"]
NAME, OUTPUT = "per_layer_embedding", "per_layer_tokens"
FILE = f"{NAME}.safetensors"
LIMIT = (1 << 31) - (1 << 26)  # bytes of constants that a file of 32-bit offsets holds, its head beside them
READERS = (
    "the file is larger than 2 GiB: its constants stand behind the flatbuffer (Buffer.offset and Buffer.size), which "
    "readers of circle schema 0.7 and later find, TICO's runtime among them; others need per_layer_table='layers', "
    "'rows' or 'host'"
)


@dataclass(frozen=True)
class TablePart:
    """One graph of a split table: input_ids (B, S) -> per_layer_tokens (B, S, n * P) of layers `start` to `stop`, or,
    `by` "rows", (B, S, L * P) of ids that count from row `start`."""

    batch_size: int
    seq_len: int | None
    by: Literal["layers", "rows"]
    start: int
    stop: int

    @property
    def name(self) -> str:
        return embedding_profile(1, self.seq_len, part_name(self.by, self.start, self.stop)).name


def part_name(by: str, start: int, stop: int) -> str:
    """The graph of a part, without a length."""
    return f"{NAME}_{by}{start}_{stop}"


def chosen(option: str, table: QuantGemma4TextScaledWordEmbedding) -> str:
    """`option` with "auto" decided: "graph" where that is a file of less than 2 GiB, else "layers"."""
    if option != "auto":
        return option
    return "graph" if row_table.bytes_of(table) <= LIMIT else "layers"


def parts(option: str, table: QuantGemma4TextScaledWordEmbedding, layers: int) -> list[tuple[int, int]]:
    """(start, stop) of the parts of a split table, as few as fit into files of less than 2 GiB each, two at least."""
    total = layers if option == "layers" else table.num_embeddings
    most = max(1, LIMIT * total // row_table.bytes_of(table))  # of one part
    count = min(total, max(2, -(-total // most)))
    ends = [total * i // count for i in range(count + 1)]
    return list(itertools.pairwise(ends))


def part_graph(model: QuantGemma4TextModel, profile: TablePart) -> GraphAdapter:
    """A part of the table as a graph; it holds that part alone."""
    table, width = model.embed_tokens_per_layer, model.per_layer_width
    own = slice(profile.start, profile.stop)
    rows, columns = own, slice(0, table.embedding_dim)
    if profile.by == "layers":
        rows, columns = slice(0, table.num_embeddings), slice(own.start * width, own.stop * width)

    def call(ids: Tensor, *, table: QuantGemma4TextScaledWordEmbedding, **_: nn.Module) -> Tensor:
        found = F.embedding(ids, table.site("weight").part(table.weight, rows, columns))
        return table.q("act_out", found * table.factor)

    plain = embedding_profile(profile.batch_size, profile.seq_len, part_name(profile.by, own.start, own.stop), OUTPUT)
    return GraphAdapter(model, call, inputs=plain.inputs, outputs=(OUTPUT,), name=profile.name, parts={"table": table})


def files(table: QuantGemma4TextScaledWordEmbedding) -> Mapping[str, Callable[[Path], None]]:
    """The file of option "host"."""
    return {FILE: lambda path: row_table.save(path, table)}


def manifest(option: str, table: QuantGemma4TextScaledWordEmbedding, layers: int) -> dict[str, Any]:
    """The entries of a manifest for a table that is not in one graph: `tables`, or `per_layer_parts`."""
    if option == "host":
        return {"tables": {NAME: row_table.entry(table, FILE, output=OUTPUT, factor=table.factor)}}
    if option in ("layers", "rows"):
        return {"per_layer_parts": {"by": option, "parts": [list(each) for each in parts(option, table, layers)]}}
    return {}


def joined(
    run: Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]],
    names: Callable[[str], str],
    split: Mapping[str, Any],
    ids: Tensor,
) -> Tensor:
    """Rows (B, S, L * P) for ids (B, S), from the graphs of a split table. names: of a part's graph for this length.

    Raises InputError for an id behind the last row.
    """
    ranges: Sequence[Sequence[int]] = split["parts"]
    if split["by"] == "layers":
        given = {"input_ids": ids.int()}
        return torch.cat([run(names(part_name("layers", *own)), given)[OUTPUT] for own in ranges], dim=-1)
    if not 0 <= int(ids.min()) <= int(ids.max()) < ranges[-1][1]:
        raise InputError(f"the per-layer table has rows 0 to {ranges[-1][1] - 1}, got ids {torch.unique(ids).tolist()}")
    out: Tensor | None = None
    for start, stop in ranges:
        inside = (ids >= start) & (ids < stop)
        if bool(inside.any()):
            local = (ids - start).clamp(0, stop - start - 1).int()
            rows = run(names(part_name("rows", start, stop)), {"input_ids": local})[OUTPUT]
            out = rows if out is None else torch.where(inside[..., None], rows, out)
    assert out is not None, "some part has each id"
    return out
