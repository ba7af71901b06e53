# SPDX-License-Identifier: Apache-2.0
"""Casts that vanish when there is nothing to cast, so that a float32 model exports without them.

It owns no policy: the code of a step decides whether it computes in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` itself if it has `dtype`. (`Tensor.to` leaves a cast and an assertion in the exported graph even then.)"""
    return x if x.dtype == dtype else x.to(dtype)


def as_float32(x: Tensor) -> Tensor:
    """`x` in float32, itself if it is."""
    return as_dtype(x, torch.float32)


def float_parameter(module: nn.Module) -> Tensor:
    """The first parameter of `module` that is a float: on its device, in its type, the module computes. Others are the
    integers of weights. Raises StopIteration for a module without one."""
    return next(parameter for parameter in module.parameters() if parameter.is_floating_point())
