# SPDX-License-Identifier: Apache-2.0
"""Owns the tests of taking a trace and of its two forms on disk.
Leaves how single values are described to `test_values.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pyquant import PyquantError
from pyquant.errors import InputError
from pyquant.trace import Leaf, TensorValue, Trace, TraceError, Tree, capture


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return self.act(self.linear(x)) * scale, None


class Model(nn.Module):
    """Calls `block` twice and `other` once; `alias` is `other` under a second path."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.other = nn.Linear(4, 2)
        self.alias = self.other

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, _ = self.block(x)
        x, _ = self.block(x, scale=2.0, mask=torch.ones(1, dtype=torch.bool))
        return {"logits": self.alias(x)}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture(autouse=True)
def no_hook_stays() -> object:
    yield
    assert not torch_module._global_forward_hooks
    assert not torch_module._has_any_global_hook()


X = torch.linspace(-1, 1, 12).view(3, 4)
ORDER = ["block.linear", "block.act", "block", "block.linear", "block.act", "block", "other", ""]


def key_of(value: object) -> str | None:
    assert isinstance(value, TensorValue)
    return value.key


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_one_record_for_each_call_in_the_order_of_return(model: Model) -> None:
    with capture(model, X) as trace:
        pass
    assert [call.name for call in trace] == ORDER
    assert [call.repeat for call in trace] == [0, 0, 0, 1, 1, 1, 0, 0]
    assert [call.type for call in trace][:3] == ["Linear", "ReLU", "Block"]
    assert trace.model == "Model"
    assert len(trace) == 8
    assert [call.title for call in trace][4:] == ["block.act #2", "block #2", "other", "(model)"]


def test_a_record_holds_inputs_kwargs_and_output(model: Model) -> None:
    with capture(model, X) as trace:
        pass
    second = trace.find("block")[1]
    assert second.inputs.type == "tuple"
    assert dict(second.kwargs.items)["scale"] == Leaf("float", 2.0)
    assert isinstance(second.output, Tree)
    assert second.output.items[1] == ("1", Leaf("NoneType"))
    assert [path for path, _ in second.tensors()] == ["inputs.0", "kwargs.mask", "output.0"]
    linear = trace.find("block.linear")[0].output
    assert isinstance(linear, TensorValue)
    assert linear.statistics is not None
    exact = model.block.linear(X).detach().double()
    assert linear.statistics.mean == pytest.approx(float(exact.mean()), rel=1e-6)
    assert linear.statistics.max == float(exact.max())


@pytest.mark.parametrize("inputs", [X, (X,), [X], {"x": X}], ids=["tensor", "tuple", "list", "mapping"])
def test_inputs_of_every_form_are_fed_once_without_gradients(model: Model, inputs: object) -> None:
    with capture(model, inputs, tensors="") as trace:
        assert [call.name for call in trace] == ORDER
    assert not trace.tensor(dict(trace.calls[-1].tensors())["output.logits"]).requires_grad


def test_without_inputs_the_block_makes_the_calls(model: Model) -> None:
    with capture(model) as trace:
        assert len(trace) == 0
        first = model(X)["logits"]
        model(X)
    model(X)
    assert first.requires_grad
    assert [call.name for call in trace] == ORDER * 2
    assert [call.repeat for call in trace.find("block")] == [0, 1, 2, 3]


def test_inputs_of_another_form_are_refused(model: Model) -> None:
    with pytest.raises(InputError, match="batch is a int; expected a dict"), capture(model, 3):
        pass


def test_the_hook_goes_away_when_the_model_or_the_block_raises(model: Model) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), capture(model, torch.zeros(1, 5)):
        pass
    with pytest.raises(ZeroDivisionError), capture(model, X):
        raise ZeroDivisionError
    assert not torch_module._global_forward_hooks


def test_a_call_that_raises_is_not_recorded_but_its_children_are(model: Model) -> None:
    with capture(model) as trace, pytest.raises(RuntimeError):
        model.other(model.block(X)[0][:, :3])
    assert [call.name for call in trace] == ["block.linear", "block.act", "block"]


def test_tracing_changes_nothing(model: Model) -> None:
    before = model(X)["logits"]
    with capture(model, tensors="*"):
        during = model(X)["logits"]
    during.sum().backward()
    assert torch.equal(before, during)
    assert model.other.weight.grad is not None


def test_other_models_are_not_recorded(model: Model) -> None:
    other = Model()
    with capture(model) as trace:
        other(X)
        nn.Identity()(X)
    assert len(trace) == 0


