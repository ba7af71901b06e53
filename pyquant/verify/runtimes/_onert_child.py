# SPDX-License-Identifier: Apache-2.0
"""The process in which onert runs: its C API by ctypes, one file, any number of runs.

It owns that API's constants: inputs and outputs are bytes with an onert type and a shape. It imports
the standard library only, because onert.py starts it by its path, and a model that onert crashes on ends it.
"""

from __future__ import annotations

import ctypes
import math
import os
import pickle
import sys
from typing import Any, BinaryIO

WIDTH = {0: 4, 1: 4, 2: 1, 3: 1, 4: 1, 5: 8, 6: 1, 7: 2}  # bytes of an element by NNFW_TYPE
_ALIGN = 64
_STATUS = {
    1: "an error",
    2: "an unexpected null pointer",
    3: "a call in the wrong state",
    4: "out of memory",
    5: "an output buffer that is too small",
    6: "a deprecated call",
}

Info = tuple[int, tuple[int, ...]]  # NNFW_TYPE, shape


class TensorInfo(ctypes.Structure):
    """nnfw_tensorinfo."""

    _fields_ = [("dtype", ctypes.c_int32), ("rank", ctypes.c_int32), ("dims", ctypes.c_int32 * 6)]


class OnertError(Exception):
    """A call that onert answers with an error."""


class LoadedFile:
    """One loaded and prepared file, for inputs of given shapes."""

    def __init__(self, library: ctypes.CDLL, path: str, shapes: list[tuple[int, ...]]) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        self._call("create_session", ctypes.byref(self._handle))
        try:
            self._load(path, shapes)
        except OnertError:
            self.close()
            raise

    def _load(self, path: str, shapes: list[tuple[int, ...]]) -> None:
        self._call("load_model_from_file", self._handle, path.encode())
        self._call("set_available_backends", self._handle, b"cpu")
        for index, shape in enumerate(shapes):
            info = self._raw_info("input", index)
            if tuple(info.dims[: info.rank]) != shape:
                self._call("set_input_tensorinfo", self._handle, index, ctypes.byref(_info(info.dtype, shape)))
        self._call("prepare", self._handle)
        self.inputs = [self._info("input", index) for index in range(self._count("input"))]
        self.outputs = [self._info("output", index) for index in range(self._count("output"))]

    def run(self, data: list[bytes]) -> list[tuple[Info, bytes]]:
        """Outputs in order: their type and shape, and their bytes."""
        kept = []
        for index, ((dtype, shape), given) in enumerate(zip(self.inputs, data, strict=True)):
            size = _bytes(dtype, shape)
            assert len(given) == size, f"input {index} has {len(given)} bytes, {size} expected"
            buffer, place = _aligned(size)
            ctypes.memmove(place, given, size)
            kept.append(buffer)
            self._call("set_input", self._handle, index, dtype, ctypes.c_void_p(place), ctypes.c_size_t(size))
        places = []
        for index, (dtype, shape) in enumerate(self.outputs):
            size = _bytes(dtype, shape)
            buffer, place = _aligned(size)
            kept.append(buffer)
            places.append((place, size))
            self._call("set_output", self._handle, index, dtype, ctypes.c_void_p(place), ctypes.c_size_t(size))
        self._call("run", self._handle)
        ran = [self._info("output", index) for index in range(len(self.outputs))]
        return [(info, ctypes.string_at(place, size)) for info, (place, size) in zip(ran, places, strict=True)]

    def close(self) -> None:
        self._library.nnfw_close_session(self._handle)

    def _count(self, side: str) -> int:
        count = ctypes.c_uint32()
        self._call(f"{side}_size", self._handle, ctypes.byref(count))
        return count.value

    def _raw_info(self, side: str, index: int) -> TensorInfo:
        info = TensorInfo()
        self._call(f"{side}_tensorinfo", self._handle, index, ctypes.byref(info))
        return info

    def _info(self, side: str, index: int) -> Info:
        info = self._raw_info(side, index)
        return int(info.dtype), tuple(info.dims[: info.rank])

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"nnfw_{name}")(*arguments)
        if status:
            raise OnertError(f"{name} answered {_STATUS.get(status, f'status {status}')}")


def _info(dtype: int, shape: tuple[int, ...]) -> TensorInfo:
    info = TensorInfo(dtype, len(shape))
    for axis, size in enumerate(shape):
        info.dims[axis] = size
    return info


def _bytes(dtype: int, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * WIDTH[dtype]


def _aligned(size: int) -> tuple[Any, int]:
    """A buffer, and an aligned address in it with room for `size` bytes."""
    buffer = ctypes.create_string_buffer(size + _ALIGN)
    return buffer, -(-ctypes.addressof(buffer) // _ALIGN) * _ALIGN


def _serve(library: ctypes.CDLL, path: str, requests: BinaryIO, answers: BinaryIO) -> None:
    loaded, shapes = None, None
    while True:
        try:
            wanted, data = pickle.load(requests)
        except EOFError:
            return
        try:
            if loaded is None or wanted != shapes:
                if loaded is not None:
                    loaded.close()
                loaded, shapes = None, wanted
                loaded = LoadedFile(library, path, wanted)
            answer: Any = ("outputs", loaded.run(data))
        except OnertError as error:
            answer = ("refused", str(error))
        pickle.dump(answer, answers)
        answers.flush()


def main() -> None:
    """`_onert_child.py LIBRARY FILE`: requests (input shapes, input bytes) on stdin, answers on stdout."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what onert prints goes to its messages, not into the answers
    _serve(ctypes.CDLL(sys.argv[1]), sys.argv[2], sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
