# SPDX-License-Identifier: Apache-2.0
"""compare(): a Circle program against the eager model, end to end and operator by operator.

Each operator gets the eager model's tensors as inputs, so that errors do not accumulate. Which differences are good
enough is tolerance.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pyquant import ops
from pyquant.errors import InputError
from pyquant.exporter.grid import scales
from pyquant.exporter.plan import Tensor
from pyquant.exporter.precision import ADVICE, eager_dtype, low_floats
from pyquant.exporter.profile import TensorSpec
from pyquant.exporter.program import CircleProgram
from pyquant.metrics import lsb_error, max_abs_diff, mean_abs_diff, peir, sqnr_db
from pyquant.verify.report import OpDiff, OutputDiff, Report
from pyquant.verify.runtimes import TraceableName, traceable
from pyquant.verify.runtimes._inputs import Array, Inputs, fits


def compare(
    prog: CircleProgram, q: nn.Module | None = None, inputs: Inputs = (), *, runtime: TraceableName = "native"
) -> Report:
    """Run `prog` in a runtime (pyquant's own, or "tico", TICO's reference) and the eager model on the same inputs.

    prog: a CircleProgram. q: the model that it was exported from (None: as it was when exported). inputs: the graph's
    tensors in order or by name; or, by name, all arguments of the model's own forward: then that forward is the eager
    model, and what the profile fixed (positions, masks) is compared too. Raises InputError for inputs that do not fit,
    ImportError when tico is not installed.
    """
    require_float32(prog)
    given = ordered_inputs(prog, inputs)
    eager = eager_outputs(prog, q, inputs)
    values, exported = exported_values(prog, given)
    ran = traceable(runtime, prog)
    circle = ran.run(given)
    outputs = [
        _output_diff(tensor, eager[tensor.name], got, circle[tensor.name])
        for tensor, got in zip(prog.outputs, exported, strict=True)
    ]
    operators, unchecked = _operators(prog, ran, values)
    return Report(prog.name, tuple(outputs), tuple(operators), unchecked, eager_dtype(prog.traced))


def require_float32(prog: CircleProgram) -> None:
    """Raises InputError for a graph that computes in a smaller float type."""
    if low := low_floats(prog.graph):
        raise InputError(
            f"the graph '{prog.name}' has {' and '.join(low)} tensors, and runtimes are compared in float32 only; "
            f"cast to float32 first: {ADVICE}, export q32 and compare that program with it"
        )


def eager_outputs(prog: CircleProgram, q: nn.Module | None, inputs: Inputs) -> dict[str, torch.Tensor]:
    """The eager model's outputs by the graph's output names."""
    names = [tensor.name for tensor in prog.outputs]
    if q is not None and isinstance(inputs, Mapping) and len(inputs) > len(prog.inputs):
        with torch.no_grad():
            flat = _flat(q(**inputs))
        if len(flat) != len(names):
            raise InputError(f"the model returns {len(flat)} tensors, the graph {names}; give the graph's inputs alone")
        for tensor, value in zip(prog.outputs, flat, strict=True):
            if not fits(tensor.signature or tensor.shape, tuple(getattr(value, "shape", ()))):
                raise InputError(
                    f"the model's own forward returns '{tensor.name}' as {_shape_of(value)}, but the graph as "
                    f"{list(tensor.shape)}: the inputs are not those that the profile fixed (padding, batch, "
                    "positions); give inputs that fit it, or the graph's inputs alone "
                    f"({', '.join(tensor.name for tensor in prog.inputs)})"
                )
        return dict(zip(names, flat, strict=True))
    make = getattr(q, "as_export_module", None)
    adapter = make(prog.profile) if make is not None else prog.adapter if q is None else q
    with torch.no_grad():
        out = adapter(*ordered_inputs(prog, inputs))
    return dict(zip(names, _flat(out), strict=True))


def _shape_of(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def exported_values(prog: CircleProgram, inputs: Sequence[torch.Tensor]) -> tuple[dict[str, Array], list[torch.Tensor]]:
    """The value of each fx node that has a Circle tensor, and the program's outputs."""
    wanted = {tensor.origin for tensor in prog.graph.tensors if tensor.origin is not None}
    recorder = _Recorder(prog.exported.graph_module, wanted)
    user = iter(inputs)
    arguments = []
    for node in prog.traced.nodes:
        if node.op == "placeholder":
            arguments.append(prog.traced.lifted[node.name][1] if node.name in prog.traced.lifted else next(user))
    with torch.no_grad():
        out = recorder.run(*arguments)
    return recorder.values, _flat(out)


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.values: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted and isinstance(value, torch.Tensor):
            plain = value.float() if value.is_floating_point() else value
            self.values[n.name] = plain.detach().cpu().contiguous().numpy()
        return value


