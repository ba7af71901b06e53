# SPDX-License-Identifier: Apache-2.0
"""Rows of a quantized table: those of the whole table bit for bit, and no other row is quantized."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyquant
from pyquant import PerAxis, PerGroup, PerTensor, Policy, QuantSpec, Rule, ops
from pyquant.exporter.profile import TensorSpec
from pyquant.spec import INT4, INT8, UINT4, BlockSpec
from pyquant.wrap import QModule, Role

ROWS, WIDTH = 40, 64
SPECS: dict[str, QuantSpec] = {
    "tensor": QuantSpec(INT8, symmetric=True, granularity=PerTensor()),
    "row": QuantSpec(INT4, symmetric=True, granularity=PerAxis(0)),
    "row_from_the_end": QuantSpec(UINT4, symmetric=False, granularity=PerAxis(-2)),
    "column": QuantSpec(UINT4, symmetric=False, granularity=PerAxis(1)),
    "groups_of_a_row": QuantSpec(INT4, symmetric=True, granularity=PerGroup(1, 16)),
    "groups_of_a_row_from_the_end": QuantSpec(UINT4, symmetric=False, granularity=PerGroup(-1, 32)),
    "blocks": BlockSpec("q4_0"),
    "groups_of_rows": QuantSpec(INT4, symmetric=True, granularity=PerGroup(0, 8)),
}
OF_ONE_ROW = [name for name in SPECS if name != "groups_of_rows"]
IDS = torch.tensor([[0, 39, 7], [7, 7, 21]])


def table(spec: QuantSpec | None, dtype: torch.dtype = torch.float32) -> QModule:
    fp = nn.Embedding(ROWS, WIDTH).to(dtype)
    with torch.no_grad():
        fp.weight.mul_(torch.rand(ROWS, 1) + 0.1)
    q = pyquant.prepare(fp, Policy([Rule("*", role=Role.EMBEDDING, spec=spec)]))
    pyquant.calibrate(q, [IDS], progress=False)
    pyquant.convert(q)
    return q


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SPECS)
def test_rows_are_those_of_the_table(name: str, dtype: torch.dtype) -> None:
    q = table(SPECS[name], dtype)
    whole = q.site("weight").constant(q.weight)
    assert whole.dtype == dtype
    for ids in (IDS, IDS.int(), IDS[0, 0], torch.zeros(2, 0, dtype=torch.int64)):
        assert torch.equal(q(ids), nn.functional.embedding(ids, whole))


@pytest.mark.parametrize("name", SPECS)
def test_gradients_reach_the_rows_as_through_the_table(name: str) -> None:
    q = table(SPECS[name]).train()
    by_rows, by_table = (
        torch.autograd.grad(out.square().sum(), q.weight)[0]
        for out in (q(IDS), nn.functional.embedding(IDS, q.site("weight").constant(q.weight)))
    )
    assert by_rows.abs().sum() > 0
    assert torch.equal(by_rows, by_table)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: object = None) -> object:  # type: ignore[type-arg]
        out = func(*args, **(kwargs or {}))  # type: ignore[operator, dict-item]
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("name", OF_ONE_ROW)
def test_a_lookup_makes_no_tensor_of_the_tables_size(name: str) -> None:
    q = table(SPECS[name])
    with Largest() as largest:
        q(IDS)
    assert largest.elements == IDS.numel() * WIDTH


def test_a_tap_sees_the_whole_table() -> None:
    q = table(SPECS["tensor"])
    seen: list[tuple[int, ...]] = []
    with q.site("weight").tap(lambda site, x, out, **_: seen.append(tuple(out.shape))):  # type: ignore[arg-type,return-value]
        q(IDS)
    assert seen == [(ROWS, WIDTH)]


def test_the_graph_reads_the_whole_table() -> None:
    q = table(SPECS["tensor"])
    spec = TensorSpec((2, 3), torch.int32)
    program = pyquant.export(q, pyquant.ExportProfile({"ids": spec}, ("out",)), allow_float=True)
    (constant,) = (t for t in program.graph.tensors if t.constant is not None and t.shape == (ROWS, WIDTH))
    assert constant.dtype == "int8"
    qparams = q.site("weight").qparams
    assert qparams is not None
    stored = program.graph.constants[constant.constant or 0].tensor()
    real = ops.dequantize(stored, qparams.scale, qparams.zero_point, None, 0)
    assert torch.equal(real, q.site("weight").constant(q.weight))
