# SPDX-License-Identifier: Apache-2.0
"""pyquant's own runner beside onert, on every operator and type that onert computes correctly (ops.def), and on blocks.

Floats are within 1e-4 of each other, quantized outputs within a step; integers and bools are equal.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from onert_ops import OneOp, one_op
from test_onert_table import CONVERSIONS, FC

from pyquant import circle, ops
from pyquant.circle import operators
from pyquant.circle import write as circle_write
from pyquant.exporter.plan import Graph, Op, Tensor
from pyquant.verify.runtimes import native, onert
from pyquant.verify.runtimes.onert_expected import blocks_of_int8
from tests.onert_blocks import needs_blocks

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
CLOSE = 1e-4
needs_wheel = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")
CONVERTING = {name for name, _, _ in CONVERSIONS}
RIGHT = {name: set(row.onert) - {"int16"} for name, row in operators().items() if name not in CONVERTING}


@needs_wheel
@pytest.mark.parametrize("name", [name for name, dtypes in RIGHT.items() if dtypes])
def test_one_operator(name: str, tmp_path: Path) -> None:
    for dtype in sorted(RIGHT[name]):
        agree(one_op(name, dtype), tmp_path / "one.circle")


@needs_wheel
def test_conversions(tmp_path: Path) -> None:
    done = set()
    for name, dtype, out in CONVERSIONS:
        one = one_op(name, dtype, out)
        one.save(tmp_path / "one.circle")
        if circle.check(tmp_path / "one.circle", "onert") == []:
            agree(one, tmp_path / "one.circle")
            done.add(name)
    assert done == CONVERTING


def agree(one: OneOp, path: Path) -> None:
    one.save(path)
    ours, theirs = native.run(path, one.given), onert.run(path, one.given)
    assert ours.keys() == theirs.keys()
    for key, step in zip(ours, one.steps, strict=True):
        a, b = ours[key].double(), theirs[key].double()
        limit = 1.01 * step if step else CLOSE * float(b.abs().max()) if ours[key].is_floating_point() else 0.0
        assert float((a - b).abs().max()) <= limit, one.graph.tensors


BLOCKS = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}
WEIGHT = torch.randn(9, 96, generator=torch.Generator().manual_seed(3))
IDS = torch.tensor([[3, 0, 8, 3]], dtype=torch.int32)


def with_table(operator: str, bits: int, path: Path) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """A file with WEIGHT in blocks: an input for it, and the weights as ggml's own reader of blocks has them."""
    table = Tensor("t", f"ggml_q{bits}_0", tuple(WEIGHT.shape), constant=0)
    packed = ops.quantize_blocks(WEIGHT, bits)
    if operator == "GATHER":
        tensors = (Tensor("i", "int32", (1, 4)), table, Tensor("y", "float32", (1, 4, 96)))
        made = Graph("g", tensors, (Op(operator, (1, 0), (2,), {"axis": 0, "batch_dims": 0}),), (0,), (2,), (packed,))
    else:
        tensors = (Tensor("x", "float32", (5, 96)), table, Tensor("y", "float32", (5, 9)))
        made = Graph("g", tensors, (Op(operator, (0, 1, -1), (2,), FC),), (0,), (2,), (packed,))
    circle_write(made.to_json(), made.constants, path)
    given = IDS if operator == "GATHER" else torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    return given, gguf.quants.dequantize(packed.numpy(), BLOCKS[bits]).astype(np.float64)


@pytest.mark.parametrize("bits", BLOCKS)
@pytest.mark.parametrize("operator", ["FULLY_CONNECTED", "GATHER"])
def test_blocks_beside_ggmls_reader(operator: str, bits: int, tmp_path: Path) -> None:
    given, table = with_table(operator, bits, tmp_path / "one.circle")
    right = table[given.numpy()] if operator == "GATHER" else given.double().numpy() @ table.T
    (got,) = native.run(tmp_path / "one.circle", [given]).values()
    assert np.abs(got.double().numpy() - right).max() <= 1e-6 * np.abs(right).max()


@needs_wheel
@needs_blocks
@pytest.mark.parametrize(("operator", "bits"), [("FULLY_CONNECTED", 4), ("FULLY_CONNECTED", 8), ("GATHER", 4)])
def test_blocks_beside_onert(operator: str, bits: int, tmp_path: Path) -> None:
    """onert rounds the activations of a product with blocks to 8 bits as it runs: so are those that we are given."""
    given, _ = with_table(operator, bits, tmp_path / "one.circle")
    (theirs,) = onert.run(tmp_path / "one.circle", [given]).values()
    (got,) = native.run(tmp_path / "one.circle", [given if operator == "GATHER" else blocks_of_int8(given)]).values()
    assert float((got - theirs).abs().max()) <= CLOSE * float(theirs.abs().max())
