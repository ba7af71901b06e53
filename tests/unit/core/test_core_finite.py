# SPDX-License-Identifier: Apache-2.0
"""NaN and Inf in tensors that no quantized site looks at: named by prepare, and by convert after an edit."""

from __future__ import annotations

import pytest
import torch
from core_toys import ToyModel
from torch import nn
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

import pyquant
from pyquant import Policy, Rule
from pyquant.errors import CalibrationError
from pyquant.site import Role
from pyquant.wrap import QModule

WEIGHT_ONLY = Policy((Rule("*", Role.WEIGHT, Policy.preset("w8a8_int8").rules[-1].spec),))
FLOAT_NORMS = Policy.preset("w8a8") + Rule("*norm:*")

# policy, path of a tensor that no quantized site looks at
PLACES = {
    "norm gain, weight-only": (WEIGHT_ONLY, "layers.0.norm.weight"),
    "bias, weight-only": (WEIGHT_ONLY, "layers.1.up.bias"),
    "bias, all quantized": (Policy.preset("w8a8"), "layers.1.up.bias"),
    "table, weight-only": (WEIGHT_ONLY, "embed.weight"),
    "buffer, weight-only": (WEIGHT_ONLY, "layers.0.table"),
    "norm gain, float by a rule": (FLOAT_NORMS, "layers.1.norm.weight"),
    "weight, all float": (Policy.preset("float"), "layers.0.down.weight"),
}


def spoil(model: nn.Module, path: str, value: float) -> None:
    owner, _, name = path.rpartition(".")
    with torch.no_grad():
        getattr(model.get_submodule(owner), name).view(-1)[2] = value


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", PLACES)
def test_prepare_names_the_tensor(place: str, value: float) -> None:
    policy, path = PLACES[place]
    model = ToyModel(tied=False)
    spoil(model, path, value)
    with pytest.raises(CalibrationError, match=r"prepare: 1 tensor\(s\) without a quantized site") as caught:
        pyquant.prepare(model, policy)
    assert f"'{path}': 1 of " in str(caught.value)


@pytest.mark.parametrize("place", PLACES)
def test_convert_names_what_was_edited_since(place: str) -> None:
    policy, path = PLACES[place]
    model = ToyModel(tied=False)
    q = pyquant.prepare(model, policy)
    pyquant.calibrate(q, [torch.arange(10)], progress=False)
    spoil(q, path, torch.nan)
    with pytest.raises(CalibrationError, match="convert: 1 tensor") as caught:
        pyquant.convert(q)
    assert f"'{path}': 1 of " in str(caught.value)
    spoil(q, path, 0.5)
    pyquant.convert(q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_type(dtype: torch.dtype) -> None:
    model = ToyModel(tied=False).to(dtype)
    spoil(model, "layers.0.up.bias", torch.nan)
    with pytest.raises(CalibrationError, match=r"'layers\.0\.up\.bias'"):
        pyquant.prepare(model, Policy.preset("float"))


def test_all_are_listed_once_where_tied() -> None:
    model = ToyModel()
    spoil(model, "head.weight", torch.nan)
    spoil(model, "layers.0.norm.weight", torch.inf)
    with pytest.raises(CalibrationError, match=r"2 tensor\(s\)") as caught:
        pyquant.prepare(model, Policy.preset("float"))
    assert [line.split()[0].rstrip(":") for line in str(caught.value).splitlines()[1:]] == [
        "'embed.weight'",
        "'layers.0.norm.weight'",
    ]


def test_a_quantized_weight_is_named_by_its_site_in_convert() -> None:
    model = ToyModel(tied=False)
    spoil(model, "head.weight", torch.nan)
    q = pyquant.prepare(model, WEIGHT_ONLY)
    with pytest.raises(CalibrationError, match="head:weight: its constant has 1 NaN"):
        pyquant.convert(q)


def clipped(**bounds: float) -> QModule:
    fp = modeling_gemma4.Gemma4ClippableLinear(Gemma4VisionConfig(hidden_size=8, use_clipped_linears=True), 8, 8)
    for name, bound in bounds.items():
        getattr(fp, name).fill_(bound)
    return pyquant.prepare(fp, Policy.preset("w8a8"))


def test_an_infinite_bound_is_no_bound_and_nan_is_none() -> None:
    clipped(input_min=-torch.inf, input_max=torch.inf, output_min=-torch.inf, output_max=1.0)
    with pytest.raises(CalibrationError, match="'input_min': 1 of 1 values are NaN"):
        clipped(input_min=torch.nan)


def test_a_model_without_data_is_prepared() -> None:
    pyquant.prepare(ToyModel().to("meta"), Policy.preset("float"))
