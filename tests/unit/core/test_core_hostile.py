# SPDX-License-Identifier: Apache-2.0
"""Mistakes around prepare and calibrate that must not pass silently: hooks, failing batches, other profiles."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from core_toys import ToyBlock, ToyModel
from torch import Tensor, nn

import pyquant
from pyquant import Policy
from pyquant.errors import CalibrationError, ProfileError

W8A8 = Policy.preset("w8a8")


# --- what prepare cannot take over ---


def test_hooks_and_patched_forwards_are_named_in_one_warning(model: ToyModel) -> None:
    model.register_forward_hook(lambda m, args, out: out * 2)
    model.layers[0].up.register_forward_pre_hook(lambda m, args: None)
    model.layers[1].forward = lambda x: x  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="prepare does not take over") as caught:
        pyquant.prepare(model, W8A8)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "the model itself (forward hook)" in text
    assert "'layers.0.up' (forward pre-hook)" in text
    assert "'layers.1' (own forward)" in text
    assert "computes the class's own arithmetic" in text
    assert caught[0].filename == __file__


def test_many_hooks_are_counted(model: ToyModel) -> None:
    for module in model.modules():
        module.register_forward_hook(lambda m, args, out: None)
    with pytest.warns(UserWarning, match=r" and \d+ more"):
        pyquant.prepare(model, W8A8)


def test_recording_hooks_of_transformers_do_not_matter(model: ToyModel) -> None:
    def record(module: nn.Module, args: Any, output: Any) -> None: ...

    record.__module__ = "transformers.utils.output_capturing"
    model.register_forward_hook(record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyquant.prepare(model, W8A8)


def test_a_hook_that_was_removed_is_gone(model: ToyModel) -> None:
    model.register_forward_hook(lambda m, args, out: None).remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyquant.prepare(model, W8A8)


# --- a batch that fails ---


@pytest.mark.parametrize(
    ("batch", "holds"),
    [
        (torch.randn(3, 5), r"float32 \(3, 5\)"),
        ((torch.randn(3, 5),), r"\(float32 \(3, 5\)\)"),
        ({"x": torch.randn(3, 5)}, r"x: float32 \(3, 5\)"),
        ({"y": torch.ones(2, dtype=torch.int64), "n": 3}, r"y: int64 \(2,\), n: int"),
    ],
    ids=["tensor", "tuple", "dict", "wrong-name"],
)
def test_a_failing_batch_is_named(block: ToyBlock, xs: list[Tensor], batch: Any, holds: str) -> None:
    q = pyquant.prepare(block, W8A8)
    with pytest.raises(
        CalibrationError, match=rf"batch 4: the model raised (RuntimeError|TypeError): .*; the batch was .*{holds}"
    ) as e:
        pyquant.calibrate(q, [*xs, batch], progress=False)
    assert isinstance(e.value.__cause__, RuntimeError | TypeError)


def test_an_interrupt_passes_through(block: ToyBlock) -> None:
    q = pyquant.prepare(block, W8A8)
    q.register_forward_pre_hook(lambda m, args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pyquant.calibrate(q, [torch.randn(3, 8)], progress=False)


@pytest.mark.parametrize("batches", [None, 3, len], ids=["none", "number", "function"])
def test_calibrate_with_what_is_no_iterable(block: ToyBlock, batches: Any) -> None:
    q = pyquant.prepare(block, W8A8)
    with pytest.raises(CalibrationError, match=rf"takes an iterable of batches, got {type(batches).__name__}"):
        pyquant.calibrate(q, batches)


# --- a profile of another kind ---


@pytest.mark.parametrize("profile", [None, object(), {"x": 1}], ids=["none", "object", "dict"])
def test_the_default_adapter_wants_an_export_profile(block: ToyBlock, xs: list[Tensor], profile: Any) -> None:
    q = pyquant.prepare(block, W8A8)
    pyquant.calibrate(q, xs, progress=False)
    pyquant.convert(q)
    with pytest.raises(
        ProfileError,
        match=rf"QuantToyBlock is exported with pyquant.ExportProfile\(inputs=.*got {type(profile).__name__}",
    ):
        q.as_export_module(profile)
