# SPDX-License-Identifier: Apache-2.0
"""The functions on Circle files and plans: read, check, inspect, diff, write.

The work is native. This module owns paths, types and the one error, CircleError, whose text starts with the fault's
code.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from pyquant import files
from pyquant.circle._native import native
from pyquant.circle.types import Constant, Fault, Model
from pyquant.errors import CircleError, OpArgumentError

if TYPE_CHECKING:
    import torch

PathLike: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = PathLike | bytes | Model
Target: TypeAlias = Literal["circle", "luci", "onert"]
_SMALL = 1 << 10  # bytes up to which a constant is made before the file is begun


def read(source: Source) -> Model:
    """Reads a file (mapped, constants are not copied) or bytes. Raises CircleError when it is no Circle flatbuffer.

    The contents may still be wrong; `check` finds that. Do not change a file while its Model is in use.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, bytes):
        return native.read_bytes(source)
    if why := files.absent(Path(source)):
        raise CircleError(f"E_NOT_CIRCLE: {os.fspath(source)}: {why}")
    return native.read(os.fspath(source))


def _faults(native_faults: Iterable[tuple[str, str, str]]) -> list[Fault]:
    return [Fault(code, message, where) for code, message, where in native_faults]


def check(source: Source, target: Target = "circle") -> list[Fault]:
    """Everything that is wrong with a file for `target`; empty when nothing is.

    circle: the format, and what TICO's reference runtime runs. luci: also ONE's rules for quantized models.
    onert: also what onert 0.1.0 rejects, crashes on, or computes wrongly without an error.
    Raises CircleError when the file cannot be read.
    """
    return _faults(read(source).check(target))


def check_plan(plan: str, sizes: Sequence[int], target: Target = "circle") -> list[Fault]:
    """The same for plan text whose constant k has sizes[k] bytes. Raises CircleError when it is no plan."""
    return _faults(native.check_plan(plan, sizes, target))


def inspect(source: Source, *, json: bool = False, title: str | None = None) -> str:
    """The contents of a file, as text or as JSON."""
    if title is None:
        title = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "model"
    return read(source).inspect(title, json)


def diff(a: Source, b: Source) -> list[str]:
    """One line for each difference between two files; empty when they are equal."""
    return read(a).diff(read(b))


def join(parts: Mapping[str, PathLike], path: PathLike) -> int:
    """Writes one file of several graphs: signature -> a file of one graph. Constants of equal bytes are stored once.

    Whole or not at all; returns the bytes written. TICO's runtime refuses such a file, and onert runs its first
    graph. Raises CircleError.
    """
    return native.join_files(list(parts), [os.fspath(part) for part in parts.values()], os.fspath(path))


def write(plan: str, constants: Sequence[torch.Tensor | Constant], path: PathLike) -> int:
    """Checks plan text and writes it with its constants, whole or not at all; returns the bytes written.

    `constants[k]` is what the plan calls constant k, its bytes as they are in the file (4-bit integers packed, as
    uint8): a tensor, which is not copied when it is contiguous and on the CPU, or an object that makes one when its
    place in the file has come (exporter/constant.py), so that one at a time is in memory. What an object raises ends
    the writing. Raises CircleError, whose text starts with the code of the fault; a file that was at `path` is then
    unchanged. Tensors alone go through the operator `ops.circle_write`.
    """
    import torch

    from pyquant.ops.circle_write import circle_write

    for i, constant in enumerate(constants):
        if not isinstance(constant, torch.Tensor) and not hasattr(constant, "tensor"):
            raise OpArgumentError(f"write: constants[{i}] is {type(constant).__name__}; expected a torch.Tensor")

    if all(isinstance(constant, torch.Tensor) for constant in constants):
        return circle_write(plan, cast("Sequence[torch.Tensor]", constants), path)

    def pieces(k: int) -> Any:
        in_file = getattr(constants[k], "file", None)
        return (data(k) if in_file is None else in_file,)

    def data(k: int) -> Any:
        given = constants[k]
        tensor = given if isinstance(given, torch.Tensor) else given.tensor()
        return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()

    numbers = (torch.int32, torch.int64)  # axes, shapes and indices, whose values are checked
    known: dict[Any, Any] = {k: data(k) for k, c in enumerate(constants) if c.dtype in numbers or c.nbytes <= _SMALL}
    return native.write_plan(plan, [c.nbytes for c in constants], known, pieces, os.fspath(path))
