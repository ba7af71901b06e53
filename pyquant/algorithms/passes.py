# SPDX-License-Identifier: Apache-2.0
"""One pass of a tree over calibration data, for statistics.

It owns calling the tree on every batch, and the errors of batches. In which phase, and who watches, is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pyquant import autocast
from pyquant import progress as shown
from pyquant.batch import call, describe, is_batch
from pyquant.errors import CalibrationError, CheckpointError
from pyquant.stream import watching
from pyquant.wrap import QModule

__all__ = ["run_batches"]


def run_batches(q: QModule, batches: Iterable[Any], what: str, progress: bool | None = None) -> None:
    """Call `q` on every batch, as calibrate does. what: names the bar and begins the errors.

    Raises CalibrationError for no batches, and for one that the model fails on.
    """
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise CalibrationError(
            f"{what} takes an iterable of batches, got {type(batches).__name__}; pass a list or a data loader"
        )
    number = -1
    with autocast.off(), torch.no_grad(), watching(q.state.stream, q):
        for number, batch in enumerate(shown.bar(batches, desc=what, unit="batch", show=progress)):
            if not is_batch(batch):
                raise CalibrationError(
                    f"{what}: batch {number} is a {type(batch).__name__}; expected a dict of keyword arguments, a "
                    "tuple or list of positional arguments, or a tensor"
                )
            try:
                call(q, batch)
            except CheckpointError:  # of a file of weights, not of this batch
                raise
            except Exception as error:
                raise CalibrationError(
                    f"{what}: batch {number}: the model raised {type(error).__name__}: {error}; the batch was "
                    f"{describe(batch)}; repair or leave it out"
                ) from error
    if number < 0:
        raise CalibrationError(
            f"{what} got no batches: the iterable is empty, or a generator that was used up; pass a list"
        )
