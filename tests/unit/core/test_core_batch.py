# SPDX-License-Identifier: Apache-2.0
"""How a batch becomes the arguments of a call, and which tensors a result holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from pyquant.batch import call, describe, is_batch, result_tensors, tensors_in
from pyquant.errors import InputError


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return x if y is None else x + 10 * y


X, Y = torch.tensor([1.0]), torch.tensor([2.0])


@pytest.mark.parametrize(
    ("batch", "expected"),
    [({"y": Y, "x": X}, 21.0), ((X, Y), 21.0), ([X, Y], 21.0), ((X,), 1.0), (X, 1.0)],
    ids=["dict", "tuple", "list", "one_in_a_tuple", "tensor"],
)
def test_each_form_of_batch(batch: Any, expected: float) -> None:
    assert is_batch(batch)
    assert call(Sum(), batch).item() == expected


@pytest.mark.parametrize("batch", [3, None, "text", {1}], ids=["int", "none", "text", "set"])
def test_another_form_is_an_error_that_names_it(batch: Any) -> None:
    assert not is_batch(batch)
    with pytest.raises(InputError, match=f"the batch is a {type(batch).__name__}; expected a dict of keyword"):
        call(Sum(), batch)


def test_the_models_own_error_passes() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        call(Sum(), {"z": X})


def test_description() -> None:
    batch = {"x": torch.zeros(3, 5), "rest": [1, "a"], "none": None}
    assert describe(batch) == "x: float32 (3, 5), rest: (int, str), none: NoneType"
    assert describe({}) == "nothing"
    assert describe([1] * 9) == "(int, int, int, int, int, int, int, int, ...)"


def test_tensors_of_a_nested_result() -> None:
    @dataclass
    class Output:
        first: torch.Tensor
        rest: tuple[Any, ...]

    assert list(tensors_in(Output(X, ({"a": [Y]}, None, 3)))) == [X, Y]


def test_the_result_of_a_language_model_is_its_logits() -> None:
    """transformers 5.24 returns image features beside them, as many as the batch has images."""

    @dataclass
    class Output:
        logits: torch.Tensor | None
        image_outputs: list[torch.Tensor]
        count: torch.Tensor

    images = [torch.zeros(2), torch.ones(3)]
    assert [t.shape for t in result_tensors(Output(torch.zeros(1, 5), images, torch.tensor(3)))] == [(1, 5)]
    assert [t.shape for t in result_tensors(Output(None, images, torch.tensor(3)))] == [(2,), (3,)]
    assert result_tensors(torch.tensor(3)) == []
