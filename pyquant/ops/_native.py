# SPDX-License-Identifier: Apache-2.0
"""Loads the native operators; the error says how to build them. There is no fallback on CPU.

It owns finding an operator's callable by name, and turning a native error into OpArgumentError. What each operator
does is in its own module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError

# The number that csrc/torch/module.cc was built with; both change with every change of a schema.
ABI = 3
_HOW = "build it with `pip install -r requirements-dev.txt && pip install --no-build-isolation -e .` in the source tree"
_MARK = "[pyquant] "


def _load() -> None:
    try:
        importlib.import_module("pyquant._C")
    except ImportError as error:
        raise ImportError(f"pyquant's native operators (pyquant/_C.abi3.so) are missing: {error}; {_HOW}") from error
    built = int(torch.ops.pyquant._abi()) if hasattr(torch.ops.pyquant, "_abi") else 0
    if built != ABI:
        raise ImportError(
            f"pyquant's native operators are stale: pyquant/_C.abi3.so has version {built}, "
            f"the Python code expects {ABI}; {_HOW}"
        )


_load()


def native(name: str) -> Callable[..., Any]:
    """The overload `torch.ops.pyquant.<name>.default`. Raises ImportError when the binary lacks it."""
    try:
        op: Callable[..., Any] = getattr(torch.ops.pyquant, name).default
    except AttributeError:
        raise ImportError(f"pyquant/_C.abi3.so is stale: it has no operator {name!r}; {_HOW}") from None
    return op


Function = TypeVar("Function", bound=Callable[..., Any])


def meta(name: str) -> Callable[[Function], Function]:
    """Decorator: the Meta kernel of an operator (shapes and dtypes, no data), for torch.export and torch.compile."""
    return cast("Callable[[Function], Function]", torch.library.register_fake(f"pyquant::{name}"))


def observed(x: Tensor) -> Tensor:
    """x without its gradient: statistics need none, and state must not keep x's autograd graph alive."""
    return x.detach() if x.requires_grad else x


def op_error(error: RuntimeError) -> Exception:
    """The error of a kernel as an OpArgumentError with the same message; any other error unchanged."""
    _, mark, text = str(error).partition(_MARK)
    return OpArgumentError(text.split("\n")[0]) if mark else error