def test_two_traces_may_nest(model: Model) -> None:
    with capture(model) as outer, capture(model.block) as inner:
        model(X)
    assert [call.name for call in outer] == ORDER
    assert [call.name for call in inner] == ["linear", "act", ""] * 2


def test_a_trace_may_be_taken_in_another_thread(model: Model) -> None:
    with capture(model) as trace:
        thread = threading.Thread(target=lambda: model(X))
        thread.start()
        thread.join()
    assert [call.name for call in trace] == ORDER


def test_nothing_is_recorded_while_torch_export_traces(model: Model) -> None:
    with capture(model) as trace:
        exported = torch.export.export(model.other, (X,), strict=False)
    assert len(trace) == 0
    assert torch.equal(exported.module()(X), model.other(X))


def test_meta_tensors_have_no_statistics_and_are_not_kept() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with capture(model, torch.zeros(1, 2, device="meta"), tensors="*") as trace:
        pass
    assert trace.calls[0].output == TensorValue("Tensor", "float32", (1, 2))


# --- choice of modules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("block*", [name for name in ORDER if name.startswith("block")]),
        ("*.act", ["block.act"] * 2),
        (["other", ""], ["other", ""]),
        ([], []),
    ],
    ids=["glob", "suffix", "several", "none"],
)
def test_modules_chooses_what_is_recorded(model: Model, modules: str | list[str], expected: list[str]) -> None:
    with capture(model, X, modules) as trace:
        pass
    assert [call.name for call in trace] == expected


@pytest.mark.parametrize("argument", ["modules", "tensors"])
def test_a_glob_that_matches_nothing_is_an_error_that_names_it(model: Model, argument: str) -> None:
    with (
        pytest.raises(TraceError, match=rf"{argument}='block\.linea' matches none of the 5 modules.*'block\.linear'"),
        capture(model, X, **{argument: ["*", "block.linea"]}),
    ):
        pass


def test_a_trace_error_is_a_pyquant_error() -> None:
    assert issubclass(TraceError, PyquantError)
    assert issubclass(TraceError, ValueError)


# --- full tensors ----------------------------------------------------------------------------------------------------


def test_only_chosen_modules_keep_full_tensors(model: Model) -> None:
    with capture(model, X, tensors="block.linear") as trace:
        pass
    kept = {call.name for call in trace for _, value in call.tensors() if value.key is not None}
    assert kept == {"block.linear"}
    value = trace.find("block.linear")[0].output
    assert isinstance(value, TensorValue)
    assert torch.equal(trace.tensor(value), model.block.linear(X))
    other = trace.find("other")[0].output
    assert isinstance(other, TensorValue)
    with pytest.raises(TraceError, match=r"float32 tensor of shape \(3, 2\) was not kept; capture with tensors="):
        trace.tensor(other)


def test_a_tensor_that_goes_from_module_to_module_is_kept_once(model: Model) -> None:
    with capture(model, X, tensors="*") as trace:
        pass
    linear, act = trace.calls[0], trace.calls[1]
    assert key_of(linear.output) == key_of(act.inputs.items[0][1])
    assert key_of(linear.inputs.items[0][1]) == key_of(trace.calls[2].inputs.items[0][1])
    assert key_of(linear.output) != key_of(act.output)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_what_is_changed_in_place_later_is_kept_as_it_was(mode: Callable[[], torch.no_grad]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Identity())
    with mode(), capture(model, tensors="*") as trace:
        result = model(X)
        expected = result.clone()
        result.zero_()
    values = [call.output for call in trace]
    assert all(isinstance(value, TensorValue) for value in values)
    before, after, same, _ = (trace.tensor(value) for value in values if isinstance(value, TensorValue))
    assert bool((before < 0).any())
    assert torch.equal(after, before.relu())
    assert torch.equal(same, expected)
    for value, x in zip(values, (before, after, same), strict=False):
        assert isinstance(value, TensorValue)
        assert value.statistics is not None
        assert value.statistics.min == float(x.min())


def test_a_tensor_in_the_place_of_a_dead_one_is_described_anew() -> None:
    model = nn.Identity()
    with capture(model, tensors="*") as trace:
        for i in range(50):
            model(torch.full((3,), float(i)))
    found = [call.output.statistics.mean for call in trace if isinstance(call.output, TensorValue)]  # type: ignore[union-attr]
    assert found == [float(i) for i in range(50)]


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool],
    ids=str,
)
def test_every_dtype_survives_ram_and_disk(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 5.0]]).to(dtype).t()
    for folder in (None, tmp_path / "a"):
        with capture(nn.Identity(), x, tensors="*", folder=folder) as trace:
            pass
        value = trace.calls[0].output
        assert isinstance(value, TensorValue)
        assert value.dtype == str(dtype).removeprefix("torch.")
        assert torch.equal(trace.tensor(value), x)
        assert trace.tensor(value).dtype == dtype


