# SPDX-License-Identifier: Apache-2.0
"""`--model DIR`: the float model of a checkpoint folder or hub name, as the class that its config.json names.

It owns what a command adds: a bar for a person who waits. Finding the class and reading the files is
pyquant/interop/load.py.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pyquant.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pyquant.stream import Stream

DTYPES = ("float32", "bfloat16", "float16")


def model_class(name: str) -> type[nn.Module]:
    """The transformers class that the checkpoint's config.json names. Raises ModelError."""
    from pyquant import interop

    if name.startswith("tiny:"):
        raise ModelError(
            f"{name!r} is a tiny model for trace, report and sensitivity; this command takes a checkpoint folder"
        )
    return interop.model_class(name)


def load(name: str, dtype: str = "float32", stream: Stream | None = None) -> nn.Module:
    """The float model, as pyquant.interop.load has it."""
    import transformers

    from pyquant import interop

    if not sys.stderr.isatty():  # a bar is for a person who waits
        says: Any = transformers.utils.logging
        says.disable_progress_bar()
    model_class(name)
    return interop.load(name, dtype, stream=stream)


def device(name: str) -> torch.device:
    """`--device NAME`, once it is known to be there. Raises UsageError."""
    import torch

    try:
        found = torch.device(name)
        torch.empty(1, dtype=torch.float32, device=found).cpu()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        text = str(error).partition("\n")[0].rstrip(".")
        raise UsageError(f"--device {name}: no such device here ({text}); leave it out to run on the CPU") from error
    return found
