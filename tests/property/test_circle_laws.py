# SPDX-License-Identifier: Apache-2.0
"""Laws of plans and files: a file has the contents of its plan, and write(plan(x)) == x byte for byte."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyquant.circle
from pyquant._launch import program
from tests.golden.build import PlanBuilder

RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int4": (-8, 7), "uint4": (0, 15)}

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
scales = st.floats(width=32, min_value=2.0**-126, max_value=2.0**100, exclude_min=True)


@st.composite
def plans(draw: st.DrawFn) -> PlanBuilder:
    """A chain of NEG, ADD with a constant, and RESHAPE on one quantized or float type."""
    b = PlanBuilder(draw(names), draw(st.text(st.characters(codec="utf-8"), max_size=20)))
    dtype = draw(st.sampled_from([*RANGES, "float32"]))
    shape = draw(st.lists(st.integers(1, 4), max_size=3))

    def tensor(name: str, shape: list[int], data: torch.Tensor | None = None) -> str:
        if dtype == "float32":
            return b.tensor(name, dtype, shape, data=data)
        zero = draw(st.integers(*RANGES[dtype]))
        return b.tensor(name, dtype, shape, scale=draw(scales), zero_point=zero, data=data)

    unique = draw(st.lists(names, min_size=8, max_size=8, unique=True))
    start = last = tensor(unique[0], shape)
    for name in unique[1 : draw(st.integers(2, 4))]:
        kind = draw(st.sampled_from(["NEG", "ADD", "RESHAPE"]))
        if kind == "RESHAPE":
            shape = [int(np.prod(shape, dtype=np.int64))]
        if kind == "ADD":
            count = int(np.prod(shape, dtype=np.int64))
            packed = dtype in ("int4", "uint4")
            size = (count + 1) // 2 if packed else count * torch.tensor([], dtype=_torch(dtype)).element_size()
            data = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
            operands = [last, tensor(name + " constant", shape, data)]
        else:
            operands = [last]
        last_name = tensor(name, shape)
        options = {"new_shape": shape} if kind == "RESHAPE" else {}
        b.op(kind, list(operands), [last_name], **options)
        last = last_name
    b.plan["metadata"] = draw(st.dictionaries(names, st.text(st.characters(codec="utf-8"), max_size=10), max_size=2))
    return b.graph([start], [last])


def _torch(dtype: str) -> torch.dtype:
    return torch.uint8 if dtype in ("int4", "uint4") else getattr(torch, dtype)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_a_file_says_what_its_plan_says(builder: PlanBuilder) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.circle"
        pyquant.circle.write(builder.text(), builder.constants, path)
        model = pyquant.circle.read(path.read_bytes())
    assert pyquant.circle.check(model) == []
    assert (model.name, model.description) == (builder.plan["name"], builder.plan["description"])
    assert {name: value.decode() for name, value in model.metadata.items()} == builder.plan["metadata"]
    for entry, tensor in zip(builder.plan["tensors"], model.tensors, strict=True):
        assert (tensor.name, tensor.dtype, list(tensor.shape)) == (entry["name"], entry["dtype"], entry["shape"])
        quant = entry.get("quant", {"scale": [], "zero_point": []})
        assert [np.float32(s) for s in tensor.scale] == [np.float32(s) for s in quant["scale"]]
        assert list(tensor.zero_point) == quant["zero_point"]
        if "constant" in entry:
            assert tensor.data is not None
            assert bytes(tensor.data) == builder.constants[entry["constant"]].numpy().tobytes()


@settings(max_examples=25, deadline=None)
@given(plans())
def test_write_of_plan_is_the_identity(builder: PlanBuilder) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, plan, weights, second = (Path(folder) / name for name in ("a.circle", "p.json", "w.st", "b.circle"))
        pyquant.circle.write(builder.text(), builder.constants, first)
        for command in (
            ["plan", first, "-o", plan, "--weights", weights],
            ["write", plan, "--weights", weights, "-o", second],
        ):
            subprocess.run([program(), *map(str, command)], check=True, capture_output=True)
        assert first.read_bytes() == second.read_bytes()
        assert pyquant.circle.diff(first, second) == []
