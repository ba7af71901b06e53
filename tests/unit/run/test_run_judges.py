# SPDX-License-Identifier: Apache-2.0
"""Elementwise operators, norms and reductions beside TICO's reference runtime, which simulates them in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_operator import grid, integers, run

from pyquant.verify.runtimes import tico

FUSED = {"fused_activation_function": "NONE"}
SUM = {**FUSED, "pot_scale_int16": False}
AXES = np.array([1], np.int32)
#: name -> (number of data inputs, options, other inputs, what the output's step is in steps of the input)
CASES: dict[str, tuple[int, dict[str, Any], list[Any], float]] = {
    **{name: (2, SUM if name in ("ADD", "SUB") else FUSED, [], 1.5) for name in ("ADD", "SUB", "MUL", "DIV")},
    **{name: (2, {}, [], 1.0) for name in ("MAXIMUM", "MINIMUM")},
    **{name: (1, {}, [], 1.0) for name in ("NEG", "ABS", "EXP", "SIN", "COS", "TANH", "ROUND", "RELU")},
    **{name: (1, {}, [], 1.0) for name in ("RELU6", "ELU", "LOG_SOFTMAX")},
    "LOGISTIC": (1, {}, [], 0.7),
    "GELU": (1, {"approximate": False}, [], 1.0),
    "LEAKY_RELU": (1, {"alpha": 0.1234}, [], 1.0),
    "SOFTMAX": (1, {"beta": 1.0}, [], 0.2),
    "RMS_NORM": (1, {"epsilon": 1e-6}, ["gamma"], 0.7),
    "INSTANCE_NORM": (1, {"epsilon": 1e-5, **FUSED}, ["gamma", "gamma"], 0.7),
    **{name: (1, {"keep_dims": True}, [AXES], 1.0) for name in ("SUM", "REDUCE_MAX", "REDUCE_MIN", "MEAN")},
    "CUMSUM": (1, {"exclusive": False, "reverse": False}, [np.array(1, np.int32)], 1.0),
}
SHAPE = (2, 7, 6, 40)


@pytest.mark.parametrize("dtype", ["int16", "int8", "uint8"])
@pytest.mark.parametrize("name", CASES)
def test_beside_tico(name: str, dtype: str, tmp_path: Path) -> None:
    """At most one step apart, and equal in 99.9 of 100 places (float32 decides otherwise near a step)."""
    count, options, others, ratio = CASES[name]
    generator = np.random.default_rng(9)
    step = 2e-4 if dtype == "int16" else 0.04
    data = [grid(dtype, step * (1 + 0.3 * i), {"uint8": 120, "int8": 3}.get(dtype, 0)) for i in range(count)]
    out = grid(dtype, step * ratio, {"uint8": 100, "int8": -5}.get(dtype, 0))
    operands: list[Any] = [(integers(generator, of, SHAPE), of) for of in data]
    for other in others:
        of = grid("int8", 0.01)
        operands.append((integers(generator, of, (40,)), of) if isinstance(other, str) else (other, "int32"))
    result = (2, 1, 6, 40) if "keep_dims" in options else SHAPE
    (got,) = run(tmp_path, name, operands, [(result, out)], options, constant=range(count, len(operands)))
    with np.errstate(all="ignore"):
        given = [torch.from_numpy(of.reals(q).astype(np.float32)) for q, of in operands[:count]]
        (judged,) = tico.run(tmp_path / "one.circle", given).values()
    theirs = np.round(judged.double().numpy() / out.scale) + out.zero_point
    apart = np.abs(got.astype(np.int64) - theirs)
    if name == "DIV":  # 0 / 0 is NaN, which TICO's runtime has no integer for
        apart = apart[given[1].numpy() != 0]
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 1e-3


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("RMS_NORM", "INSTANCE_NORM")])
def test_floats_beside_tico(name: str, tmp_path: Path) -> None:
    count, options, others, _ = CASES[name]
    generator = np.random.default_rng(10)
    operands: list[Any] = [(generator.normal(0, 2, SHAPE).astype(np.float32), "float32") for _ in range(count)]
    operands += [(other, "int32") for other in others]
    result = (2, 1, 6, 40) if "keep_dims" in options else SHAPE
    (got,) = run(tmp_path, name, operands, [(result, "float32")], options, constant=range(count, len(operands)))
    (judged,) = tico.run(tmp_path / "one.circle", [torch.from_numpy(x) for x, _ in operands[:count]]).values()
    np.testing.assert_allclose(got, judged.numpy(), rtol=2e-6, atol=2e-6)
