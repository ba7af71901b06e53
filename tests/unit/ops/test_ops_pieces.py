# SPDX-License-Identifier: Apache-2.0
"""Large tensors some rows at a time: the integers of the whole, whatever the granularity and however it is cut."""

from __future__ import annotations

import pytest
import torch

from pyquant import ops
from pyquant.ops import pieces

SHAPE = (37, 24)
GRIDS = {
    "tensor": (None, 0, ()),
    "rows": (0, 0, (37,)),
    "columns": (1, 0, (24,)),
    "columns_from_the_end": (-1, 0, (24,)),
    "groups_of_columns": (1, 8, (37, 3)),
    "groups_of_rows": (0, 37, (1, 24)),
}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 100)


def grid(name: str, bits: int) -> ops.Grid:
    axis, group, shape = GRIDS[name]
    scale = torch.rand(shape) * 0.1 + 0.05
    low, high = (-7, 7) if bits == 4 else (-127, 127)
    return ops.Grid(scale, torch.zeros(shape, dtype=torch.int32), axis, group, low, high, torch.int8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", GRIDS)
def test_pieces_are_those_of_the_whole(name: str, bits: int, dtype: torch.dtype) -> None:
    x, g = torch.randn(SHAPE).to(dtype), grid(name, bits)
    given = x if dtype != torch.float64 else x.float()
    whole = ops.quantize(given, g.scale, g.zero_point, g.axis, g.group, g.qmin, g.qmax, g.dtype)
    found = list(ops.quantize_pieces(x, g, packed=bits == 4))
    assert len(found) > 1 or name == "groups_of_rows"
    expected = ops.pack_int4(whole) if bits == 4 else whole.reshape(-1)
    assert torch.equal(torch.cat(found), expected)
    assert torch.equal(ops.joined(found, expected.numel(), expected.dtype), expected)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 0), (3, 1000), (1000,), (4, 3, 50)])
def test_rows_cover_a_tensor_once(shape: tuple[int, ...]) -> None:
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = [ops.rows_of(x, rows).reshape(-1) for rows in ops.row_slices(shape)]
    assert torch.equal(torch.cat(parts), x.reshape(-1))
    assert max(len(part) for part in parts) <= max(100, torch.Size(shape[1:]).numel())


def test_groups_of_rows_are_not_cut() -> None:
    x = torch.randn(64, 10)
    g = ops.Grid(torch.rand(16, 10) + 0.1, torch.zeros(16, 10, dtype=torch.int32), 0, 4, -7, 7, torch.int8)
    whole = ops.quantize(x, g.scale, g.zero_point, 0, 4, -7, 7, torch.int8)
    found = list(ops.quantize_pieces(x, g, packed=False))
    assert len(found) == 8
    assert torch.equal(torch.cat(found), whole.reshape(-1))
