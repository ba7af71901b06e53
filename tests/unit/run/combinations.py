# SPDX-License-Identifier: Apache-2.0
"""Every combination of dtypes, grids, activations and constants in which an operator of ops.def may stand in a file,
with random contents. Which of them the checker admits, and what they give, is test_run_every.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from every_operator import ACTIVATIONS, CASES, Case, Real
from one_operator import RANGES, pack

from pyquant import circle

OPERATORS = circle.operators()
FLOATS = ("float32", "float16", "bfloat16")
QUANTIZED = ("int4", "uint4", "int8", "uint8", "int16")
#: those of their integers; of biases others do
ENDS = {dtype: RANGES[dtype] for dtype in QUANTIZED}
INDICES = ("int32", "int64")
GGML = ("ggml_q4_0", "ggml_q8_0")
OTHERS = ("float64", "uint16", "uint32", "uint64")
FAMILIES = {"float": FLOATS, "quantized": QUANTIZED, "index": INDICES, "bool": ("bool",)}
FUSED = "fused_activation_function"

#: operand (inputs, then outputs) -> axis of its scales, or None for one; without an entry: plain numbers
Grids = dict[int, int | None]


@dataclass
class Operand:
    """Numbers of one dtype. `scale` has one element, or one for each part along `axis`; None: plain numbers."""

    role: str
    dtype: str
    shape: tuple[int, ...]
    fixed: Any = None  # the values of an integer operand
    scale: Any = None
    zero: Any = None
    axis: int | None = None
    stored: Any = None  # as in the file
    numbers: Any = None  # what they stand for
    constant: bool = False

    @property
    def may_have_grid(self) -> bool:
        return self.dtype in QUANTIZED or (self.role == "b" and self.dtype in INDICES)

    def by_element(self, channels: Any) -> Any:
        if self.axis is not None:
            channels = channels.reshape([-1 if d == self.axis else 1 for d in range(len(self.shape))])
        return np.broadcast_to(channels if self.axis is not None else channels[0], self.shape)

    def __str__(self) -> str:
        grid = "" if self.scale is None else f" axis {self.axis}"
        return f"{self.dtype}{list(self.shape)}{grid}{' constant' if self.constant else ''}"


@dataclass
class Combination:
    name: str
    case: Case
    options: dict[str, Any]
    inputs: list[Operand | None]
    outputs: list[Operand]

    @property
    def activation(self) -> str:
        return str(self.options.get(FUSED, "NONE"))

    @property
    def operands(self) -> list[Operand]:
        return [t for t in (*self.inputs, *self.outputs) if t is not None]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.operands))}) {self.options}"

    def reference(self) -> list[Any]:
        """The outputs as real numbers, before an activation."""
        plain = self.case.integers is not None and self.outputs[0].dtype in INDICES
        return _computed(self.case, self.inputs, self.case.integers if plain else self.case.reference)


def combinations(name: str) -> Iterator[Combination]:
    generator = np.random.default_rng(len(name))
    has_activation = any(option.name == FUSED for option in OPERATORS[name].options)
    activations = tuple(ACTIVATIONS) if has_activation else ("NONE",)
    for case in CASES[name]:
        for dtypes in _dtypes(name):
            bare = _bare(name, case, dtypes)
            grids = _grids(bare)
            for number, grid in enumerate(grids):
                # Every activation with one scale and with many; on the way between, one after the other.
                some = activations if number in (0, len(grids) - 2) else activations[number % len(activations) :][:1]
                for activation in some:
                    for constant in (True, False) if number == 0 and activation == "NONE" else (number % 2 == 0,):
                        yield _filled(generator, bare, grid, activation if has_activation else "", constant)


def _dtypes(name: str) -> Iterator[Mapping[str, str]]:
    """Role -> dtype; "y" is that of an output of data."""
    row = OPERATORS[name]
    roles = {operand.role for operand in row.inputs}
    if "a" in roles:
        every = (*FLOATS, *QUANTIZED, *INDICES, "bool", *OTHERS)
        converts = row.outputs[0].role == "a"
        for x in every if converts else (*every, *GGML):
            for y in every if converts else ("",):
                yield {"a": x, "y": y, "i": "int32"}
        return
    for i, x in enumerate(dtype for family in row.dtypes for dtype in FAMILIES[family]):
        weights = (x, *QUANTIZED, *GGML) if x in FLOATS else QUANTIZED
        biases = (x,) if x in FLOATS else INDICES if x == "int16" else ("int32",)
        for w in weights if "w" in roles else ("",):
            for b in biases if "b" in roles else ("",):
                yield {"x": x, "w": w, "b": b, "i": INDICES[i % 2], "c": "bool", "y": x}
    for x in GGML if name == "GATHER" else ():
        yield {"x": x, "i": "int32", "y": "float32"}


def _bare(name: str, case: Case, dtypes: Mapping[str, str]) -> Combination:
    """Operands without contents; outputs have the shapes that the reference gives."""
    row, shapes = OPERATORS[name], list(case.shapes)
    inputs: list[Operand | None] = []
    fewest = sum(not operand.may_be_absent for operand in row.inputs)
    for i in range(max(len(case.shapes) + len(case.ints), fewest)):
        role = row.inputs[min(i, len(row.inputs) - 1)].role
        if i in case.ints:
            fixed = np.array(case.ints[i])
            inputs.append(Operand(role, dtypes["i"], fixed.shape, fixed))
        elif i in case.values:
            inputs.append(Operand(role, dtypes[role], (), np.array(case.values[i])))
            shapes.pop(0)
        else:
            inputs.append(Operand(role, dtypes[role], shapes.pop(0)) if shapes else None)
    for t in inputs:
        if t is not None:
            t.numbers = t.fixed if t.fixed is not None else np.ones(t.shape, bool if t.dtype == "bool" else Real)
    outputs = []
    for k, y in enumerate(_computed(case, inputs, case.reference)):
        role = row.outputs[min(k, len(row.outputs) - 1)].role
        dtype = {"c": "bool", "i": dtypes.get("i", "int32")}.get(role, dtypes["y"])
        outputs.append(Operand(role, dtype, np.shape(y)))
    return Combination(name, case, {}, inputs, outputs)


def _computed(case: Case, inputs: Sequence[Operand | None], how: Any) -> list[Any]:
    with np.errstate(all="ignore"):
        made = how(*(t.numbers for t in inputs if t is not None), **case.options)
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _grids(bare: Combination) -> list[Grids]:
    """One scale everywhere; one operand by channel, of each axis; all of them; none, where integers may be plain."""
    every = bare.operands
    axes = {i: range(len(t.shape)) for i, t in enumerate(every) if t.may_have_grid}
    one: Grids = dict.fromkeys(axes)
    grids = [one, *({**one, i: axis} for i in axes for axis in axes[i])]
    if axes:
        grids += [{i: axes[i][at] if axes[i] else None for i in axes} for at in (0, -1)] + [{}]
    elif OPERATORS[bare.name].kind != "convert":  # 32 and 64 bits: in one grid each, or by channel
        data = [i for i, t in enumerate(every) if t.dtype in INDICES and t.fixed is None]
        grids += [dict.fromkeys(data), {i: 0 if every[i].shape else None for i in data}] if data else []
    return grids


def _filled(
    generator: np.random.Generator, bare: Combination, grids: Grids, activation: str, constant: bool
) -> Combination:
    row, case = OPERATORS[bare.name], bare.case
    made = replace(
        bare,
        options={option.name: option.default for option in row.options} | case.options,
        inputs=[t and replace(t) for t in bare.inputs],
        outputs=[replace(t) for t in bare.outputs],
    )
    every = made.operands
    for i, axis in grids.items():
        _give_grid(generator, every[i], axis)
    for i, t in enumerate(made.inputs):
        if t is None:
            continue
        _fill(generator, t, i in case.positive, small=bare.name == "CAST")
        t.constant = t.dtype in GGML or (constant if t.role in "wbi" else not constant and i == 1)
    if activation:
        made.options[FUSED] = activation
    for option in ("in_data_type", "out_data_type", "output_type", "out_type"):
        if option in made.options:
            made.options[option] = (every[0] if option == "in_data_type" else every[-1]).dtype.upper()
    return made


def _give_grid(generator: np.random.Generator, t: Operand, axis: int | None) -> None:
    """Small scales, whose sums of products long double holds."""
    count = 1 if axis is None else t.shape[axis]
    lo, hi = ENDS.get(t.dtype, (-20, 20))
    t.axis = axis
    t.scale = generator.integers(1, 13, count).astype(Real) / (256 if t.dtype == "int16" else 16)
    t.zero = generator.integers(max(lo, -6), min(hi, 6) + 1, count)


def _fill(generator: np.random.Generator, t: Operand, positive: bool, *, small: bool) -> None:
    """Random numbers; of a quantized type the ends more often. small: those that every type has."""
    if t.dtype in GGML:
        _fill_blocks(generator, t)
        return
    if t.fixed is not None:
        t.numbers = t.fixed
    elif small:
        t.numbers = generator.integers(0, 8, t.shape)
    elif t.dtype in (*FLOATS, "float64"):
        t.numbers = generator.integers(1 if positive else -16, 17, t.shape).astype(Real) / 8
    elif t.dtype == "bool":
        t.numbers = generator.integers(0, 2, t.shape)
    elif t.scale is not None or t.dtype in ENDS:
        _fill_quantized(generator, t, positive)
        return
    else:
        t.numbers = generator.integers(1 if positive or "uint" in t.dtype else -5, 6, t.shape)
    if t.dtype in FLOATS:
        t.stored = torch.tensor(t.numbers.astype(float)).to(getattr(torch, t.dtype))
    elif t.dtype == "bool":
        t.stored = t.numbers = t.numbers.astype(bool)
    else:
        t.stored = pack(t.numbers) if t.dtype in ("int4", "uint4") else t.numbers.astype(t.dtype)


def _fill_quantized(generator: np.random.Generator, t: Operand, positive: bool) -> None:
    lo, hi = ENDS.get(t.dtype, (-400, 400))
    q, kind = generator.integers(lo, hi + 1, t.shape), generator.integers(0, 8, t.shape)
    q = np.where(kind == 0, lo, np.where(kind == 1, hi, np.clip(q, -3000, 3000)))
    zero = 0 if t.scale is None else t.by_element(t.zero)
    q = np.maximum(q, zero + 1) if positive else q
    t.stored = pack(q) if t.dtype in ("int4", "uint4") else q.astype(t.dtype)
    t.numbers = q if t.scale is None else (q - zero) * t.by_element(t.scale)


def _fill_blocks(generator: np.random.Generator, t: Operand) -> None:
    count, four = int(np.prod(t.shape)), t.dtype == "ggml_q4_0"
    blocks = -(-count // 32)
    scales = (generator.integers(1, 9, (blocks, 1)) / 16).astype(np.float16)
    q = generator.integers(0, 16, (blocks, 32)) if four else generator.integers(-127, 128, (blocks, 32))
    body = (q[:, :16] | q[:, 16:] << 4).astype(np.uint8) if four else q.astype(np.int8).view(np.uint8)
    t.stored = np.concatenate([scales.view(np.uint8), body], 1)
    t.numbers = ((q - 8 * four) * scales.astype(Real)).reshape(-1)[:count].reshape(t.shape)
