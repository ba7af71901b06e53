# SPDX-License-Identifier: Apache-2.0
"""torch.autocast around a tree: off where the numbers are kept (calibration, export), one warning elsewhere.

It owns nothing of precision itself: a tree computes in the type of the model that was prepared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import torch

if TYPE_CHECKING:
    from pyquant.tree_state import TreeState

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function` as Python also within torch.compile, which calls it and does not look into it."""
    return cast(Callable[P, R], torch.compiler.disable(function))  # type: ignore[no-untyped-call]


@contextmanager
def off() -> Iterator[None]:
    """No autocast while the block runs, on the CPU and on every accelerator of this torch."""
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for kind in ("cpu", *(() if accelerator is None else (accelerator.type,))):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@uncompiled
def warn(state: TreeState, device: str) -> None:
    """Once for each tree: what it computes now is not what its files compute."""
    if state.warned_of_autocast:
        return
    state.warned_of_autocast = True
    warnings.warn(
        f"torch.autocast({device!r}, {torch.get_autocast_dtype(device)}) is active: matrix products of this tree are "
        "computed in that type, which its exported files do not do, so that the numbers differ; leave the autocast "
        "block, or prepare the model in the type that you want",
        UserWarning,
        stacklevel=3,
    )
