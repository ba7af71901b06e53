# SPDX-License-Identifier: Apache-2.0
"""A text model with towers before it: what enters its layers, and which places of a prompt are not text.

It owns the site of joined rows. What towers make and where their rows go is the family's, the look-up fusion.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.fusion import join
from pyquant.decoder.masks import key_padding
from pyquant.decoder.model import DecoderModel
from pyquant.wrap.base import Phase, Role
from pyquant.wrap.embedding import QuantEmbedding
from pyquant.wrap.hf_model import QModel


class MultimodalModel(QModel):
    """Towers and a text model; rows of towers replace the placeholders of the prompt.

    `fused` is the join of text and rows. A call without rows has none and goes to the text model as it is; its
    embeddings teach `fused` all the same.
    """

    SITES = {"fused": Role.ACTIVATION}

    language_model: DecoderModel

    def get_input_embeddings(self) -> Any:
        """The text model's table."""
        return self.language_model.embed_tokens

    @property
    def table(self) -> QuantEmbedding:
        """The same, as what it is."""
        table: QuantEmbedding = self.get_input_embeddings()
        return table

    def fused(self, given: Tensor, rows: Sequence[Tensor], index: Tensor | None, mask: Any, cache: Any) -> Tensor:
        """What enters the text model: given, ids (B, S) or embeddings (B, S, D), joined with rows (n, D) by index (see
        fusion.join; None: no rows). Padding has zeros there while calibrating, and no part in any statistics."""
        valid = None
        if self.observes:
            past, length = length_of(cache), given.shape[1]
            padding = key_padding(mask if isinstance(mask, Tensor) else None, past, length)
            valid = None if padding is None else padding[:, past:].expand(given.shape[0], -1)
        text = given
        if not given.is_floating_point():
            table = self.get_input_embeddings()
            if valid is None:
                text = table(given)
            else:
                seen = table(given[valid])
                text = seen.new_zeros(*given.shape, seen.shape[-1])
                text[valid] = seen
        if index is not None:
            text = join(text, [each.to(text.device, text.dtype) for each in rows], index)
        elif not self.observes:
            return text
        return self.q("fused", text, observed=text if valid is None else text[valid])

    def kinds_of_embeds(self, embeds: Tensor, tokens: Mapping[int, int | None]) -> Tensor:
        """The kind of each place of embeddings (B, S, D), int64 (B, S): that of the placeholder whose row of the table,
        quantized or not, it is, 0 for text. tokens: kind -> its placeholder; None, or no row of the table: none."""
        types = torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        for kind, token in tokens.items():
            if token is None or token >= self.table.num_embeddings:
                continue
            ids = torch.tensor([token], device=embeds.device, dtype=torch.int64)
            rows = [self.table.float_rows(ids)[0]]
            if self.phase is Phase.QUANTIZED:
                rows.append(self.table(ids)[0])
            for row in rows:
                types[(embeds == row.to(embeds.dtype)).all(dim=-1)] = kind
        return types


def length_of(cache: Any) -> int:
    """Tokens in a cache, 0 without one."""
    return 0 if cache is None else int(cache.get_seq_length())


def whole_rows(parts: Tensor | Sequence[Tensor]) -> Tensor:
    """HF hands rows of a tower on as one tensor or as one per image."""
    return parts if isinstance(parts, Tensor) else torch.cat(list(parts))
