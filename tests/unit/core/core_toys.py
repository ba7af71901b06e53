# SPDX-License-Identifier: Apache-2.0
"""Small float models and their wrappers for the tests of the core: a gated block, tied tables, a norm without a gain.

It owns nothing of the library; each toy shows one thing that wrappers of real models do.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pyquant.site import Role
from pyquant.wrap import QModule, WrapContext, register


class ToyNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class ToyBlock(nn.Module):
    """x + down(softmax(up(norm(x)))), with the last linear optional."""

    def __init__(self, size: int = 8, hidden: int = 12, extra: bool = False) -> None:
        super().__init__()
        self.norm = ToyNorm(size)
        self.up = nn.Linear(size, hidden)
        self.down = nn.Linear(hidden, size, bias=False)
        self.extra = nn.Linear(size, size) if extra else None
        self.register_buffer("table", torch.arange(float(size)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.down(torch.softmax(self.up(self.norm(x)), -1)) + self.table
        return y if self.extra is None else self.extra(y)


class ToyModel(nn.Module):
    """A lookup table, some blocks, and a head that shares the table's weights."""

    def __init__(self, size: int = 8, vocab: int = 10, layers: int = 2, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, size)
        self.layers = nn.ModuleList(ToyBlock(size) for _ in range(layers))
        self.head = nn.Linear(size, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class ToyUnknown(nn.Module):
    """A module without a wrapper."""


class ToyLinear(nn.Linear):
    """A subclass of a class that has a wrapper."""


@register(ToyNorm)
class QuantToyNorm(QModule):
    SITES: ClassVar = {"weight": Role.CONSTANT, "act_out": Role.ACTIVATION}

    def __init__(self, fp: ToyNorm, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.weight = fp.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.q("act_out", x * self.const("weight", self.weight))


@register(ToyBlock)
class QuantToyBlock(QModule):
    CHILDREN = ("norm", "up", "down", "extra")
    OPTIONAL = ("extra",)
    SITES: ClassVar = {
        "act_in": Role.ACTIVATION,
        "probs": Role.SOFTMAX,
        "table": Role.CONSTANT,
        "act_out": Role.ACTIVATION,
    }

    def __init__(self, fp: ToyBlock, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.register_buffer("table", fp.table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.q("act_in", x)
        probs = self.q("probs", torch.softmax(self.up(self.norm(x)), -1))
        y = self.q("act_out", x + self.down(probs) + self.const("table", self.table))
        return y if self.extra is None else self.extra(y)


@register(ToyModel)
class QuantToyModel(QModule):
    CHILDREN = ("embed", "layers", "head")

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
