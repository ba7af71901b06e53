# SPDX-License-Identifier: Apache-2.0
"""A quantized tree in place of its model: what libraries around transformers ask gets the float model's answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import pyquant
from pyquant import models
from pyquant.wrap import registry
from pyquant.wrap.hf_model import QModel

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=models.FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    fp = models.by_name(request.param).example.tiny_model()
    fp.config._name_or_path = fp.name_or_path = "a/checkpoint"
    return fp, pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))


def test_every_wrapper_of_a_whole_model_answers() -> None:
    for family in models.FAMILIES:
        models.by_name(family)
    whole = [cls for cls in registry.classes() if issubclass(cls, PreTrainedModel) and "transformers" in cls.__module__]
    assert len(whole) == 12
    assert [cls for cls in whole if not issubclass(registry.wrapper_of(cls), QModel)] == []


@pytest.mark.parametrize("name", ["device", "dtype", "name_or_path", "main_input_name", "config"])
def test_properties(pair: tuple[Any, Any], name: str) -> None:
    fp, q = pair
    assert getattr(q, name) == getattr(fp, name)


def test_sizes_and_generation(pair: tuple[Any, Any]) -> None:
    fp, q = pair
    folded = 0 if fp.can_generate() else 32  # Gemma4 scales pixels: a bias of its patch embedder here
    assert q.num_parameters() == fp.num_parameters() + folded
    table = fp.get_input_embeddings().weight.numel() if fp.can_generate() else 0
    assert q.num_parameters() - q.num_parameters(exclude_embeddings=True) == table
    q.requires_grad_(False)
    assert q.num_parameters(only_trainable=True) == 0
    q.requires_grad_(True)
    assert q.can_generate() == fp.can_generate() == hasattr(q, "generate")
    before = {key: value.clone() for key, value in q.state_dict().items()}
    assert q.tie_weights() is None
    assert all(torch.equal(value, before[key]) for key, value in q.state_dict().items())


def test_embeddings_are_those_of_the_model(pair: tuple[Any, Any]) -> None:
    fp, q = pair
    if not fp.can_generate():
        pytest.skip("a vision tower has no token table")
    assert torch.equal(q.get_input_embeddings().weight, fp.get_input_embeddings().weight)
    assert torch.equal(q.get_output_embeddings().weight, fp.get_output_embeddings().weight)


def test_moves_and_modes_return_the_tree(pair: tuple[Any, Any]) -> None:
    q = copy.deepcopy(pair[1])
    assert q.eval() is q
    assert not q.training
    assert q.to("cpu") is q
    assert q.to(torch.bfloat16) is q
    assert q.dtype is torch.bfloat16
    assert q.to("meta").device == torch.device("meta")
