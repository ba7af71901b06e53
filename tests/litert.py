# SPDX-License-Identifier: Apache-2.0
"""LiteRT (TFLite's runtime) as a judge of Circle files that have none of Circle's own operators and types.

Such a file has TFLite's tables under another identifier and version; BROADCAST_TO takes quantized data from its
version 2 on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def run(path: Path, inputs: Sequence[np.ndarray[Any, Any]], kernels: str = "fast") -> list[np.ndarray[Any, Any]]:
    """The outputs, integers where they are quantized. Raises RefusedError."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        interpreter = Interpreter(
            model_content=as_tflite(path), experimental_op_resolver_type=OpResolverType[KERNELS[kernels]], num_threads=1
        )
        interpreter.allocate_tensors()
        for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise RefusedError(str(error)) from error
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
