# SPDX-License-Identifier: Apache-2.0
"""LiteRT (TFLite's runtime) as a judge of Circle files that have none of Circle's own operators and types.

Such a file has TFLite's tables under another identifier and version; BROADCAST_TO takes quantized data from its
version 2 on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyquant import circle

Array = np.ndarray[Any, Any]
ABSENT = importlib.util.find_spec("ai_edge_litert") is None
needs_litert = pytest.mark.skipif(ABSENT, reason="LiteRT is not installed: pip install ai-edge-litert")
#: What multiplies: the plain loops that define an operator, the fast ones, or XNNPACK's.
KERNELS = {"reference": "BUILTIN_REF", "fast": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "xnnpack": "AUTO"}
TFLITE_VERSION = 3
VERSIONS = {130: 2}  # BROADCAST_TO


class RefusedError(Exception):
    """LiteRT does not take the file, in its words."""


def as_tflite(path: Path) -> bytes:
    """The same model under TFLite's identifier and version."""
    import flatbuffers
    from circle_schema.v0_10.circle.Model import ModelT

    model = ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
    model.version = TFLITE_VERSION
    for code in model.operatorCodes:
        code.version = VERSIONS.get(code.builtinCode, code.version)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run(path: Path, inputs: Sequence[Array], kernels: str = "fast") -> list[Array]:
    """The outputs, integers where they are quantized. Raises RefusedError."""
    interpreter = _interpreted(path, inputs, kernels)
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def operators_apart(path: Path, inputs: Sequence[Array]) -> Iterator[tuple[str, Array]]:
    """Each operator of a whole file: its name, and by how many steps LiteRT's results are off the runner's, both given
    what LiteRT computed before. Raises RefusedError."""
    interpreter = _interpreted(path, inputs, "fast", experimental_preserve_all_tensors=True)
    model, runner = circle.read(path), circle.Runner(path, threads=1)
    for place, op in enumerate(model.operators):
        taken = dict.fromkeys(i for i in op.inputs if i >= 0 and not model.tensors[i].is_constant)
        made = runner.operation(place).run([interpreter.get_tensor(i) for i in taken])
        for i, ours in zip(op.outputs, made.values(), strict=True):
            yield op.name, np.abs(interpreter.get_tensor(i).astype(np.int64) - ours.astype(np.int64))


def _interpreted(path: Path, inputs: Sequence[Array], kernels: str, **more: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        interpreter = Interpreter(
            model_content=as_tflite(path),
            experimental_op_resolver_type=OpResolverType[KERNELS[kernels]],
            num_threads=1,
            **more,
        )
        interpreter.allocate_tensors()
        for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise RefusedError(str(error)) from error
    return interpreter
