# SPDX-License-Identifier: Apache-2.0
"""torch.compile of a quantized tree gives what the tree gives: no forward depends on who traces it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyquant
from pyquant import models
from pyquant.wrap import QModule

torch.set_num_threads(1)


EXAMPLES = {name: models.by_name(name).example for name in models.FAMILIES}
EXAMPLES |= {each.__name__.removeprefix("pyquant.models."): each for each in models.by_name("gemma4").parts}  # type: ignore[attr-defined]


def tree(family: str) -> tuple[QModule, dict[str, Any]]:
    example = EXAMPLES[family]
    fp = example.tiny_model()
    batch = example.example_inputs(fp)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    return q, batch


# Half a minute each; the default run compiles a Llama and Gemma4's vision tower.
SLOW = ("gemma4", "gemma4.text.example", "gemma4.audio.example", "gemma4.whole_example", "qwen3_vl")
# Of the other two families, towers read their grids and masks as numbers, which ends a graph.
WHOLE = ("llama",)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in EXAMPLES]
)
@torch.no_grad()
def test_compiled_is_eager(family: str) -> None:
    """Of a Qwen3-VL, positions of a prompt with an image were those of text, 14.6 dB from the tree's."""
    q, batch = tree(family)
    expected = q(**batch)[0]
    compiled = torch.compile(q, backend="eager", fullgraph=family in WHOLE)
    assert torch.equal(compiled(**batch)[0], expected)
    # A Qwen3-VL keeps the positions of its last prompt.
    with torch._dynamo.config.patch(error_on_recompile=family != "qwen3_vl"):
        assert torch.equal(compiled(**batch)[0], expected), "the second call takes what the first compiled"


@pytest.mark.slow  # 23 s
@torch.no_grad()
def test_a_compiled_prompt_leaves_the_positions_of_the_next_token() -> None:
    q, batch = tree("qwen3_vl")
    expected = q.generate(**batch, max_new_tokens=4, do_sample=False)  # type: ignore[operator]
    torch.compile(q, backend="eager")(**batch)
    assert torch.equal(q.generate(**batch, max_new_tokens=4, do_sample=False), expected)  # type: ignore[operator]
