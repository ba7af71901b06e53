# SPDX-License-Identifier: Apache-2.0
"""What wrappers declare of how weights belong together, checked against the arithmetic of each family."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import pyquant
from pyquant.models.gemma4 import whole_example
from pyquant.models.llama import example as llama
from pyquant.models.qwen3_vl import example as qwen3_vl
from pyquant.wrap import QModule, structure

FAMILIES = {"llama": llama, "qwen3_vl": qwen3_vl, "gemma4": whole_example}


@cache
def tree(family: str) -> QModule:
    return pyquant.prepare(FAMILIES[family].tiny_model(), pyquant.Policy.preset("float"))


def watched(q: Any, modules: list[Any], batch: dict[str, Any]) -> dict[Any, list[torch.Tensor]]:
    """What each linear multiplies in one call."""
    seen: dict[Any, list[torch.Tensor]] = {module: [] for module in modules}
    handles = [module.watch_rows(lambda _, rows, own=own: own.append(rows)) for module, own in seen.items()]
    with torch.no_grad():
        q(**batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_that_share_an_input_multiply_the_same_rows(family: str) -> None:
    q = tree(family)
    leaders = structure.shared_inputs(q)
    assert leaders
    batch = FAMILIES[family].example_inputs(FAMILIES[family].tiny_model())
    seen = watched(q, list(leaders), batch)
    for module, leader in leaders.items():
        assert seen[module], module.path
        assert all(torch.equal(a, b) for a, b in zip(seen[module], seen[leader], strict=True)), module.path


def test_streams_say_who_reads_and_writes_them() -> None:
    (stream,) = structure.streams(tree("llama"))
    assert (len(stream.writers), len(stream.readers), stream.obstacles) == (7, 7, ())
    visual, text = structure.streams(tree("qwen3_vl"))
    assert (len(visual.writers), len(visual.readers), visual.obstacles) == (8, 9, ())
    assert [m.path for m in text.writers if "merger" in m.path] == [
        "model.visual.merger.linear_fc2",
        "model.visual.deepstack_merger_list.0.linear_fc2",
        "model.visual.deepstack_merger_list.1.linear_fc2",
    ]
    (gemma,) = structure.streams(tree("gemma4"))
    assert "model.language_model.layers.0.post_attention_layernorm" in [m.path for m in gemma.obstacles]


def test_values_and_outputs_are_paired_by_heads() -> None:
    (pair, *_) = [pair for pair in structure.pairs(tree("llama")) if pair.heads]
    heads, kv_heads, size = 4, 2, pair.heads
    expected = [head // (heads // kv_heads) * size + channel for head in range(heads) for channel in range(size)]
    assert pair.rows.tolist() == expected


def test_blocks_are_in_the_order_in_which_they_run() -> None:
    paths = {blocks.path: [module.path for module in blocks.modules] for blocks in structure.blocks(tree("qwen3_vl"))}
    assert paths["model.language_model"] == [f"model.language_model.layers.{i}" for i in range(3)]
    assert len(paths["model.visual"]) == 3
