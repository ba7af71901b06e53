# SPDX-License-Identifier: Apache-2.0
"""Chunked local attention as shapes: blocks of queries, the context that each block sees, relative positions.

It owns the moves (pad, reshape, slice, concatenate), which change no value and are all that a static graph needs in the
place of HF's unfold. Arithmetic is attention.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """Blocks of `size` tokens; each sees `past` tokens before it and `future` tokens after it, beside its own."""

    size: int
    past: int
    future: int

    @classmethod
    def of(cls, config: Any) -> Chunks:
        """Of a Gemma4AudioConfig, whose left context counts the token itself."""
        left, right = int(config.attention_context_left), int(config.attention_context_right)
        return cls(int(config.attention_chunk_size), left - 1, right)

    @property
    def context(self) -> int:
        """Tokens that a block sees."""
        return self.past + self.size + self.future

    def count(self, length: int) -> int:
        """Blocks of `length` tokens."""
        return -(-length // self.size)

    def blocks(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, blocks * size, D), with zeros after the last token."""
        missing = self.count(x.shape[1]) * self.size - x.shape[1]
        return F.pad(x, (0, 0, 0, missing)) if missing else x

    def contexts(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, blocks, context, D): the tokens that each block sees, zeros beyond both ends.

        A context is made of parts as long as a block. Part i of all contexts is the sequence i blocks later, so there
        are as many slices as a context has parts, however many blocks there are.
        """
        batch, length, width = x.shape
        count, parts = self.count(length), -(-self.context // self.size)
        after = (count + parts - 1) * self.size - self.past - length
        padded = F.pad(x, (0, 0, self.past, after))
        found = []
        for part in range(parts):
            first = part * self.size
            shifted = padded[:, first : first + count * self.size].reshape(batch, count, self.size, width)
            found.append(shifted[:, :, : min(self.size, self.context - first)])
        return torch.cat(found, dim=2)

    def shift(self, x: Tensor) -> Tensor:
        """(..., size, positions) by distance -> (..., size, context) by key: row i moves i places to the right.

        The shift of Transformer-XL (arXiv 1901.02860, appendix B): rows one element longer than a context, read as rows
        of a context. Zero where no position reaches.
        """
        *lead, rows, positions = x.shape
        padded = F.pad(x, (0, self.context + 1 - positions)).reshape(*lead, rows * (self.context + 1))
        return padded[..., : rows * self.context].reshape(*lead, rows, self.context)

    def window(self, device: torch.device) -> Tensor:
        """1.0 where a query of a block may look, of the tokens that its block sees: (size, context), float32.

        `past` keys up to the query itself, and `future` - 1 after it, as HF's sliding window counts them.
        """
        query = torch.arange(self.size, dtype=torch.int64, device=device)[:, None] + self.past
        distance = query - torch.arange(self.context, dtype=torch.int64, device=device)
        before = (distance >= 0) & (distance < self.past)
        after = (distance < 0) & (-distance < self.future)
        return (before | after).to(torch.float32)
