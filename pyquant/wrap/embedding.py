# SPDX-License-Identifier: Apache-2.0
"""Lookup tables: GATHER from a quantized table.

It owns the format of the table and of the rows that leave it. Which rows are asked for is the model's business.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyquant.errors import InputError, UnknownModuleError
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.registry import register


@register(nn.Embedding)
class QuantEmbedding(QModule):
    """`nn.Embedding`: ids (...) int -> (..., embedding_dim).

    The rows carry the table's own grid; `act_out` brings them to the grid of the activations, so that a 4-bit or
    per-row table is a matter of storage only.
    """

    SITES = {"weight": Role.EMBEDDING, "act_out": Role.ACTIVATION}

    def __init__(self, fp: nn.Embedding, ctx: WrapContext) -> None:
        if fp.max_norm is not None:
            raise UnknownModuleError(
                f"{ctx.path or 'the model'}: nn.Embedding(max_norm={fp.max_norm}) rewrites its table on each lookup, "
                "which a quantized table cannot do; renormalize the table once and set max_norm to None"
            )
        super().__init__(fp, ctx)
        self.weight = fp.weight
        self.num_embeddings, self.embedding_dim = fp.num_embeddings, fp.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """Raises InputError for an id that is not a row of the table."""
        return self.q("act_out", self.rows(ids))

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of `ids` (...) on the table's grid, (..., embedding_dim); only they are quantized where that is
        possible. Raises InputError for an id that is not a row of the table."""
        self.require_rows(ids)
        return self.site("weight").rows(self.weight, ids)

    def float_rows(self, ids: Tensor) -> Tensor:
        """The rows of `ids` (...) as the float model has them, (..., embedding_dim)."""
        return F.embedding(ids, self.weight.detach())

    def require_rows(self, ids: Tensor) -> None:
        """Raise InputError for an id that is not a row of the table, where ids have values (not while tracing)."""
        require_rows(ids, self.num_embeddings, self.path)


def require_rows(ids: Tensor, rows: int, path: str) -> None:
    """Raise InputError for an id that is none of the `rows` of the table at `path`, where ids have values."""
    if type(ids) is not Tensor or ids.is_meta or torch.compiler.is_compiling():
        return
    outside = ((ids < 0) | (ids >= rows)).nonzero()
    if len(outside):
        place = outside[0].tolist()
        raise InputError(
            f"id {int(ids[tuple(place)])} at position {place} is no row of {path or 'the table'}, which has "
            f"{rows} (ids 0 to {rows - 1}); a token id past the vocabulary comes "
            f"from a tokenizer of another model, or from a token that was added without resizing the embeddings"
        )
