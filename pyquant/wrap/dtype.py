# SPDX-License-Identifier: Apache-2.0
"""Casts that vanish when there is nothing to cast, so that a float32 model exports without them.

It owns no policy: the code of a step decides whether it computes in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` itself if it has `dtype`. (`Tensor.to` leaves a cast and an assertion in the exported graph even then.)"""
    return x if x.dtype == dtype else x.to(dtype)


def as_float32(x: Tensor) -> Tensor:
    """`x` in float32, itself if it is."""
    return as_dtype(x, torch.float32)
