# SPDX-License-Identifier: Apache-2.0
"""The join of text and rows of other towers: one look-up in [text ; rows], at any places, of any row, by an index.

It owns the index and the look-up, the same for eager use and for graphs. The grid of the joined rows is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyquant.errors import InputError


class Rows(NamedTuple):
    """`number` rows of one tower for the placeholders of `kind`. word, source: what errors call a placeholder, and the
    argument that the rows come from."""

    kind: int
    number: int
    word: str
    source: str


def row_index(types: Tensor, towers: Sequence[Rows], advice: str) -> Tensor:
    """Where each place of a prompt finds its row: int64 (B, S) over [text (B * S) ; rows of the first tower ; ...].

    types (B, S): the kind of each place. Text finds itself; the r-th place of a kind, row by row, the r-th row of its
    tower. Raises InputError, with `advice`, unless there is one place for each row.
    """
    batch, length = types.shape
    index = torch.arange(batch * length, device=types.device, dtype=torch.int64)
    flat, first = types.reshape(-1), batch * length
    for kind, rows, word, source in towers:
        here = flat == kind
        if rows != (count := int(here.sum())):
            per_row = (types == kind).sum(dim=1).tolist()
            raise InputError(
                f"the prompt has {count} {word} placeholder tokens ({', '.join(map(str, per_row))} in its rows), but "
                f"{source} make {rows} {word} tokens; {advice}"
            )
        index[here] = first + torch.arange(rows, device=types.device, dtype=torch.int64)
        first += rows
    return index.reshape(batch, length)


def join(text: Tensor, rows: Tensor | Sequence[Tensor], index: Tensor) -> Tensor:
    """text (B, S, D), rows (R, D) or several of them, index (B, S) over [text ; rows] -> (B, S, D)."""
    batch, length, size = text.shape
    parts = [rows] if isinstance(rows, Tensor) else list(rows)
    table = torch.cat([text.reshape(batch * length, size), *parts])
    return table.index_select(0, index.reshape(-1)).reshape(batch, length, size)
