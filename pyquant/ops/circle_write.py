# SPDX-License-Identifier: Apache-2.0
"""circle_write: a plan and its constants to a .circle file, streamed from the tensors' own memory.

It owns the typed function and the Meta kernel. The contents of a plan are exporter/, constants that do not exist until
they are written `pyquant.circle.write`, checking and writing the file csrc/circle.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyquant.errors import CircleError, OpArgumentError
from pyquant.ops._native import meta, native

_circle_write: Callable[..., int] = native("circle_write")
_MARK = "[pyquant] "


def circle_write(plan: str, constants: Sequence[Tensor], path: str | os.PathLike[str]) -> int:
    """Checks `plan` (JSON text), writes the file whole or not at all, and returns its size in bytes.

    `constants[k]` is the tensor that the plan calls constant k, its bytes as they are in the file (4-bit integers
    packed, as uint8). Tensors are not copied when they are contiguous and on the CPU.
    Raises CircleError, whose text starts with the code of the fault; a file that was at `path` is then unchanged.
    """
    for i, tensor in enumerate(constants):
        if not isinstance(tensor, Tensor):
            raise OpArgumentError(f"circle_write: constants[{i}] is {type(tensor).__name__}; expected a torch.Tensor")
    target = os.fspath(path)
    if "\0" in target:  # torch passes strings up to the first NUL, which would name another file
        raise CircleError(f"E_CREATE: {target!r}: the path has a NUL byte; name a file")
    with torch.no_grad():
        dense = [tensor.detach().cpu().contiguous() for tensor in constants]
    try:
        return int(_circle_write(plan, dense, target))
    except RuntimeError as error:
        _, mark, text = str(error).partition(_MARK)
        if not mark:
            raise
        raise CircleError(text.split("\n")[0]) from None


@meta("circle_write")
def _circle_write_meta(plan: str, constants: list[Tensor], path: str) -> int:
    return 0
