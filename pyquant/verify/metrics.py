# SPDX-License-Identifier: Apache-2.0
"""How far two tensors are apart, in the measures of the field. All compute in float64 and take torch or numpy.

It owns the formulas. Which value is good enough is tolerance.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pyquant.errors import InputError

Array = np.ndarray[Any, np.dtype[np.float64]]


def peir(reference: Any, other: Any) -> float:
    """Peak error to interval ratio: max |reference - other| / (max reference - min reference).

    0 for equal tensors, also constant ones; infinite for a difference from a constant reference.
    """
    ref, got = _pair(reference, other)
    error = _peak(ref, got)
    interval = float(ref.max() - ref.min()) if ref.size else 0.0
    return _ratio(error, interval)


def sqnr_db(reference: Any, other: Any) -> float:
    """Signal to quantization noise ratio in decibels: 10 log10(sum reference^2 / sum (reference - other)^2)."""
    ref, got = _pair(reference, other)
    noise = float(np.square(ref - got).sum())
    signal = float(np.square(ref).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def mean_abs_diff(reference: Any, other: Any) -> float:
    """Mean of |reference - other|; 0 for empty tensors."""
    ref, got = _pair(reference, other)
    return float(np.abs(ref - got).mean()) if ref.size else 0.0


def max_abs_diff(reference: Any, other: Any) -> float:
    """Largest |reference - other|; 0 for empty tensors."""
    return _peak(*_pair(reference, other))


def cosine(reference: Any, other: Any) -> float:
    """Cosine of the angle between the flattened tensors; 1 when both are zero."""
    ref, got = _pair(reference, other)
    length = float(np.linalg.norm(ref) * np.linalg.norm(got))
    if length == 0:
        return 1.0 if not ref.any() and not got.any() else 0.0
    return float(ref.ravel() @ got.ravel()) / length


def lsb_error(a: Any, b: Any, scale: Any) -> Array:
    """|a - b| in steps of the grid, elementwise. `scale` broadcasts against the tensors."""
    first, second = _pair(a, b)
    steps = np.abs(first - second) / np.asarray(_array(scale))
    return np.asarray(steps, np.float64)


def _peak(ref: Array, got: Array) -> float:
    return float(np.abs(ref - got).max()) if ref.size else 0.0


def _ratio(error: float, interval: float) -> float:
    if error == 0:
        return 0.0
    return error / interval if interval > 0 else math.inf


def _pair(reference: Any, other: Any) -> tuple[Array, Array]:
    ref, got = _array(reference), _array(other)
    if ref.shape != got.shape:
        raise InputError(f"the tensors differ in shape: reference {ref.shape}, other {got.shape}")
    return ref, got


def _array(value: Any) -> Array:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, np.float64)
