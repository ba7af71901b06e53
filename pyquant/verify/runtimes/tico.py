# SPDX-License-Identifier: Apache-2.0
"""TICO's reference runtime: whole files, or one operator at a time.

It owns the choice of the mode and the conversion of inputs. FAKE_QUANTIZE is float arithmetic, with every quantized
result rounded to its grid; value-preserving operators pass values unchanged, for any qparams.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pyquant.errors import InputError
from pyquant.verify.runtimes._inputs import Array, Inputs, Program, fits, ordered, program_bytes


def run(program: Program, inputs: Inputs, trace: bool = False) -> dict[str, torch.Tensor]:
    """Outputs by name (with `trace`: every tensor by name) of a CircleProgram, a path, or a file's bytes."""
    return Runtime(program).run(inputs, trace=trace)


def structure_faults(path: str | os.PathLike[str]) -> list[str]:
    """What TICO's own verifier finds in a file: indices, dataflow, signatures. It does not check qparams.

    Raises ImportError with the install command when tico is missing.
    """
    report = _tico(package="tico.circle").CircleDocument.load(os.fspath(path)).verify(raise_on_error=False)
    return [str(issue.format()) for issue in report.issues]


class Runtime:
    """One file, parsed once. Float tensors in and out; a quantized tensor's value is on its grid.

    Raises ImportError with the install command when tico is missing.
    """

    def __init__(self, program: Program) -> None:
        self._tico = _tico()
        self._runtime = self._tico.CircleReferenceRuntime(program_bytes(program))
        tensors = self._runtime.program.tensors
        quantized = any(tensor.is_quantized_integer for tensor in tensors)
        modes = self._tico.ExecutionMode
        self.mode = modes.FAKE_QUANTIZE if quantized else modes.NATIVE
        self.input_names = [tensor.name for tensor in self._runtime.input_tensors]
        self.input_shapes = [tuple(tensor.shape) for tensor in self._runtime.input_tensors]
        self.output_names = [tensor.name for tensor in self._runtime.output_tensors]
        self.tensor_names = [tensor.name for tensor in tensors]

    def run(self, inputs: Inputs, trace: bool = False) -> dict[str, torch.Tensor]:
        """Run the graph. `inputs` are in order, or by name."""
        arrays = [
            np.ascontiguousarray(_array(value), self._dtype(tensor))
            for value, tensor in zip(ordered(self.input_names, inputs), self._runtime.input_tensors, strict=True)
        ]
        result = self._runtime.run(arrays, mode=self.mode, trace=trace)
        outputs = dict(zip(self.output_names, map(_tensor, result.outputs), strict=True))
        if not trace:
            return outputs
        return {self.tensor_names[index]: _tensor(value) for index, value in result.tensor_values.items()} | outputs

    def constants(self) -> dict[str, Array]:
        """Every constant by name, as the kernels read it (quantized ones dequantized)."""
        dequantize_array = _tico(".quantization").dequantize_array
        fake = self.mode is self._tico.ExecutionMode.FAKE_QUANTIZE
        return {
            tensor.name: dequantize_array(tensor.constant, tensor)
            if fake and tensor.is_quantized_integer
            else tensor.constant
            for tensor in self._runtime.program.tensors
            if tensor.is_constant
        }

    def run_operator(self, index: int, inputs: Sequence[Array | None]) -> list[Array]:
        """One operator on given values, its results on their grids as in a whole run."""
        kernels, fake_quantize_array = _tico(".kernels"), _tico(".quantization").fake_quantize_array
        program = self._runtime.program
        operator = program.operators[index]
        outputs = [program.tensor(i) for i in operator.outputs]
        context = self._tico.KernelContext(
            program=program,
            operator=operator,
            inputs=tuple(inputs),
            output_dtypes=tuple(self._dtype(tensor) for tensor in outputs),
            mode=self.mode,
        )
        with np.errstate(all="ignore"):
            results = self._runtime.registry.get(operator.builtin_code)(context)
        moved = operator.builtin_code in kernels.value_preserving_builtin_codes()
        done = []
        for tensor, result in zip(outputs, results, strict=True):
            array = np.asarray(result)
            if not fits(tensor.shape_signature or tensor.shape, array.shape) or array.dtype != self._dtype(tensor):
                raise InputError(
                    f"operator {index} {operator.name} gives {array.dtype}{list(array.shape)}, "
                    f"but '{tensor.name}' is declared {self._dtype(tensor)}{list(tensor.shape)}"
                )
            grid = tensor.is_quantized_integer and self.mode is self._tico.ExecutionMode.FAKE_QUANTIZE and not moved
            done.append(fake_quantize_array(array, tensor) if grid else array)
        return done

    def _dtype(self, tensor: Any) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._runtime.effective_dtype(tensor, self.mode)
        return dtype


def _tico(part: str = "", package: str = "tico.circle.runtime") -> Any:
    try:
        return importlib.import_module(f"{package}{part}")
    except ImportError as error:
        raise ImportError(
            f"TICO's reference runtime is not installed ({error}); run: pip install 'pyquant-circle[tico]'"
        ) from error


def _array(value: Any) -> Array:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    plain = value.detach().cpu()
    array: Array = (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()  # numpy has no bfloat16
    return array


def _tensor(value: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(value))
