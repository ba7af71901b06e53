# SPDX-License-Identifier: Apache-2.0
"""Constants are made when their bytes are written, one at a time; the file is that of constants made before."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant import circle, ops
from pyquant.errors import CircleError, ExportError
from pyquant.exporter import CircleProgram, TensorSpec, export
from pyquant.exporter.absent import Absent
from pyquant.exporter.constant import Constant
from pyquant.exporter.passes.share import share_constants
from pyquant.exporter.pipeline import build
from pyquant.exporter.plan import Graph as Plan
from pyquant.exporter.plan import Tensor as PlanTensor
from tests.unit.exporter.exporter_cases import Graph, Grid, channels, weight

WIDTH, LAYERS = 384, 5  # int8: 147,456 bytes a layer, above what is kept


def stack(kind: str, values: list[Tensor], dtype: torch.dtype = torch.float32) -> Graph:
    """Linear layers one after the other, each on a grid of its own."""
    grids = {f"q{i}": channels(value.float(), kind) for i, value in enumerate(values)}
    parts = {f"w{i}": value.to(dtype) for i, value in enumerate(values)}

    def fn(m: Graph, x: Tensor) -> Tensor:
        x = m.a(x)
        for i in range(len(values)):
            x = m.a(F.linear(x, getattr(m, f"q{i}")(getattr(m, f"w{i}")).to(x.dtype)))
        return x

    return Graph(fn, (2, WIDTH), a=Grid("int16", -9, 9), **grids, **parts)


def random_weights(count: int = LAYERS) -> list[Tensor]:
    return [weight(WIDTH, WIDTH, seed) for seed in range(count)]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[int, int]]:
    """(constants made, most bytes of them alive at once) of large constants."""
    now, most, made = 0, 0, 0
    original = Constant.tensor

    def gone(size: int) -> None:
        nonlocal now
        now -= size

    def tensor(self: Constant) -> Tensor:
        nonlocal now, most, made
        out = original(self)
        if out.nbytes > 1 << 16:
            now, made = now + out.nbytes, made + 1
            most = max(most, now)
            weakref.finalize(out, gone, out.nbytes)
        return out

    monkeypatch.setattr(Constant, "tensor", tensor)
    return lambda: (made, most)


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8", "int16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_one_constant_at_a_time_is_in_memory(kind: str, dtype: torch.dtype, tmp_path: Path, live: Any) -> None:
    values = random_weights()
    program = build(stack(kind, values, dtype))  # export() without the warning about bfloat16
    assert program.check() == []
    assert live() == (0, 0), "a large constant was made before the file was written"
    program.save(tmp_path / "x.circle")
    size = WIDTH * WIDTH * (2 if kind == "int16" else 1) // (2 if kind.endswith("t4") else 1)
    assert live() == (LAYERS, size)
    assert program.size >= LAYERS * size
    grid = [channels(value, kind) for value in values]
    tensors = {t.name: t for t in circle.read(tmp_path / "x.circle").tensors}
    for i, (value, q) in enumerate(zip(values, grid, strict=True)):
        ints = ops.quantize(value.to(dtype), q.scale, q.zero_point, 0, 0, q.qmin, q.qmax, torch.int16)
        file = tensors[f"w{i}"].data
        assert file is not None
        if kind.endswith("t4"):
            flat = (ints.reshape(-1, 2) & 15).to(torch.uint8)
            expected = (flat[:, 0] | flat[:, 1] << 4).numpy().tobytes()
        else:
            stored = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16}[kind]
            expected = ints.to(stored).numpy().tobytes()
        assert bytes(file) == expected


def buffers(program: CircleProgram) -> dict[str, int | None]:
    return {t.name: t.constant for t in program.graph.tensors if t.name.startswith("w")}


@pytest.mark.parametrize("kind", ["int4", "int8", "int16"])
def test_equal_weights_are_stored_once(kind: str, live: Any) -> None:
    same, other = weight(WIDTH, WIDTH, 1), weight(WIDTH, WIDTH, 2)
    last = same.clone()
    last[-1, -1] += 1.0  # equal at the beginning
    tied = export(stack(kind, [same, other, same]))  # one tensor
    assert len(buffers(tied)) == 2
    assert live()[0] == 0, "a tensor and itself were compared by their bytes"
    equal = export(stack(kind, [same, other, same.clone(), last]))
    assert set(buffers(equal)) == {"w0", "w1", "w3"}
    assert live()[0] == 3, "only constants that begin alike are made to be compared"
    doubled = export(stack(kind, [same, other, same * 2]))  # the same integers, on another grid
    constants = buffers(doubled)
    assert constants["w0"] == constants["w2"] != constants["w1"]


def test_sharing_is_that_of_all_bytes() -> None:
    """Random constants that are equal, begin alike, or have nothing in common: as a comparison of all of them says."""
    gen = torch.Generator().manual_seed(0)
    base = [torch.randint(-9, 9, (70_000,), generator=gen, dtype=torch.int8) for _ in range(2)]
    late = base[0].clone()
    late[-1] = 100
    pool = [*base, late, base[0].reshape(700, 100), base[0].view(torch.uint8), base[0][:50], torch.zeros(0)]
    picks = torch.randint(len(pool), (40,), generator=gen).tolist()
    keyed = [i % 3 == 0 for i in range(len(picks))]
    leads = [i % 2 == 0 for i in range(len(picks))]

    def constant(data: Tensor, key: str | None, known: bool) -> Constant:
        lead = (lambda: data.reshape(-1)[:5000]) if known else None
        return Constant(data.dtype, tuple(data.shape), data.clone, key, lead)

    constants = tuple(
        constant(pool[p], f"key {p}" if k else None, lead) for p, k, lead in zip(picks, keyed, leads, strict=True)
    )
    tensors = tuple(PlanTensor(f"t{i}", "int8", tuple(c.shape), constant=i) for i, c in enumerate(constants))
    every = tuple(range(len(tensors)))
    done = share_constants(Plan("g", tensors, (), (), every, constants))
    bytes_of = [c.tensor().reshape(-1).view(torch.uint8).numpy().tobytes() for c in constants]
    seen = [done.constants[t.constant].tensor().reshape(-1).view(torch.uint8).numpy().tobytes() for t in done.tensors]
    assert seen == bytes_of
    assert len(done.constants) == len(set(bytes_of))


@pytest.mark.slow
def test_the_memory_of_an_export_is_that_of_one_constant() -> None:
    """24 bfloat16 weights of 16 MiB, 8 MiB each in the file: the peak of a process of its own, in MiB."""
    code = """
