# SPDX-License-Identifier: Apache-2.0
"""circle.Runner: names, dtypes and shapes of what goes in and out, traces, profiles, threads, several graphs."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pyquant import circle
from pyquant._launch import program
from pyquant.circle import Runner, Workspace
from pyquant.errors import CircleError, InputError
from pyquant.verify.runtimes import native

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
UINT8 = GOLDEN / "uint8_linear.circle"


def inputs_of(runner: Runner, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {port.name: rng.standard_normal(port.shape).astype(np.float32) for port in runner.inputs}


def test_floats_go_in_and_out_on_their_grids() -> None:
    runner = Runner(UINT8)
    (port,) = runner.inputs
    assert (port.dtype, port.quantized) == ("uint8", True)
    given = inputs_of(runner)
    raw, floats = runner.run(given), runner.run(given, floats=True)
    tensors = circle.read(UINT8).tensors
    for (name, integers), out in zip(raw.items(), circle.read(UINT8).outputs, strict=True):
        tensor = tensors[out]
        assert str(integers.dtype) == tensor.dtype
        expected = (integers.astype(np.int64) - tensor.zero_point[0]).astype(np.float32) * np.float32(tensor.scale[0])
        assert np.array_equal(floats[name], expected)
    x = tensors[circle.read(UINT8).inputs[0]]
    steps = np.asarray(given[port.name] / np.float32(x.scale[0]), np.float32)
    away = np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5))
    stored = np.clip(away + x.zero_point[0], 0, 255).astype(np.uint8)
    again = runner.run({port.name: stored})
    assert all(np.array_equal(again[name], raw[name]) for name in raw), "its own integers give the same"
    as_tensor = runner.run([torch.from_numpy(stored)])
    assert all(np.array_equal(as_tensor[name], raw[name]) for name in raw)


def test_bytes_and_paths_are_one_file() -> None:
    given = inputs_of(Runner(UINT8))
    first, second = Runner(UINT8).run(given), Runner(UINT8.read_bytes()).run(given)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_what_does_not_fit_is_named() -> None:
    runner = Runner(UINT8)
    name, shape = runner.inputs[0].name, runner.inputs[0].shape
    with pytest.raises(InputError, match=rf"inputs are \['{name}'\], got \['other'\]"):
        runner.run({"other": np.zeros(shape, np.uint8)})
    with pytest.raises(InputError, match=rf"input '{name}' is float64, expected uint8 or float32"):
        runner.run({name: np.zeros(shape)})
    with pytest.raises(InputError, match=rf"input '{name}' is \[1, 1, 1\], expected"):
        runner.run({name: np.zeros((1, 1, 1), np.uint8)})
    with pytest.raises(InputError, match="has 1 inputs"):
        runner.run([])
    with pytest.raises(InputError, match="threads is -1"):
        Workspace(-1)
    with pytest.raises(CircleError, match=r"E_OPEN.*missing"):
        Runner(GOLDEN / "missing.circle")
    with pytest.raises(CircleError, match=r"E_RUN_MEMORY.*the limit is 4"):
        Runner(UINT8, memory_limit=4).run(inputs_of(runner))


def test_a_file_with_faults_is_refused_with_the_first() -> None:
    data = bytearray(UINT8.read_bytes())
    at = data.find(np.float32(circle.read(UINT8).tensors[0].scale[0]).tobytes())
    data[at : at + 4] = np.float32(-1).tobytes()
    with pytest.raises(CircleError, match="E_SCALE_NOT_POSITIVE"):
        Runner(bytes(data))


@pytest.mark.parametrize("name", ["uint8_linear", "float_mlp", "int16_uint4_norm", "uint8_linear.external"])
def test_threads_and_traces_do_not_change_the_result(name: str) -> None:
    one = Runner(GOLDEN / f"{name}.circle", threads=1)
    given = inputs_of(one)
    expected = one.run(given)
    for threads in (2, 5):
        found = Runner(GOLDEN / f"{name}.circle", threads=threads).run(given)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
    seen: dict[int, bytes] = {}
    traced = one.trace(given, lambda operator, tensor, shape, data: seen.update({tensor: data}))
    assert all(np.array_equal(traced[key], expected[key]) for key in expected)
    model = circle.read(GOLDEN / f"{name}.circle")
    for index, value in zip(model.outputs, expected.values(), strict=True):
        assert seen[index] == value.tobytes()


def test_an_observer_that_raises_is_heard() -> None:
    runner = Runner(UINT8)

    def stop(*_: object) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        runner.trace(inputs_of(runner), stop)
    runner.run(inputs_of(runner))


def test_a_profile_has_each_operator() -> None:
    runner = Runner(GOLDEN / "float_mlp.circle", threads=1)
    runner.start_profile()
    for _ in range(3):
        runner.run(inputs_of(runner))
    rows = runner.profile()
    assert {row.calls for row in rows} == {3}
    products = [row for row in rows if row.name == "FULLY_CONNECTED"]
    assert products
    assert all(row.multiply_adds > 0 and row.bytes > 0 and row.nanoseconds > 0 for row in products)


def test_one_runner_in_several_threads() -> None:
    runner = Runner(UINT8, workspace=Workspace(2))
    batches = [inputs_of(runner, seed) for seed in range(4)]
    expected = [runner.run(batch) for batch in batches]
    found: list[dict[str, np.ndarray]] = [{}] * 4

    def work(i: int) -> None:
        for _ in range(50):
            found[i] = runner.run(batches[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out, wanted in zip(found, expected, strict=True):
        assert all(np.array_equal(out[name], wanted[name]) for name in wanted)


def of_plan(folder: Path, tensors: list[dict[str, object]], operator: dict[str, object], *data: torch.Tensor) -> Path:
    """A file of one operator, whose first tensor goes in and whose last comes out."""
    plan = {
        "format": "pyquant-plan",
        "version": 1,
        "description": "",
        "graphs": [
            {
                "name": "main",
                "tensors": tensors,
                "operators": [operator],
                "inputs": [0],
                "outputs": [len(tensors) - 1],
            }
        ],
    }
    circle.write(json.dumps(plan), list(data), folder / "one.circle")
    return folder / "one.circle"


def negated(folder: Path) -> Path:
    open_shape = {"dtype": "int32", "shape": [1, 1], "shape_signature": [-1, -1]}
    tensors = [{"name": name, **open_shape} for name in "xy"]
    return of_plan(folder, tensors, {"op": "NEG", "inputs": [0], "outputs": [1], "options": {}})


def in_threads(*work: Callable[[], None]) -> None:
    """Runs all at once; a deadlock fails instead of hanging."""
    threads = [threading.Thread(target=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits forever"


def test_threads_with_other_shapes_share_a_runner(tmp_path: Path) -> None:
    runner = Runner(negated(tmp_path), threads=1)
    wrong: list[object] = []

    def work(shape: tuple[int, int]) -> None:
        x = np.arange(6, dtype=np.int32).reshape(shape)
        for _ in range(300):
            y = runner.run([x])["y"]
            if y.shape != shape or not np.array_equal(y, -x):
                wrong.append(y)

    in_threads(*(lambda shape=shape: work(shape) for shape in ((2, 3), (3, 2), (1, 6), (6, 1))))
    assert wrong == []


def test_threads_that_trace_wait_without_the_gil(tmp_path: Path) -> None:
    runner = Runner(negated(tmp_path), threads=2)
    x = np.ones((2, 3), np.int32)

    def seen(*_: object) -> None:
        time.sleep(0.001)  # lets the other thread have the GIL

    in_threads(*[lambda: [runner.trace([x], seen) for _ in range(20)] and None] * 3)


def test_an_observer_cannot_run_the_same_workspace(tmp_path: Path) -> None:
    runner = Runner(negated(tmp_path), threads=1)
    x = np.ones((2, 3), np.int32)
    with pytest.raises(CircleError, match=r"E_RUN_INPUT.*called by an observer"):
        runner.trace([x], lambda *_: runner.run([x]))
    assert np.array_equal(runner.run([x])["y"], -x)


def test_arrays_that_lie_anywhere_are_taken(tmp_path: Path) -> None:
    runner = Runner(negated(tmp_path))
    x = np.frombuffer(bytes(1) + np.arange(6, dtype=np.int32).tobytes(), np.int32, offset=1).reshape(2, 3)
    assert not x.flags.aligned
    assert np.array_equal(runner.run([x])["y"], -x)
    assert np.array_equal(runner.run([x.T])["y"], -x.T)


def test_the_program_reads_no_more_than_an_input_has(tmp_path: Path) -> None:
    grid = {"scale": [0.5, 0.25], "zero_point": [0, 0], "axis": 1}
    tensors = [{"name": name, "dtype": "int8", "shape": [3, 2], "quant": grid} for name in "xy"]
    shape = {"name": "s", "dtype": "int32", "shape": [2], "constant": 0}
    reshape = {"op": "RESHAPE", "inputs": [0, 1], "outputs": [2], "options": {"new_shape": [3, 2]}}
    path = of_plan(tmp_path, [tensors[0], shape, tensors[1]], reshape, torch.tensor([3, 2], dtype=torch.int32))

    def run(x: np.ndarray) -> str:
        save_file({"x": x}, tmp_path / "in.safetensors")
        command = [program(), "run", path, "--inputs", tmp_path / "in.safetensors"]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True).stderr

    assert run(np.ones((3, 2), np.float32)) == ""
    assert "E_RUN_INPUT" in run(np.ones((6,), np.float32))
    assert "E_RUN_INPUT" in run(np.ones((3, 200), np.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_floats_come_back_as_numbers(dtype: str, tmp_path: Path) -> None:
    tensors: list[dict[str, object]] = [{"name": name, "dtype": dtype, "shape": [3]} for name in "xy"]
    path = of_plan(tmp_path, tensors, {"op": "NEG", "inputs": [0], "outputs": [1], "options": {}})
    x = torch.tensor([1.5, -2.0, 3.0])
    given = x if dtype == "bfloat16" else x.half()
    for trace in (False, True):
        assert torch.equal(native.run(path, [given], trace=trace)["y"], -x)


def two_graphs(folder: Path) -> Path:
    """One file: `wide` (2, 3) and `narrow` (1, 3) of one weight."""

    def graph(key: str, rows: int) -> dict[str, object]:
        return {
            "name": key,
            "tensors": [
                {"name": "x", "dtype": "float32", "shape": [rows, 3]},
                {"name": "w", "dtype": "float32", "shape": [2, 3], "constant": 0},
                {"name": "y", "dtype": "float32", "shape": [rows, 2]},
            ],
            "operators": [
                {"op": "FULLY_CONNECTED", "inputs": [0, 1, -1], "outputs": [2], "options": {"keep_num_dims": True}}
            ],
            "inputs": [0],
            "outputs": [2],
            "signature": {"key": key, "inputs": {"given": 0}, "outputs": {"made": 2}},
        }

    plan = {"format": "pyquant-plan", "version": 1, "description": "", "graphs": [graph("wide", 2), graph("narrow", 1)]}
    circle.write(json.dumps(plan), [torch.arange(6, dtype=torch.float32).reshape(2, 3)], folder / "two.circle")
    return folder / "two.circle"


def test_a_file_of_two_graphs_shares_its_constants(tmp_path: Path) -> None:
    path = two_graphs(tmp_path)
    model = circle.read(path)
    assert [graph.name for graph in model.graphs] == ["wide", "narrow"]
    assert model.graphs[0].tensors[1].buffer == model.graphs[1].tensors[1].buffer
    assert circle.check(path) == []
    x = np.asarray([[1, 2, 3], [4, 5, 6]], np.float32)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"given": x[:1].copy()}, tmp_path / "in.safetensors")
    command = [program(), "run", path, "--inputs", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors"]
    subprocess.run([*map(str, command), "--signature", "narrow"], check=True)
    assert np.array_equal(load_file(tmp_path / "out.safetensors")["made"], x[:1] @ weight.T)
    assert np.array_equal(Runner(path).run({"given": x})["made"], x @ weight.T), "the first without a signature"
    assert np.array_equal(Runner(path, signature="narrow").run({"given": x[:1]})["made"], x[:1] @ weight.T)
    with pytest.raises(CircleError, match="no signature 'other'; it has wide, narrow"):
        Runner(path, signature="other")
    shown = circle.inspect(path)
    assert "graph 'narrow'" in shown
    assert "operators of 'wide'" in shown
    plan, weights, again = (tmp_path / name for name in ("p.json", "w.safetensors", "again.circle"))
    for verb in (["plan", path, "-o", plan], ["write", plan, "-o", again]):
        subprocess.run([*map(str, [program(), *verb]), "--weights", str(weights)], check=True, capture_output=True)
    assert (tmp_path / "again.circle").read_bytes() == path.read_bytes()
    assert circle.diff(path, tmp_path / "again.circle") == []
    assert any("onert runs the first only" in fault.message for fault in circle.check(path, "onert"))
