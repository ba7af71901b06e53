# SPDX-License-Identifier: Apache-2.0
"""A batch: how it becomes the arguments of a call, and the tensors of what the call returns.

It owns the forms that a batch may have. Where batches come from is calibration/.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyquant.errors import InputError


def is_batch(value: object) -> bool:
    """Whether `call` takes it: a mapping (keyword arguments), a tuple or list (positional ones), or one tensor."""
    return isinstance(value, Mapping | tuple | list | Tensor)


def call(model: nn.Module, batch: object) -> Any:
    """What `model` returns for one batch. Raises InputError for a value of another type."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    raise InputError(
        f"the batch is a {type(batch).__name__}; expected a dict of keyword arguments, a tuple or list of positional "
        "arguments, or a tensor"
    )


def describe(batch: object) -> str:
    """The types and shapes in a batch, for messages: `x: float32 (3, 5), n: int`."""
    if isinstance(batch, Mapping):
        return ", ".join(f"{key}: {describe(value)}" for key, value in batch.items()) or "nothing"
    if isinstance(batch, tuple | list):
        return f"({', '.join(describe(value) for value in batch[:8])}{', ...' if len(batch) > 8 else ''})"
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    return type(batch).__name__


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor of a nested value (what a model returned), in order."""
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


def result_tensors(output: object) -> list[Tensor]:
    """The floating-point tensors of a model's output that are its result: the logits where there are some, else all.

    Some releases of transformers return the image features of each image beside the logits, as many as a batch has
    images.
    """
    logits = getattr(output, "logits", None)
    tensors = [logits] if isinstance(logits, Tensor) else tensors_in(output)
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def tensor_digest(value: Tensor) -> bytes:
    """A checksum of the values of a tensor."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).digest()