import resource, tempfile
from pathlib import Path
from pyquant.exporter.pipeline import build
from tests.unit.exporter.test_exporter_constants import big

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

build(big(1, 64)).to_bytes()
model = big(24, 2048)
before = peak()
with tempfile.TemporaryDirectory() as folder:
    size = build(model).save(Path(folder) / "x.circle")
print(size / 2**20, peak() - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, more = map(float, out.stdout.split())
    assert size > 24 * 8
    assert more < size / 3, f"{more:.0f} MiB more than the model"  # 39 seen, of which one constant is 8


def big(layers: int, width: int) -> Graph:
    """Layers of (2 * width, width) in bfloat16, of whose results one half goes on."""
    gen = torch.Generator().manual_seed(0)
    values = [torch.empty(2 * width, width, dtype=torch.bfloat16).normal_(generator=gen) for _ in range(layers)]

    def fn(m: Graph, x: Tensor) -> Tensor:
        x = m.a(x)
        for i in range(layers):
            x = m.a(F.linear(x, getattr(m, f"q{i}")(getattr(m, f"w{i}")))[:, :width])
        return x

    ends = torch.full((2 * width,), 5.0)
    grids = {f"q{i}": Grid("sym8", -ends, ends, 0) for i in range(layers)}
    parts = {f"w{i}": value for i, value in enumerate(values)}
    return Graph(fn, TensorSpec((2, width), torch.bfloat16), a=Grid("int16", -9, 9), **grids, **parts)


def test_a_model_that_was_edited_is_not_written(tmp_path: Path) -> None:
    graph = stack("int8", random_weights(2))
    program = export(graph)
    whole = program.to_bytes()
    program.save(tmp_path / "x.circle")
    mapped = program.mapped(tmp_path / "x.circle")
    graph.w1.mul_(2)
    with pytest.raises(ExportError, match="'w1' was edited in place after the graph was exported"):
        program.save(tmp_path / "y.circle")
    assert [path.name for path in tmp_path.iterdir()] == ["x.circle"]
    assert mapped.to_bytes() == whole


def test_absent_parameters_are_read_when_they_are_written(tmp_path: Path) -> None:
    values = random_weights(3)
    whole = export(stack("int4", values)).to_bytes()
    asked: list[tuple[int, slice]] = []

    def reader(number: int) -> Callable[[slice], Tensor]:
        def read(rows: slice) -> Tensor:
            asked.append((number, rows))
            return values[number][rows]

        return read

    def graph(absent: Absent, read: Callable[[int], Callable[[slice], Tensor]]) -> Graph:
        made = stack("int4", values)
        for i, value in enumerate(values):
            setattr(made, f"w{i}", absent.parameter(value.dtype, tuple(value.shape), read(i)).data)
        return made

    absent = Absent()
    program = export(graph(absent, reader), absent=absent)
    assert all(rows.stop is not None and rows.stop * WIDTH < 1 << 14 for _, rows in asked)
    asked.clear()
    assert program.to_bytes() == whole
    assert asked == [(0, slice(None)), (1, slice(None)), (2, slice(None))]
    absent = Absent()
    short = export(graph(absent, lambda i: lambda rows: values[i][: rows.stop or -1]), absent=absent)
    with pytest.raises(ExportError, match=r"reading 'w0' gave torch.float32 \(383, 384\), expected .* \(384, 384\)"):
        short.save(tmp_path / "x.circle")
    assert list(tmp_path.iterdir()) == []
    absent = Absent()
    with pytest.raises(ExportError, match=r"reading 'w0' gave torch.float16 \(22, 384\), expected torch.float32"):
        export(graph(absent, lambda i: lambda rows: values[i][rows].half()), absent=absent)


def test_a_parameter_on_the_meta_device_has_no_values() -> None:
    with pytest.raises(ExportError, match=r"'w0' has no values \(it is on the meta device\); load it"):
        export(stack("int8", random_weights(1)).to("meta"))


def two_constants() -> Plan:
    return export(stack("int8", random_weights(2))).graph


@pytest.mark.parametrize("size", [1, 1000, WIDTH * WIDTH - 1, WIDTH * WIDTH + 1, 3 * WIDTH * WIDTH])
def test_a_constant_of_another_size_is_refused(size: int, tmp_path: Path) -> None:
    graph = two_constants()
    large = next(i for i, c in enumerate(graph.constants) if c.nbytes > 1 << 16)
    path = tmp_path / "x.circle"
    path.write_bytes(b"old")

    class Wrong:
        nbytes, dtype = WIDTH * WIDTH, torch.int8

        def tensor(self) -> Tensor:
            return torch.zeros(size, dtype=torch.int8)

    given: list[Any] = list(graph.constants)
    given[large] = Wrong()
    with pytest.raises(CircleError, match=r"E_BUFFER_SIZE: buffers\[\d+\]: was given"):
        circle.write(graph.to_json(), given, path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.circle"]
    assert path.read_bytes() == b"old"


def test_an_error_while_a_constant_is_made_leaves_no_file(tmp_path: Path) -> None:
    graph = two_constants()

    def fail() -> Tensor:
        raise MemoryError("no room for 'w1'")

    last = max(i for i, c in enumerate(graph.constants) if c.nbytes > 1 << 16)
    given = list(graph.constants)
    given[last] = Constant(given[last].dtype, given[last].shape, fail)
    with pytest.raises(MemoryError, match="no room for 'w1'"):
        circle.write(graph.to_json(), given, tmp_path / "x.circle")
    assert list(tmp_path.iterdir()) == []


def test_a_handle_checks_what_is_made() -> None:
    wrong = Constant(torch.int8, (2, 3), lambda: torch.zeros(3, 2, dtype=torch.int8))
    with pytest.raises(AssertionError, match=r"made as torch.int8 \(3, 2\), expected torch.int8 \(2, 3\)"):
        wrong.tensor()
    moved = Constant.of(torch.arange(6.0).reshape(2, 3)).map(lambda t: t.t(), torch.float32, (3, 2))
    assert moved.nbytes == 24
    assert moved.tensor().is_contiguous()
    assert moved.tensor().tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
