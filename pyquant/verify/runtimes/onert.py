# SPDX-License-Identifier: Apache-2.0
"""The real runtime onert, on the CPU backend: whole files, each in a child process of its own.

It owns names, dtypes and the text of a failure; a model that onert aborts on ends the child process and raises one
VerifyError here. The calls into onert are _onert_child.py.
"""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from pyquant import circle, ops
from pyquant.errors import InputError, VerifyError
from pyquant.exporter.plan import Graph
from pyquant.exporter.program import CircleProgram
from pyquant.verify.runtimes import onert_cpu
from pyquant.verify.runtimes._inputs import Inputs, Program, fits, ordered, program_bytes

_CHILD = Path(__file__).with_name("_onert_child.py")
_DTYPES = {"float32": 0, "int32": 1, "uint8": 2, "bool": 3, "int64": 5, "int8": 6}  # of NNFW_TYPE
_LAST_LINES = 12  # last lines of onert's messages that an error repeats


def run(program: Program, inputs: Inputs, trace: bool = False) -> dict[str, torch.Tensor]:
    """Outputs by name (with `trace`: every computed tensor by name) of a CircleProgram, a path, or a file's bytes."""
    with Runtime(program, trace=trace) as runtime:
        return runtime.run(inputs, trace=trace)


class Runtime:
    """One file, loaded once and run any number of times. Float tensors in and out; quantized ones are on their grid.

    With `trace`, which takes a CircleProgram, every tensor that an operator computes is an output of the file that
    onert runs. Raises ImportError with the install command when onert is missing, VerifyError when onert rejects the
    file, crashes on it, or returns another shape than the file declares.
    """

    def __init__(self, program: Program, *, trace: bool = False) -> None:
        self._library = _library()
        folder = Path(tempfile.mkdtemp(prefix="pyquant-onert-"))
        self._remove = weakref.finalize(self, shutil.rmtree, folder)
        self._path, self._log = folder / "model.circle", folder / "log"
        self._shown = len(program.outputs) if trace and hasattr(program, "outputs") else None
        self._path.write_bytes(_bytes(program, trace))
        model = circle.read(self._path)
        self._inputs = [model.tensors[index] for index in model.inputs]
        self._outputs = [model.tensors[index] for index in model.outputs]
        self._blocks = sorted({tensor.dtype for tensor in model.tensors} & set(onert_cpu.BLOCK_DTYPES))
        self.input_names = [tensor.name for tensor in self._inputs]
        self._all_names = [tensor.name for tensor in self._outputs]
        self.output_names = self._all_names[: self._shown]
        for tensor in (*self._inputs, *self._outputs):
            if tensor.dtype not in _DTYPES:
                raise VerifyError(
                    f"tensor '{tensor.name}' is {tensor.dtype}, which onert's API cannot pass; it passes "
                    f"{', '.join(_DTYPES)}: use float graph inputs and outputs, or the runtime tico"
                )
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, inputs: Inputs, trace: bool = False) -> dict[str, torch.Tensor]:
        """Run the graph. `inputs` are in order, or by name; a dynamic dimension gets the size of the input."""
        if trace and self._shown is None:
            raise InputError("trace takes Runtime(program, trace=True) with a CircleProgram: a file shows its outputs")
        arrays = [
            _input(tensor, value) for tensor, value in zip(self._inputs, ordered(self.input_names, inputs), strict=True)
        ]
        kind, answer = self._ask([array.shape for array in arrays], [array.tobytes() for array in arrays])
        if kind != "outputs":
            raise self._failure(f"refuses it: {answer}")
        pairs = zip(self._outputs, answer, strict=True)
        outputs = {tensor.name: _output(tensor, info, data) for tensor, (info, data) in pairs}
        return outputs if trace else {name: outputs[name] for name in self.output_names}

    def close(self) -> None:
        """End the child process. A Runtime that is no longer referenced does it too."""
        if self._child is not None:
            self._end()
            self._child = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._remove()

    def _ask(self, shapes: list[tuple[int, ...]], data: list[bytes]) -> tuple[str, Any]:
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            pickle.dump((shapes, data), child.stdin)
            child.stdin.flush()
            answer: tuple[str, Any] = pickle.load(child.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            status = child.wait()
            self.close()
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            if -status == signal.SIGILL:
                raise VerifyError(illegal_instruction(self._blocks, onert_cpu.lacking())) from None
            raise self._failure(f"crashed on it ({how})") from None
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            command = [sys.executable, "-I", "-S", str(_CHILD), str(self._library), str(self._path)]
            with self._log.open("wb") as log:
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
            self._child = child
            self._end = weakref.finalize(self, _stop, child)
        return self._child

    def _failure(self, what: str) -> VerifyError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        messages = "\n".join(f"  {line}" for line in lines[-_LAST_LINES:] if line.strip()) or "  (nothing)"
        names = ", ".join(f"{t.name}: {t.dtype}{list(t.shape)}" for t in self._inputs)
        return VerifyError(
            f"onert {what}; the graph takes {names}; onert says\n{messages}\n"
            "see pyquant.circle.check(file, target='onert'), and export with target='onert'"
        )


def available() -> bool:
    """Whether onert is installed."""
    return importlib.util.find_spec("onert") is not None


def illegal_instruction(blocks: Sequence[str], missing: tuple[str, ...]) -> str:
    """What a crash with SIGILL means, for a file with weights in the formats `blocks` on a CPU that lacks `missing`."""
    why = onert_cpu.why_no_blocks(missing) if blocks else None
    if why is None:
        lacks = f" (it lacks {', '.join(missing)})" if missing else ""
        return (
            f"onert crashed on the file (signal SIGILL): its build uses an instruction that this CPU does not have"
            f"{lacks}; run the file on a newer CPU, or with the runtime tico"
        )
    return (
        f"onert crashed on the file (signal SIGILL): it has {', '.join(blocks)} weights. {why}. float32, uint8 and "
        "int8 tensors still run here (policies 'float' and 'w8_onert', or 'w8a8_int8' in the forms that "
        "pyquant.circle.check(file, target='onert') accepts); run this file on a CPU that has them"
    )


def _library() -> Path:
    spec = importlib.util.find_spec("onert")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (library := Path(folder, "native", "libonert.so")).exists():
            return library
    raise ImportError("onert is not installed (its wheels are for Linux); run: pip install onert==0.1.0")


def _bytes(program: Program, trace: bool) -> bytes:
    if trace:
        if not isinstance(program, CircleProgram):
            raise InputError(
                f"trace takes a CircleProgram, got {type(program).__name__}: a file shows its outputs only"
            )
        program = replace(program, graph=_all_shown(program.graph))
    return program_bytes(program)


def _all_shown(graph: Graph) -> Graph:
    """The graph with all computed tensors that onert's API can return as outputs, after its own outputs."""
    computed = [index for op in graph.operators for index in op.outputs if index not in graph.outputs]
    shown = [i for i in computed if graph.tensors[i].dtype in _DTYPES and len(graph.tensors[i].shape) <= 6]
    return graph.replace(outputs=(*graph.outputs, *shown))


def _input(tensor: circle.Tensor, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """A value with the type of the file's input."""
    plain = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
    declared = tensor.shape_signature or tensor.shape
    if not fits(declared, plain.shape):
        raise InputError(f"input '{tensor.name}' is {tensor.dtype}{list(declared)}, got shape {list(plain.shape)}")
    if tensor.quantized:
        low, high = (0, 255) if tensor.dtype == "uint8" else (-128, 127)
        plain = ops.quantize(plain.float(), *_grid(tensor), None, 0, low, high, getattr(torch, tensor.dtype))
    else:
        plain = plain.to(getattr(torch, tensor.dtype))
    array: np.ndarray[Any, np.dtype[Any]] = plain.contiguous().numpy()
    return array


def _output(tensor: circle.Tensor, info: tuple[int, tuple[int, ...]], data: bytes) -> torch.Tensor:
    """The value of an output, with the type that the file declares."""
    dtype, shape = info
    if not fits(tensor.shape_signature or tensor.shape, shape):
        raise VerifyError(
            f"onert gives '{tensor.name}' the shape {list(shape)}, but the file declares {list(tensor.shape)}; "
            "export with target='onert', which writes the ranks that onert keeps"
        )
    name = next(name for name, number in _DTYPES.items() if number == dtype)
    assert name == tensor.dtype, f"{tensor.name} is {tensor.dtype}, onert gives {name}"
    value = torch.from_numpy(np.frombuffer(data, name).reshape(shape).copy())
    return ops.dequantize(value, *_grid(tensor), None, 0) if tensor.quantized else value


def _grid(tensor: circle.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(tensor.scale[0], dtype=torch.float32, device="cpu"), torch.tensor(
        tensor.zero_point[0], dtype=torch.int32, device="cpu"
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child: it stops reading at the end of its input."""
    for pipe in (child.stdin, child.stdout):
        _close(pipe)
    child.kill()
    child.wait()


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:  # bytes were left in the buffer for a child that crashed
        return
