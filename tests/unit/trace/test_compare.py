# SPDX-License-Identifier: Apache-2.0
"""Owns the tests of pairing two traces, call by call and value by value, and of the text that shows them.
Leaves the arithmetic to `test_metrics.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from pyquant.trace import (
    Comparison,
    Entry,
    Trace,
    TraceError,
    capture,
    compare,
    render_comparison,
    render_trace,
)


class Says(nn.Module):
    """Returns a fixed answer for any input."""

    def __init__(self, *answers: object) -> None:
        super().__init__()
        self.answers = list(answers)

    def forward(self, x: Tensor | None = None) -> object:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@dataclass
class Own:
    last_hidden_state: Any
    weights: Any = None


def traced(answer: object, tensors: str = "*") -> Trace:
    with capture(Says(answer), torch.zeros(1), tensors=tensors) as trace:
        pass
    return trace


def compared(a: object, b: object) -> list[Entry]:
    return list(compare(traced(a), traced(b)))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def run(model: nn.Module, calls: int = 1, tensors: str = "*") -> Trace:
    with capture(model, tensors=tensors) as trace, torch.no_grad():
        for _ in range(calls):
            model(torch.linspace(-1, 1, 8).view(2, 4))
    return trace


X, Y = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])


# --- calls -----------------------------------------------------------------------------------------------------------


def test_calls_are_paired_by_name_and_order() -> None:
    a, b = run(network(), calls=2), run(network(1), calls=2)
    comparison = compare(a, b)
    assert [(e.module, e.repeat) for e in comparison] == [(call.name, call.repeat) for call in a]
    assert {e.status for e in comparison} == {"differs"}
    assert (comparison.only_a, comparison.only_b, comparison.errors) == ((), (), ())
    value = a.calls[2].output
    other = b.calls[2].output
    gap = a.tensor(value) - b.tensor(other)  # type: ignore[arg-type]
    found = comparison.entries[2].difference
    assert found is not None
    assert (found.min, found.max) == pytest.approx((float(gap.min()), float(gap.max())))


def test_a_trace_equals_itself() -> None:
    trace = run(network())
    comparison = compare(trace, trace, parts=("inputs", "kwargs", "output"))
    assert {e.status for e in comparison} == {"equal", "same"}
    assert {e.path for e in comparison} == {"inputs.0", "kwargs", "output"}
    assert comparison.above(0.0) == ()


def test_a_module_that_is_called_less_often_is_an_error_on_either_side() -> None:
    a, b = run(network(), calls=2), run(network(), calls=1)
    more, less = compare(a, b), compare(b, a)
    assert [(e.module, e.repeat) for e in more.errors] == [("0", 1), ("1", 1), ("2", 1), ("", 1)]
    assert more.errors[0].problem == "a calls 0 again, b has no call 2 of it"
    assert less.errors[3].problem == "b calls (model) again, a has no call 2 of it"
    assert more.errors[0].status == "error"


def test_modules_that_only_one_trace_knows_are_listed() -> None:
    a = run(network())
    b = run(nn.Sequential(*network(), nn.Identity()))
    comparison = compare(a, b)
    assert (comparison.only_a, comparison.only_b) == ((), ("3",))
    assert compare(b, a).only_a == ("3",)


@pytest.mark.parametrize("as_function", [False, True], ids=["mapping", "function"])
def test_names_of_a_wrapper_are_given_not_guessed(as_function: bool) -> None:
    model = network()
    wrapped = nn.ModuleDict({"inner": model})
    with capture(wrapped, tensors="*") as b, torch.no_grad():
        model(torch.linspace(-1, 1, 8).view(2, 4))
    a = run(model)
    assert compare(a, b).only_b == ("inner.0", "inner.1", "inner.2", "inner")
    if as_function:
        comparison = compare(a, b, lambda name: name.removeprefix("inner").removeprefix("."))
    else:
        comparison = compare(a, b, {"inner": "", "inner.0": "0", "inner.1": "1", "inner.2": "2"})
    assert {e.status for e in comparison} == {"equal"}
    assert (comparison.only_a, comparison.only_b) == ((), ())


def test_two_modules_may_not_get_one_name() -> None:
    trace = run(network())
    with pytest.raises(TraceError, match=r"two modules of b the name '0': '0' and '1'"):
        compare(trace, trace, {"1": "0"})


@pytest.mark.parametrize("parts", [(), ("outputs",)], ids=["none", "unknown"])
def test_parts_are_checked(parts: tuple[str, ...]) -> None:
    trace = run(network())
    with pytest.raises(TraceError, match="parts are some of inputs, kwargs, output"):
        compare(trace, trace, parts=parts)


def test_tensors_that_were_not_kept_are_said_to_be() -> None:
    comparison = compare(run(network()), run(network(), tensors="0"))
    assert [e.status for e in comparison] == ["equal", "not kept", "not kept", "not kept"]
    assert comparison.errors == ()


def test_traces_from_disk_compare_as_those_in_ram(tmp_path: Path) -> None:
    a, b = run(network()), run(network(1))
    a.save(tmp_path / "a")
    b.save(tmp_path / "b")
    assert compare(Trace.load(tmp_path / "a"), Trace.load(tmp_path / "b")) == compare(a, b)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((X, Y), [X, Y]),
        (BaseModelOutputWithPast(last_hidden_state=X), (X,)),
        ((X,), BaseModelOutputWithPast(last_hidden_state=X)),
        (BaseModelOutputWithPast(last_hidden_state=X), Own(X)),
        (Own(X), (X,)),
        (Own(X), (X, None)),
        ({"a": X, "b": Y}, {"b": Y, "a": X}),
        ({"a": X, "b": None}, {"a": X}),
        ((X, (Y, {"k": X})), [X, [Y, (X,)]]),
        ((X, None, 3), (X, None, 3)),
        ((X, 1), (X, True)),
        ((X, math.nan), (X, math.nan)),
        (None, None),
        ((), []),
        (torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32)),
        (X, X.double()),
        (X, X.bfloat16()),
    ],
    ids=[
        *("tuple_list", "hf_tuple", "tuple_hf", "hf_own", "own_tuple", "own_tuple_none", "dict_order", "dict_none"),
        *("nested", "leaves", "bool_int", "nan", "none", "empty", "int_widths", "double", "bf16"),
    ],
)
def test_values_of_another_type_but_the_same_content_agree(a: object, b: object) -> None:
    assert {e.status for e in compared(a, b)} <= {"equal", "same"}


@pytest.mark.parametrize(
    ("a", "b", "path", "problem"),
    [
        ((X, Y), (X,), "output", "a has 2 items, b has 1"),
        ((X,), (X, Y), "output", "a has 1 items, b has 2"),
        ((X, None), (X, None, None, Y), "output", "a has 2 items, b has 4"),
        ({"a": X, "b": Y}, {"a": X}, "output.b", "only a has 'b'"),
        ({"a": X}, {"a": X, "b": Y}, "output.b", "only b has 'b'"),
        (BaseModelOutputWithPast(last_hidden_state=X), (X, Y), "output", "a has 1 items, b has 2"),
        (X, (X,), "output", r"a has float32 \(2,\), b has tuple of 1"),
        (X, None, "output", r"a has float32 \(2,\), b has None"),
        (None, X, "output", r"a has None, b has float32 \(2,\)"),
        ((X, [Y, 3]), (X, [Y, 4]), "output.1.1", "a has 3, b has 4"),
        ((X, "eager"), (X, "sdpa"), "output.1", "a has 'eager', b has 'sdpa'"),
        (X, torch.zeros(3), "output", r"shapes differ: a has \(2,\), b has \(3,\)"),
        (X, torch.zeros(1, 2), "output", r"shapes differ: a has \(2,\), b has \(1, 2\)"),
        (X, torch.tensor([1, 2]), "output", "dtypes differ in kind: a has float32, b has int64"),
        (X, torch.tensor([1.0, math.nan]), "output", "1 elements are NaN or infinite in one only"),
        ((None, X), (object(), X), "output.0", "a has None, b has object"),
    ],
    ids=[
        *("shorter", "longer", "nones", "key_missing", "key_extra", "hf_longer", "bare", "tensor_none", "none_tensor"),
        *("number", "text", "length", "rank", "kind", "nan", "object"),
    ],
)
def test_a_mismatch_is_an_error_entry(a: object, b: object, path: str, problem: str) -> None:
    errors = [e for e in compared(a, b) if e.problem is not None]
    assert [e.path for e in errors] == [path]
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(errors[0].problem)
    assert errors[0].status == "error"


def test_what_does_match_is_still_measured_beside_an_error() -> None:
    found = compared({"a": X, "b": Y}, {"a": Y})
    assert [(e.path, e.status) for e in found] == [("output.a", "differs"), ("output.b", "error")]
    assert found[0].difference is not None
    assert found[0].difference.peir == pytest.approx(0.5)


def test_finite_elements_are_measured_beside_a_nan() -> None:
    (entry,) = compared(torch.tensor([1.0, 2.0, math.nan]), torch.tensor([1.0, 2.5, 0.0]))
    assert entry.status == "error"
    assert entry.difference is not None
    assert entry.difference.min == -0.5


# --- the result ------------------------------------------------------------------------------------------------------


def test_worst_and_above_are_ordered_by_peir() -> None:
    a = traced((X, X, X, X))
    b = traced((X, X + torch.tensor([0.0, 0.1]), X + torch.tensor([0.0, 0.3]), torch.zeros(3)))
    comparison = compare(a, b)
    assert [e.path for e in comparison.worst(2)] == ["output.2", "output.1"]
    assert [e.path for e in comparison.above(0.2)] == ["output.2", "output.3"]
    assert [e.path for e in comparison.above(0.0)] == ["output.1", "output.2", "output.3"]
    assert len(comparison.worst(99)) == 3


def test_json_both_ways_with_infinite_metrics() -> None:
    zero = torch.zeros(2)
    answers: tuple[object, object] = ((zero, X, X, zero[:0], None), (X, X, torch.zeros(3), zero[:0], None))
    comparison = compare(traced(answers[0]), traced(answers[1]))
    assert Comparison.from_json(comparison.to_json()) == comparison
    assert comparison.entries[0].difference is not None
    assert comparison.entries[0].difference.sqnr == -math.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"format": "pyquant-trace-1"}', "expected 'pyquant-comparison-1'"),
        ('{"format": "pyquant-comparison-1", "entries": [{"x": 1}]}', "not as to_json writes it"),
    ],
    ids=["empty", "a_trace", "no_entry"],
)
def test_json_of_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        Comparison.from_json(text)


# --- text ------------------------------------------------------------------------------------------------------------


def test_the_table_says_everything_and_cuts_nothing() -> None:
    a, b = run(network()), run(nn.Sequential(*network(1), nn.Identity()), calls=2)
    text = render_comparison(compare(a, b))
    lines = text.splitlines()
    for word in ("module", "a: Sequential", "b: Sequential", "PEIR", "SQNR dB", "cosine", "status"):
        assert word in lines[0]
    assert "float32 (2, 8)" in text
    assert "error: 0 #2 : b calls 0 again" in text
    assert "only in b: 3" in text
    assert "…" not in text
    assert "8 values compared (4 differs, 4 error)" in text
    assert "largest PEIR" in text


def test_a_chosen_part_of_the_table_says_that_it_is_one() -> None:
    comparison = compare(run(network()), run(network(1)))
    text = render_comparison(comparison, comparison.worst(1))
    assert "4 values compared (4 differs), 1 shown" in text


def test_a_narrow_table_folds_and_brackets_are_not_markup() -> None:
    name = "layers." * 12 + "mlp"
    entry = Entry(name, 0, "output.[bold]", "a", "b", problem="[red]")
    text = render_comparison(Comparison("A", "B", (entry,)), width=120)
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("error"))
    assert "[red]" in text
    flat = render_comparison(Comparison("A", "B", (entry,)))
    assert name in flat
    assert "output.[bold]" in flat


def test_an_empty_comparison_has_text_too() -> None:
    assert "0 values compared (none)" in render_comparison(Comparison("A", "B", ()))
    assert render_trace(Trace("M")) == ""


def test_a_trace_as_text_shows_the_structure() -> None:
    answer = {"logits": X, "cache": (None, 3, "eager"), "mask": torch.tensor([-math.inf]), "none": torch.empty(0)}
    text = render_trace(traced(answer))
    assert text == (
        "(model): Says\n"
        "  inputs: tuple of 1\n"
        "    0: Tensor float32 (1,) mean=0 min=0 max=0 std=0\n"
        "  output: dict\n"
        "    logits: Tensor float32 (2,) mean=1.5 min=1 max=2 std=0.5\n"
        "    cache: tuple of 3\n"
        "      0: NoneType\n"
        "      1: int 3\n"
        "      2: str 'eager'\n"
        "    mask: Tensor float32 (1,) nonfinite=1\n"
        "    none: Tensor float32 (0,)\n"
    )


def test_chosen_calls_of_a_trace_as_text() -> None:
    trace = run(network(), calls=2)
    text = render_trace(trace, trace.find("1"))
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["1: ReLU", "1 #2: ReLU"]
