# SPDX-License-Identifier: Apache-2.0
"""The host of a bundle with the whole model in one graph (layers="whole"), which runs once for each token.

It owns the loop's step and what such a bundle refuses. What the graph takes besides text is the family's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyquant.decoder.host import Host, Run
from pyquant.decoder.turn import Past, Prompt
from pyquant.errors import InputError

NEEDS = ("model", "lm_head")  # kinds of graphs


def refuse_past(past: Past | None) -> None:
    """Raise InputError for a chat, which needs a cache."""
    if past is not None:
        raise InputError(
            'this bundle has the model in one graph (layers="whole") without a cache, which a chat needs; export '
            'with layers="stack" and append_lengths=(64,)'
        )


class WholeSteps:
    """The logits of each next token, one call after another: the whole graph, over the prompt and what followed.

    prompt: in all places of the graph. inputs: what the graph takes besides ids, masks and tables.
    """

    def __init__(self, host: Host, run: Run, prompt: Prompt, inputs: Mapping[str, Tensor]) -> None:
        self.host, self.run, self.prompt, self.inputs = host, run, prompt, inputs
        self.width: int | None = None  # of the prompts as transformers has them

    def __call__(self, tokens: Tensor) -> Tensor:
        """All tokens so far (B, S) -> logits (B, vocabulary)."""
        self.width = tokens.shape[1] if self.width is None else self.width
        new, prompt = tokens[:, self.width :], self.prompt
        lengths = prompt.real.sum(dim=1, keepdim=True)
        at = torch.arange(prompt.ids.shape[1], dtype=torch.int64, device="cpu")[None]
        real = at < lengths + new.shape[1]
        added = real & (at >= lengths)
        positions = torch.where(added, at + prompt.deltas, prompt.positions)
        now = prompt.replaced(prompt.ids.masked_scatter(added, new), real, positions)
        masks = self.host.masks("model", now, self.host.empty(), past=False)
        given = {"input_ids": self.host.text_ids(now.ids).int(), **self.inputs, **masks, **self.host.tables(positions)}
        hidden = self.run("model", given)["hidden_states"]
        rows = torch.arange(len(hidden), dtype=torch.int64, device="cpu")
        return self.host.logits(self.run, hidden[rows, real.sum(dim=1) - 1][:, None])
