# SPDX-License-Identifier: Apache-2.0
"""Calling a model on a batch as calibrate does, and the tensors of whatever it returns.

It owns nothing but these two words; which tensors count is the caller's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def call(model: nn.Module, batch: Any) -> Any:
    """The model on one batch: keyword arguments, positional ones, or one tensor."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch) if isinstance(batch, Tensor) else model(*batch)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of a nested output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name, None))
