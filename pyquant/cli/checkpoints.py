# SPDX-License-Identifier: Apache-2.0
"""`--model DIR`: the float model of a checkpoint folder or hub name, as the class that its config.json names.

It owns what a command adds: a bar for a person who waits. Finding the class and reading the files is
pyquant/interop/load.py.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pyquant.errors import ModelError

if TYPE_CHECKING:
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
