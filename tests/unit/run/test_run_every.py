# SPDX-License-Identifier: Apache-2.0
"""What the checker admits runs, and gives the right integers: every operator of ops.def with every dtype that it takes,
one scale or one for each channel of each axis of each operand, every activation, constant and computed operands.

What operators compute is every_operator.py, which combinations there are combinations.py. Those of one operator stand
side by side in one file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from combinations import ENDS, OPERATORS, QUANTIZED, Combination, Operand, combinations
from every_operator import ACTIVATIONS, CASES, Real
from one_operator import unpack

from pyquant import circle
from pyquant.circle import write as circle_write

#: of float results: relative, and of numbers up to 4
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
FEWEST = 10_000
BATCH = 150  # fewer than there may be faults in a list
COUNTED: dict[str, tuple[int, int]] = {}


def test_every_operator_has_a_case() -> None:
    assert set(CASES) == set(OPERATORS)


@pytest.mark.parametrize("name", CASES)
def test_what_is_admitted_runs_and_is_right(name: str, tmp_path: Path) -> None:
    tried = list(combinations(name))
    admitted = [c for at in range(0, len(tried), BATCH) for c in _admitted(tried[at : at + BATCH])]
    assert admitted
    text, constants, given = _plan(admitted)
    circle_write(text, [_as_torch(c) for c in constants], tmp_path / "every.circle")
    made = circle.Runner(tmp_path / "every.circle", threads=1).run([_as_array(x) for x in given])
    results = iter(made.values())
    for c in admitted:
        for y, right in zip(c.outputs, c.reference(), strict=True):
            assert not (wrong := _wrong(c, y, right, next(results))), f"{c}: {wrong}"
    COUNTED[name] = len(admitted), len(tried)


def test_how_many_there_were() -> None:
    ran, tried = (sum(counts[i] for counts in COUNTED.values()) for i in range(2))
    print(f"\n{ran:,} combinations of {tried:,} are admitted, and ran")
    assert len(COUNTED) < len(CASES) or ran > FEWEST  # fewer operators where tests are split among processes


@pytest.mark.parametrize(
    ("name", "dtype", "options", "code"),
    [
        ("ADD", "float32", {"fused_activation_function": "SIGN_BIT"}, "E_OPTION_VALUE"),
        ("ADD", "int32", {"fused_activation_function": "TANH"}, "E_OPTION_VALUE"),
        ("CONCATENATION", "bool", {"fused_activation_function": "RELU"}, "E_OPTION_VALUE"),
        ("FULLY_CONNECTED", "float32", {"weights_format": "SHUFFLED4x16INT8"}, "E_OPTION_VALUE"),
        ("FULLY_CONNECTED", "float16", {"weights_format": "SHUFFLED16x1FLOAT32"}, "E_OPTION_VALUE"),
    ],
)
def test_what_nothing_computes_is_refused(name: str, dtype: str, options: dict[str, Any], code: str) -> None:
    found = [
        c
        for c in combinations(name)
        if c.operands[0].dtype == dtype and all(c.options[key] == value for key, value in options.items())
    ]
    assert found
    for c in found:
        text, constants, _ = _plan([c])
        faults = circle.check_plan(text, [int(x.nbytes) for x in constants])
        assert code in {fault.code for fault in faults}, f"{c}: {faults}"


def test_integers_with_a_scale_are_biases() -> None:
    """As data of an operator that computes they are refused: int32 and int64 have no grid to round to."""
    for name in ("ADD", "SUM", "EQUAL", "ARG_MAX", "RANGE", "TOPK_V2"):
        for c in combinations(name):
            if c.operands[0].dtype in ("int32", "int64") and any(t.scale is not None for t in c.operands):
                assert not _admitted([c]), str(c)


def _plan(some: Sequence[Combination]) -> tuple[str, list[Any], list[Any]]:
    """The text of a plan of these operators, its constants, and its inputs."""
    tensors: list[Any] = []
    operators, inputs, outputs, constants, given = [], [], [], [], []
    for c in some:
        places = []
        for t in c.inputs:
            if t is None:
                places.append(-1)
                continue
            places.append(len(tensors))
            if not t.constant:
                inputs.append(len(tensors))
            (constants if t.constant else given).append(t.stored)
            tensors.append(_tensor(t, len(tensors), len(constants) - 1 if t.constant else None))
        made = []
        for t in c.outputs:
            made.append(len(tensors))
            tensors.append(_tensor(t, len(tensors), None))
        outputs += made
        operators.append({"op": c.name, "inputs": places, "outputs": made, "options": c.options})
    named = {"inputs": {f"t{i}": i for i in inputs}, "outputs": {f"t{i}": i for i in outputs}}
    plan = {"format": "pyquant-plan", "version": 1, "name": some[0].name, "description": "", "metadata": {}}
    plan |= {"tensors": tensors, "operators": operators, "inputs": inputs, "outputs": outputs}
    return json.dumps(plan | {"signature": {"key": "serving_default", **named}}), constants, given


def _tensor(t: Operand, index: int, constant: int | None) -> dict[str, Any]:
    out: dict[str, Any] = {"name": f"t{index}", "dtype": t.dtype, "shape": list(t.shape)}
    if t.scale is not None:
        out["quant"] = {"scale": [float(s) for s in t.scale], "zero_point": [int(z) for z in t.zero]}
        out["quant"] |= {} if t.axis is None else {"axis": t.axis}
    return out if constant is None else out | {"constant": constant}


def _admitted(some: Sequence[Combination]) -> list[Combination]:
    text, constants, _ = _plan(some)
    owner = [k for k, c in enumerate(some) for _ in c.operands]
    refused = set()
    for fault in circle.check_plan(text, [int(c.nbytes) for c in constants]):
        place = re.match(r"(operators|tensors)\[(\d+)\]", fault.where)
        assert place, fault
        refused.add(int(place[2]) if place[1] == "operators" else owner[int(place[2])])
    return [c for k, c in enumerate(some) if k not in refused]


def _as_torch(stored: Any) -> torch.Tensor:
    return stored if isinstance(stored, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(stored))


def _as_array(stored: Any) -> Any:
    if not isinstance(stored, torch.Tensor):
        return stored
    return stored.view(torch.uint16).numpy() if stored.dtype == torch.bfloat16 else stored.numpy()


def _wrong(c: Combination, y: Operand, reals: Any, got: Any) -> str:
    """Where an output differs from real numbers, in words."""
    if y.dtype in ("int4", "uint4"):
        got = unpack(got, y.shape, y.dtype)
    if y.dtype in TOLERANCE:
        got = (got.astype(np.uint32) << 16).view(np.float32) if y.dtype == "bfloat16" else got
        right = ACTIVATIONS[c.activation](np.asarray(reals, Real))
        near = TOLERANCE[y.dtype]
        same = np.isclose(got.astype(Real), right, rtol=near, atol=4 * near, equal_nan=True)
    elif c.name == "CAST" or (y.dtype not in QUANTIZED and y.scale is None):
        right = np.asarray(reals) != 0 if y.dtype == "bool" else ACTIVATIONS[c.activation](np.asarray(reals))
        same = got == right
    else:
        right, sure = _rounded(ACTIVATIONS[c.activation](np.asarray(reals, Real)), y)
        same = (got.astype(np.int64) == right) | (~sure & (not c.case.exact or c.activation == "TANH"))
    return "" if bool(np.all(same)) else f"{got.tolist()}, right is {np.asarray(right).tolist()}"


def _rounded(reals: Any, y: Operand) -> tuple[Any, Any]:
    """The integers of real numbers; which of these are more than 1e-9 from a step."""
    lo, hi = ENDS.get(y.dtype, (-(2**31), 2**31 - 1))
    scale, zero = (Real(1), 0) if y.scale is None else (y.by_element(y.scale), y.by_element(y.zero))
    size = np.minimum(np.nan_to_num(abs(reals), posinf=1e9), Real(1e9))
    n = np.floor(size / scale)  # may be off by one; products with a step are exact
    n = np.where((2 * n + 1) * scale <= 2 * size, n + 1, n)
    n = np.where((n > 0) & ((2 * n - 1) * scale > 2 * size), n - 1, n)
    q = np.clip(np.where(reals < 0, -n, n) + zero, lo, hi)
    return np.where(np.isnan(reals), lo, q).astype(np.int64), abs(size / scale % 1 - 0.5) >= 1e-9