# --- JSON and folders ------------------------------------------------------------------------------------------------


def test_json_both_ways_and_without_tensors(model: Model) -> None:
    with capture(model, X, tensors="other") as trace:
        pass
    again = Trace.from_json(trace.to_json())
    assert again == trace
    assert again.to_json() == trace.to_json()
    value = again.find("other")[0].output
    assert isinstance(value, TensorValue)
    with pytest.raises(TraceError, match=r"is not in the trace's store; .* Trace\.load\(folder\) has"):
        again.tensor(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON of format 'pyquant-trace-1'"),
        ("[]", "format is 'list', expected 'pyquant-trace-1'"),
        ('{"format": "x"}', "format is 'x', expected"),
        ('{"format": "pyquant-trace-1", "model": "M"}', r"not as to_json writes it: KeyError\('calls'\)"),
        (
            '{"format": "pyquant-trace-1", "model": "M", "calls": [{"name": "", "type": "T", "repeat": 0, '
            '"inputs": {"leaf": "int", "value": 1}, "kwargs": {"leaf": "int", "value": 1}, '
            '"output": {"leaf": "int", "value": 1}}]}',
            "inputs and kwargs are trees",
        ),
    ],
    ids=["no_json", "list", "other_format", "no_calls", "no_tree"],
)
def test_json_of_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        Trace.from_json(text)


def test_a_folder_holds_the_trace_and_its_tensors(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "trace"
    with capture(model, X, tensors=["other", "block.act"], folder=folder) as trace:
        pass
    assert (folder / "trace.json").is_file()
    # Two calls of act, one of other, and none of their inputs is another one's output.
    assert len(list((folder / "tensors").iterdir())) == 6
    again = Trace.load(folder)
    assert again == trace
    for mine, theirs in zip(trace, again, strict=True):
        for (_, value), (_, other) in zip(mine.tensors(), theirs.tensors(), strict=True):
            assert value == other
            if value.key is not None:
                assert torch.equal(trace.tensor(value), again.tensor(other))


def test_saving_from_ram_gives_the_files_that_capturing_to_disk_gives(model: Model, tmp_path: Path) -> None:
    with capture(model, X, tensors="*", folder=tmp_path / "a"):
        pass
    with capture(model, X, tensors="*") as trace:
        pass
    trace.save(tmp_path / "b")

    def files(name: str) -> dict[str, bytes]:
        root = tmp_path / name
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    assert files("a") == files("b")
    assert any(name.endswith("000003.safetensors") for name in files("b"))


def test_a_part_of_a_trace_may_be_saved(model: Model, tmp_path: Path) -> None:
    with capture(model, X, tensors="*") as trace:
        pass
    Trace(trace.model, trace.find("other"), trace.store).save(tmp_path / "part")
    again = Trace.load(tmp_path / "part")
    assert [call.name for call in again] == ["other"]
    value = again.calls[0].output
    assert isinstance(value, TensorValue)
    assert again.tensor(value).shape == (3, 2)


def test_a_trace_is_never_overwritten(model: Model, tmp_path: Path) -> None:
    with capture(model, X, folder=tmp_path) as trace:
        pass
    before = (tmp_path / "trace.json").read_bytes()
    with pytest.raises(TraceError, match="already has a trace"), capture(model, X, folder=tmp_path):
        pass
    with pytest.raises(TraceError, match="already has a trace"):
        trace.save(tmp_path)
    assert (tmp_path / "trace.json").read_bytes() == before


def test_a_block_that_raises_leaves_no_trace_json(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), capture(model, X, folder=tmp_path / "t"):
        raise ZeroDivisionError
    assert not (tmp_path / "t" / "trace.json").exists()


def test_a_folder_without_a_trace_says_so(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"has no trace: there is no trace\.json"):
        Trace.load(tmp_path)


def test_equal_runs_give_equal_json(model: Model) -> None:
    texts = []
    for _ in range(2):
        with capture(model, X, tensors="block") as trace:
            pass
        texts.append(trace.to_json())
    assert texts[0] == texts[1]
