# SPDX-License-Identifier: Apache-2.0
"""The table of operators against the schema's Python bindings: codes, options, defaults, enum spellings."""

from __future__ import annotations

import importlib
import re

import pytest

from pyquant.circle import OperatorInfo, codes, operators

ROWS = list(operators().values())
each_operator = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def schema(name: str):
    return getattr(importlib.import_module(f"circle_schema.v0_10.circle.{name}"), name)


def camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


@each_operator
def test_code_is_the_schemas(row: OperatorInfo) -> None:
    assert getattr(schema("BuiltinOperator"), row.name) == row.code


@each_operator
def test_options_are_the_schemas(row: OperatorInfo) -> None:
    if row.options_table == "NONE":
        assert row.options == ()
        return
    module = importlib.import_module(f"circle_schema.v0_10.circle.{row.options_table}")
    table = getattr(module, f"{row.options_table}T")()
    fields = {name for name in vars(table) if not name.startswith("_")}
    assert fields == {camel(option.name) for option in row.options}
    for option in row.options:
        default = getattr(table, camel(option.name))
        ours = option.default
        if option.choices:
            ours = getattr(schema(_enum(option.type)), str(option.default))
        assert (default or 0) == (ours or 0), option.name


def _enum(kind: str) -> str:
    return {"WeightsFormat": "FullyConnectedOptionsWeightsFormat"}.get(kind, kind)


@pytest.mark.parametrize("kind", ["ActivationFunctionType", "Padding", "TensorType", "RoPEMode", "WeightsFormat"])
def test_enum_spellings_are_the_schemas(kind: str) -> None:
    enum = schema(_enum(kind))
    theirs = {name for name in vars(enum) if not name.startswith("_")}
    ours = {choice for row in ROWS for option in row.options if option.type == kind for choice in option.choices}
    assert ours == theirs


def test_what_the_lowering_reads() -> None:
    table = operators()
    linear = table["FULLY_CONNECTED"]
    assert (linear.min_inputs, linear.max_inputs) == (3, 3)
    assert [operand.role for operand in linear.inputs] == ["x", "w", "b"]
    assert linear.inputs[2].may_be_none
    assert linear.option("fused_activation_function").choices[0] == "NONE"
    assert table["CONCATENATION"].max_inputs is None
    assert table["CONCATENATION"].input(7).role == "x"
    assert table["RESHAPE"].min_inputs == 1
    assert table["RESHAPE"].value_preserving
    assert not table["RELU"].value_preserving
    with pytest.raises(KeyError, match=r"SOFTMAX has no option 'gamma'; it has \['beta'\]"):
        table["SOFTMAX"].option("gamma")


NEEDED = """FULLY_CONNECTED BATCH_MATMUL ADD SUB MUL DIV MAXIMUM MINIMUM POW NEG ABS SQRT RSQRT EXP LOG SQUARE
SQUARED_DIFFERENCE FLOOR CEIL ROUND SIN COS TANH LOGISTIC RELU RELU6 GELU ELU LEAKY_RELU SOFTMAX LOG_SOFTMAX MEAN SUM
REDUCE_MAX REDUCE_MIN ARG_MAX ARG_MIN RESHAPE TRANSPOSE SQUEEZE EXPAND_DIMS BROADCAST_TO TILE CONCATENATION SPLIT
SPLIT_V SLICE STRIDED_SLICE PAD PADV2 GATHER GATHER_ND SELECT SELECT_V2 PACK UNPACK CAST QUANTIZE DEQUANTIZE EQUAL
NOT_EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND LOGICAL_OR LOGICAL_NOT ONE_HOT FILL SHAPE RANGE CONV_2D
DEPTHWISE_CONV_2D RMS_NORM ROPE INSTANCE_NORM TOPK_V2 FLOOR_DIV FLOOR_MOD CUMSUM"""


def test_the_operators_that_vision_and_language_models_need_are_there() -> None:
    assert set(NEEDED.split()) <= set(operators())


def test_codes_have_meanings() -> None:
    assert codes()["E_SCALE_NOT_FINITE"] == "a scale is NaN or infinite"
    assert all(re.fullmatch(r"E_[A-Z0-9_]+", code) and meaning for code, meaning in codes().items())