def _operators(prog: CircleProgram, runtime: Any, values: Mapping[str, Array]) -> tuple[list[OpDiff], int]:
    graph = prog.graph
    known: dict[str, Array] = runtime.constants()
    last = {index: number for number, op in enumerate(graph.operators) for index in op.inputs}
    for index in graph.inputs:
        known[graph.tensors[index].name] = expected_value(graph.tensors[index], values)
    diffs: list[OpDiff] = []
    unchecked = 0
    for number, op in enumerate(graph.operators):
        out = graph.tensors[op.outputs[0]]
        operands = [None if index < 0 else known[graph.tensors[index].name] for index in op.inputs]
        result = runtime.run_operator(number, operands)[0]
        if out.origin is None:
            unchecked += 1
            known[out.name] = result
        else:
            known[out.name] = expected = expected_value(out, values)
            diffs.append(_op_diff(number, op.op, out, expected, result))
        for index in op.inputs:
            if index >= 0 and last[index] == number:
                known.pop(graph.tensors[index].name, None)
    return diffs, unchecked


def expected_value(tensor: Tensor, values: Mapping[str, Array]) -> Array:
    """The eager value of a tensor, on its grid (a no-op where the eager model quantized it to that grid)."""
    assert tensor.origin is not None
    value = values[tensor.origin]
    if tensor.quant is None:
        return value
    scale, zero_point = scales(tensor.quant)
    quant = tensor.quant
    grid = ops.fake_quantize(torch.from_numpy(value), scale, zero_point, quant.axis, 0, quant.qmin, quant.qmax)
    return grid.numpy()


def _op_diff(index: int, op: str, tensor: Tensor, expected: Array, got: Array) -> OpDiff:
    steps, unequal, _ = _steps(tensor, expected, got)
    peak = float(np.abs(expected.astype(np.float64)).max()) if expected.size else 0.0
    error = max_abs_diff(expected, got)
    relative = error / peak if peak > 0 else error
    return OpDiff(index, op, tensor.name, int(expected.size), steps, relative, unequal)


def _output_diff(tensor: Tensor, eager: torch.Tensor, exported: torch.Tensor, circle: torch.Tensor) -> OutputDiff:
    plain, got = (value.float() if value.is_floating_point() else value for value in (eager.detach().cpu(), circle))
    steps, unequal, beyond = _steps(tensor, plain.numpy(), got.numpy())
    return OutputDiff(
        tensor.name,
        plain.numel(),
        torch.equal(eager, exported),
        max_abs_diff(plain, got),
        mean_abs_diff(plain, got),
        peir(plain, got),
        sqnr_db(plain, got),
        steps,
        unequal,
        beyond,
    )


def _steps(tensor: Tensor, expected: Array, got: Array) -> tuple[float | None, int, int]:
    """The largest difference in steps of the grid (integers: in ones; float: None), and how many elements differ at
    all, and by more than a step."""
    if tensor.is_float:
        return None, int((expected != got).sum()), 0
    scale = 1.0
    if tensor.quant is not None:
        scale = tensor.quant.scale[0]
    steps = np.rint(lsb_error(expected, got, scale))
    return (float(steps.max()) if steps.size else 0.0), int((steps > 0).sum()), int((steps > 1).sum())


def ordered_inputs(prog: CircleProgram, inputs: Inputs) -> list[torch.Tensor]:
    """The graph's inputs in its order. Raises InputError for those that do not fit."""
    names = [tensor.name for tensor in prog.inputs]
    if isinstance(inputs, Mapping):
        if not set(inputs) >= set(names):
            raise InputError(f"the graph's inputs are {names}, got {list(inputs)}")
        inputs = [inputs[name] for name in names]
    if len(inputs) != len(names):
        raise InputError(f"the graph has {len(names)} inputs {names}, got {len(inputs)} values")
    specs: Mapping[str, TensorSpec] = prog.adapter.input_specs  # type: ignore[assignment]
    for name, spec, value in zip(names, specs.values(), inputs, strict=True):
        if not spec.fits(tuple(value.shape)) or value.dtype != spec.dtype:
            raise InputError(f"input '{name}' is {value.dtype}{list(value.shape)}, but the graph takes {spec}")
    return list(inputs)


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, Mapping):  # an output class of transformers
        value = list(value.values())
    return [part for item in value for part in _flat(item)] if isinstance(value, list | tuple) else [value]
