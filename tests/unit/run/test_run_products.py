# SPDX-License-Identifier: Apache-2.0
"""Sums of products beside TICO's reference runtime, and 200-bit arithmetic where they differ.

TICO's kernels add up in float32: there, each element that differs is off by one step, and TICO's is the wrong one. The
same kernels given float64 operands agree with the runner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_cases import PRODUCTS
from real_ops import Judged, judge, rounded, wide

from pyquant.verify.runtimes import tico

TYPES = ["int8 int8", "int8 int4", "uint8 uint8", "uint8 uint4", "int16 int8", "int16 int4", "int16 int16"]
EVERY = [
    (name, types)
    for name, case in PRODUCTS.items()
    for types in (TYPES if case.weighted else ("int8", "uint8", "int16"))
]
#: the share of elements that float32 sums put a step off, at most
FLIPS = {"int8": 1e-3, "uint8": 1e-3, "int16": 2e-3}


@pytest.mark.parametrize(("name", "types"), EVERY, ids=lambda text: text.replace(" ", "_"))
def test_tico_is_a_step_off_at_most_and_then_wrong(name: str, types: str, tmp_path: Path) -> None:
    dtype, _, weight = types.partition(" ")
    judged = judge(PRODUCTS[name], dtype, tmp_path, weight or "int8", seed=1)
    got, right = judged.got[0], judged.right[0]
    np.testing.assert_array_equal(got, right, err_msg="the runner is wrong")
    given = [torch.from_numpy(real.astype(np.float32)) for real in judged.reals]
    (simulated,) = tico.run(judged.path, given).values()
    theirs = np.round(simulated.double().numpy() / judged.out.scale) + judged.out.zero_point
    apart = np.abs(theirs - got)
    assert apart.max() <= 1
    assert (apart > 0).mean() <= FLIPS[dtype]
    np.testing.assert_array_equal(rounded(wide(in_float64(judged).astype(object)), judged.out), got)


def in_float64(judged: Judged) -> np.ndarray[Any, Any]:
    """What the kernel of TICO's runtime computes of exact operands, before it is rounded to the output's grid."""
    runtime = tico.Runtime(judged.path)._runtime
    program = runtime.program
    (operator,) = program.operators
    from tico.circle.runtime import ExecutionMode, KernelContext

    values = dict(zip(program.inputs, judged.reals, strict=True))
    for index in operator.inputs:
        if index >= 0 and index not in values:
            values[index] = _dequantized(program.tensor(index))
    context = KernelContext(
        program=program,
        operator=operator,
        inputs=tuple(values.get(index) for index in operator.inputs),
        output_dtypes=(np.dtype(np.float64),),
        mode=ExecutionMode.FAKE_QUANTIZE,
    )
    (result,) = runtime.registry.get(operator.builtin_code)(context)
    assert result.dtype == np.float64
    return np.asarray(result)


def _dequantized(tensor: Any) -> np.ndarray[Any, Any]:
    quant = tensor.quantization
    along = [-1 if axis == quant.quantized_dimension else 1 for axis in range(tensor.constant.ndim)]
    scale = np.asarray(quant.scale, np.float32).astype(np.float64).reshape(along)
    zero = np.asarray(quant.zero_point, np.int64).reshape(along)
    return np.asarray((tensor.constant.astype(np.int64) - zero) * scale)
