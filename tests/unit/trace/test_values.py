# SPDX-License-Identifier: Apache-2.0
"""Owns the tests of how values are described: statistics of every kind of tensor, every kind of container, JSON.
Leaves the taking of traces to `test_capture.py`.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from pyquant.trace import Leaf, Statistics, TensorValue, Tree, describe, statistics
from pyquant.trace.values import from_data, tensors_of, to_data

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Output:
    hidden: Tensor
    weights: Tensor | None = None
    counts: list[int] = field(default_factory=list)


class Cache:
    """Holds tensors as a KV cache does: in lists of objects."""

    def __init__(self) -> None:
        self.layers = [Layer(), Layer()]
        self.limit = 7
        self._hidden = torch.zeros(1)
        self.maker = Layer


class Layer:
    __slots__ = ("_secret", "keys", "missing", "values")

    def __init__(self) -> None:
        self.keys = torch.ones(2)
        self.values = torch.zeros(3)
        self._secret = torch.ones(1)


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shift", [0.0, 3.0, -300.0])
@pytest.mark.parametrize("shape", [(2,), (33,), (5, 7, 11), (300, 300)], ids=str)
def test_statistics_are_those_of_float64(shape: tuple[int, ...], shift: float, dtype: torch.dtype) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + shift).to(dtype)
    found = statistics(x)
    exact = x.double()
    assert found is not None
    assert found.elements == x.numel()
    assert found.nonfinite == 0
    assert found.min == float(exact.min())
    assert found.max == float(exact.max())
    assert found.mean == pytest.approx(float(exact.mean()), rel=1e-5, abs=1e-5)
    assert found.std == pytest.approx(float(exact.std(correction=0)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.tensor([1, 2, 6]), (3.0, 1.0, 6.0, math.sqrt(14 / 3))),
        (torch.tensor([2**40, 2**40 + 2]), (2.0**40 + 1, 2.0**40, 2.0**40 + 2, 1.0)),
        (torch.tensor([1, 3], dtype=torch.uint8), (2.0, 1.0, 3.0, 1.0)),
        (torch.tensor([True, False, False, False]), (0.25, 0.0, 1.0, math.sqrt(3 / 16))),
        (torch.tensor(5.0), (5.0, 5.0, 5.0, 0.0)),
        (torch.tensor([[-2]]), (-2.0, -2.0, -2.0, 0.0)),
        (torch.full((1000,), 0.1, dtype=torch.float64), (0.1, 0.1, 0.1, 0.0)),
        (torch.tensor([1 + 2j, 3 + 4j]), (2.5, 1.0, 4.0, math.sqrt(1.25))),
        (torch.tensor([[1.0, 9.0], [3.0, 9.0]])[:, 0], (2.0, 1.0, 3.0, 1.0)),
        (torch.tensor([[0.0, 2.0]]).to_sparse(), (1.0, 0.0, 2.0, 1.0)),
        (torch.tensor([1.0]).expand(4), (1.0, 1.0, 1.0, 0.0)),
    ],
    ids=[
        "int64",
        "large_int64",
        "uint8",
        "bool",
        "scalar",
        "one_element",
        "constant",
        "complex",
        "strided",
        "sparse",
        "expanded",
    ],
)
def test_statistics_of_every_kind_of_tensor(x: Tensor, expected: tuple[float, ...]) -> None:
    found = statistics(x)
    assert found is not None
    assert (found.mean, found.min, found.max, found.std) == pytest.approx(expected, rel=1e-6)


def test_an_empty_tensor_has_none() -> None:
    assert statistics(torch.empty(0, 3)) == Statistics(elements=0)


def test_a_meta_tensor_has_no_data() -> None:
    assert statistics(torch.empty(3, device="meta")) is None


def test_nonfinite_elements_are_counted_and_left_out() -> None:
    found = statistics(torch.tensor([1.0, math.nan, 3.0, math.inf, -math.inf]))
    assert found == Statistics(5, 3, 2.0, 1.0, 3.0, 1.0)
    assert statistics(torch.tensor([math.nan, math.inf])) == Statistics(2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_masks_filled_with_the_most_negative_number_do_not_overflow(dtype: torch.dtype) -> None:
    fill = torch.finfo(dtype).min
    x = torch.full((64, 64), fill, dtype=dtype).triu(1)
    found = statistics(x)
    share = float((x != 0).double().mean())
    assert found is not None
    assert found.nonfinite == 0
    assert (found.min, found.max) == (fill, 0.0)
    assert found.mean == pytest.approx(fill * share, rel=1e-6)
    assert found.std == pytest.approx(-fill * math.sqrt(share * (1 - share)), rel=1e-6)


def test_statistics_leave_gradients_and_inference_tensors_alone() -> None:
    x = torch.ones(3, requires_grad=True)
    assert statistics(x * 2) == Statistics(3, 0, 2.0, 2.0, 2.0, 0.0)
    assert x.grad is None
    with torch.inference_mode():
        assert statistics(torch.zeros(2)) == Statistics(2, 0, 0.0, 0.0, 0.0, 0.0)


# --- containers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "leaf"),
    [
        (None, Leaf("NoneType")),
        (True, Leaf("bool", True)),
        (3, Leaf("int", 3)),
        (0.5, Leaf("float", 0.5)),
        ("eager", Leaf("str", "eager")),
        ("x" * 500, Leaf("str", "x" * 197 + "...")),
        (torch.float16, Leaf("dtype", "torch.float16")),
        (torch.device("cpu"), Leaf("device", "cpu")),
        (object(), Leaf("object")),
        ({1, 2}, Leaf("set")),
        (nn.Linear(2, 2), Leaf("Linear")),
        (math.sin, Leaf("builtin_function_or_method")),
        (Layer, Leaf("type")),
    ],
    ids=[
        "none",
        "bool",
        "int",
        "float",
        "text",
        "long_text",
        "dtype",
        "device",
        "object",
        "set",
        "module",
        "function",
        "class",
    ],
)
def test_what_holds_no_tensor_is_a_leaf(value: object, leaf: Leaf) -> None:
    assert describe(value) == leaf


def test_containers_keep_their_type_their_names_and_their_order() -> None:
    x = torch.zeros(2)
    tensor = TensorValue("Tensor", "float32", (2,), Statistics(2, 0, 0.0, 0.0, 0.0, 0.0))
    none = Leaf("NoneType")
    assert describe((x, None)) == Tree("tuple", "sequence", (("0", tensor), ("1", none)))
    assert describe([]) == Tree("list", "sequence", ())
    assert describe(x.shape) == Tree("Size", "sequence", (("0", Leaf("int", 2)),))
    assert describe({"b": x, 1: None}) == Tree("dict", "mapping", (("b", tensor), ("1", none)))
    assert describe(OrderedDict(b=x, a=x)) == Tree("OrderedDict", "mapping", (("b", tensor), ("a", tensor)))
    assert describe(Pair(x, None)) == Tree("Pair", "mapping", (("left", tensor), ("right", none)))
    assert describe(Output(x)) == Tree(
        "Output", "mapping", (("hidden", tensor), ("weights", none), ("counts", Tree("list", "sequence", ())))
    )
    assert describe(nn.Parameter(x)) == TensorValue("Parameter", "float32", (2,), tensor.statistics)


def test_an_hf_output_is_named() -> None:
    value = describe(BaseModelOutputWithPast(last_hidden_state=torch.zeros(1, 2)))
    assert isinstance(value, Tree)
    assert (value.type, value.kind, [name for name, _ in value.items]) == (
        "BaseModelOutputWithPast",
        "mapping",
        ["last_hidden_state"],
    )


def test_an_object_is_opened_where_it_stores_tensors() -> None:
    value = describe(Cache())
    assert [path for path, _ in tensors_of(value)] == [
        "layers.0.keys",
        "layers.0.values",
        "layers.1.keys",
        "layers.1.values",
    ]
    assert isinstance(value, Tree)
    assert dict(value.items)["limit"] == Leaf("int", 7)
    assert dict(value.items)["maker"] == Leaf("type")


def test_an_hf_cache_shows_its_keys_and_values() -> None:
    cache = DynamicCache()
    cache.update(torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    found = dict(tensors_of(describe({"past_key_values": cache})))
    assert found["past_key_values.layers.0.keys"].shape == (1, 2, 3, 4)
    assert found["past_key_values.layers.0.values"].statistics == Statistics(24, 0, 0.0, 0.0, 0.0, 0.0)
    assert describe(DynamicCache()) == Leaf("DynamicCache")


def test_a_value_that_contains_itself_ends() -> None:
    loop: list[Any] = [torch.zeros(1)]
    loop.append(loop)
    value = describe(loop)
    assert isinstance(value, Tree)
    assert value.items[1] == ("1", Leaf("list", "(contains itself)"))


def test_a_value_may_stand_twice_in_another() -> None:
    shared = [torch.zeros(1)]
    assert len(list(tensors_of(describe((shared, shared))))) == 2


def test_nesting_has_a_bound() -> None:
    deep: list[Any] = []
    for _ in range(40):
        deep = [deep]
    assert "(nested too deep)" in json.dumps(to_data(describe(deep)))


def test_iterators_are_not_consumed() -> None:
    numbers = iter([torch.zeros(1)])
    assert describe(numbers) == Leaf("list_iterator")
    assert len(list(numbers)) == 1


def test_a_property_is_not_run() -> None:
    class Lazy:
        def __init__(self) -> None:
            self.x = torch.zeros(1)

        @property
        def costly(self) -> None:
            raise AssertionError("a property was run")

    assert [path for path, _ in tensors_of(describe(Lazy()))] == ["x"]


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_both_ways() -> None:
    values = {
        "tensors": [torch.randn(2, 3), torch.zeros(0), torch.tensor([math.nan]), torch.empty(1, device="meta")],
        "numbers": (1, 0.1, True, None, math.inf, -math.inf, "inf"),
        "output": Output(torch.ones(1, dtype=torch.bool)),
        "cache": Cache(),
    }
    value = describe(values)
    text = json.dumps(to_data(value), allow_nan=False)
    assert from_data(json.loads(text)) == value


def test_nan_survives_json() -> None:
    back = from_data(json.loads(json.dumps(to_data(Leaf("float", math.nan)), allow_nan=False)))
    assert isinstance(back, Leaf)
    assert isinstance(back.value, float)
    assert math.isnan(back.value)


def test_json_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a traced value: it has the keys \['x'\]"):
        from_data({"x": 1})
