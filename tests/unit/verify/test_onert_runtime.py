# SPDX-License-Identifier: Apache-2.0
"""The real runtime: names, dtypes and forms of what goes in and out, and one clear error for each way it fails."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyquant
from pyquant import circle
from pyquant.circle import write as circle_write
from pyquant.errors import InputError, VerifyError
from pyquant.exporter import TensorSpec, export
from pyquant.exporter.plan import Graph, Op, Quant
from pyquant.exporter.plan import Tensor as PlanTensor
from pyquant.exporter.precision import LowPrecisionWarning
from pyquant.exporter.program import CircleProgram
from pyquant.verify.runtimes import onert, onert_cpu

sys.path.insert(0, str(Path(__file__).parent.parent / "exporter"))
from exporter_cases import Graph as Case
from exporter_cases import inputs_of

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")


def program(fn, *specs, target: str = "circle", **parts) -> tuple[CircleProgram, Case, list[Tensor]]:
    case = Case(fn, *specs, **parts)
    return export(case, target=target), case, inputs_of(case)


def test_the_package_is_here() -> None:
    assert onert.available(), "the tests' requirements name onert; run: pip install -e '.[test]'"


def test_a_file_computes_what_eager_does(tmp_path: Path) -> None:
    made, case, (x, y) = program(lambda m, x, y: (x @ y, x + 1.0), (2, 3, 8), (2, 8, 4), outputs=("product", "more"))
    made.save(tmp_path / "m.circle")
    for source in (made, made.to_bytes(), tmp_path / "m.circle", str(tmp_path / "m.circle")):
        got = onert.run(source, [x, y])
        assert list(got) == ["product", "more"]
        torch.testing.assert_close(tuple(got.values()), case(x, y), rtol=1e-6, atol=1e-6)


def test_inputs_go_by_name_or_by_order_and_take_the_files_type() -> None:
    table = torch.randn(7, 4)
    made, case, _ = program(
        lambda m, ids, x: F.embedding(ids, m.table) + x, TensorSpec((2, 3), torch.int32), (2, 3, 4), table=table
    )
    ids, x = torch.tensor([[0, 6, 1], [2, 2, 5]]), torch.randn(2, 3, 4)
    expected = case(ids.int(), x)
    for given in ([ids, x], {"x1": x, "x": ids}, [ids.numpy(), x.double().numpy()], (ids.tolist(), x.tolist())):
        torch.testing.assert_close(onert.run(made, given)["y"], expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"inputs are \['x', 'x1'\], got \['x'\]"):
        onert.run(made, {"x": ids})
    with pytest.raises(InputError, match=r"2 inputs \['x', 'x1'\], got 1 values"):
        onert.run(made, [ids])
    with pytest.raises(InputError, match=r"input 'x1' is float32\[2, 3, 4\], got shape \[2, 4\]"):
        onert.run(made, [ids, x[:, 0]])


def test_bool_and_int64_cross_the_border() -> None:
    made, case, _ = program(
        lambda m, x, mask: (torch.where(mask, x, -1.0), x.argmax(-1), x > 0),
        (2, 8),
        TensorSpec((2, 8), torch.bool),
        outputs=("chosen", "largest", "positive"),
    )
    x, mask = torch.randn(2, 8), torch.rand(2, 8) > 0.5
    got, expected = onert.run(made, [x, mask]), case(x, mask)
    for value, want in zip(got.values(), expected, strict=True):
        assert value.dtype == want.dtype
        assert torch.equal(value, want)


def quantized_add(dtype: str) -> bytes:
    """x + y on unequal grids, quantized graph inputs and output."""
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    middle = low + 128
    quants = [Quant(dtype, (scale,), (middle,), None, low, high) for scale in (0.02, 0.03, 0.05)]
    tensors = [PlanTensor(name, dtype, (2, 5), quant) for name, quant in zip(("x", "y", "total"), quants, strict=True)]
    op = Op("ADD", (0, 1), (2,), {"fused_activation_function": "NONE", "pot_scale_int16": False})
    graph = Graph("quantized", tuple(tensors), (op,), (0, 1), (2,))
    folder = Path(tempfile.mkdtemp())
    circle_write(graph.to_json(), [], folder / "q.circle")
    return (folder / "q.circle").read_bytes()


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantized_ends_take_and_give_real_values_on_their_grids(dtype: str) -> None:
    x, y = torch.randn(2, 5), torch.randn(2, 5)
    got = onert.run(quantized_add(dtype), [x, y])["total"]
    on_grid = (x / 0.02).round().clamp(-128, 127) * 0.02 + (y / 0.03).round().clamp(-128, 127) * 0.03
    assert got.dtype == torch.float32
    assert float((got - on_grid.clamp(-128 * 0.05, 127 * 0.05)).abs().max()) <= 0.5 * 0.05 + 1e-5


def test_one_child_serves_many_runs_and_ends_with_its_runtime() -> None:
    made, case, (x,) = program(lambda m, x: torch.softmax(x, -1), (4, 8))
    with onert.Runtime(made) as runtime:
        assert (runtime.input_names, runtime.output_names) == (["x"], ["y"])
        for seed in range(3):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(runtime.run([x])["y"], case(x), rtol=1e-6, atol=1e-6)
            child = runtime._child
        assert child is runtime._child
        assert child.poll() is None
    assert child.poll() is not None
    lost = onert.Runtime(made)
    lost.run([x])
    child = lost._child
    del lost
    assert child.poll() is not None


def test_trace_gives_every_computed_tensor() -> None:
    made, _, (x,) = program(lambda m, x: m.fc(torch.tanh(x)).relu(), (4, 8), fc=nn.Linear(8, 5))
    traced = onert.run(made, [x], trace=True)
    names = {made.graph.tensors[i].name for op in made.graph.operators for i in op.outputs}
    assert set(traced) == names
    torch.testing.assert_close(traced["tanh"], torch.tanh(x), rtol=1e-6, atol=1e-6)
    assert list(onert.Runtime(made, trace=True).run([x])) == ["y"]
    with pytest.raises(InputError, match="trace takes a CircleProgram, got bytes"):
        onert.run(made.to_bytes(), [x], trace=True)
    with pytest.raises(InputError, match="a file shows its outputs"):
        onert.Runtime(made).run([x], trace=True)


def test_a_refused_file_is_one_error_with_onerts_words() -> None:
    made, _, inputs = program(lambda m, x: m.w @ x, (2, 3, 8), w=torch.randn(4, 3))
    with pytest.raises(
        VerifyError, match=r"(?s)onert refuses it: load_model_from_file.*x: float32\[2, 3, 8\]"
    ) as error:
        onert.run(made, inputs)
    assert "OperationValidator failed" in str(error.value)
    assert "check(file, target='onert')" in str(error.value)


def test_a_crash_ends_the_child_and_not_the_caller(tmp_path: Path) -> None:
    made, case, inputs = program(lambda m, x: m.fc(x), (4, 8), fc=nn.Linear(8, 5))
    made.save(tmp_path / "m.circle")
    circle.write(made.graph.to_json(), made.graph.constants, tmp_path / "m.circle")
    data = bytearray((tmp_path / "m.circle").read_bytes())
    model = circle.read(bytes(data))
    weight = next(t for t in model.tensors if t.shape == (5, 8))
    at = data.find(bytes(weight.data))
    assert at > 0
    data[at - 4 : at] = np.int32(2**30).tobytes()  # the length of the weight's vector: onert reads past the file
    runtime = onert.Runtime(made)
    runtime._path.write_bytes(data)
    with pytest.raises(VerifyError, match=r"onert crashed on it \(signal SIG\w+\)|onert refuses it"):
        runtime.run(inputs)
    runtime._path.write_bytes(made.to_bytes())
    torch.testing.assert_close(runtime.run(inputs)["y"], case(*inputs), rtol=1e-6, atol=1e-6)  # a new child


@pytest.mark.skipif(onert_cpu.why_no_blocks() is None, reason="this CPU runs onert's block formats")
def test_block_weights_on_a_cpu_without_their_instructions_say_so() -> None:
    q = pyquant.prepare(nn.Linear(32, 8), pyquant.Policy.preset("w4_onert"))
    pyquant.calibrate(q, [x := torch.randn(2, 32)], progress=False)
    pyquant.convert(q)
    made = export(q, pyquant.ExportProfile({"x": TensorSpec((2, 32))}, ("y",)), target="onert")
    with pytest.raises(VerifyError, match=r"SIGILL\): it has ggml_q4_0 weights.*this CPU lacks avx512f.*'w8_onert'"):
        onert.run(made, [x])


def test_what_a_cpu_lacks_is_read_from_its_flags() -> None:
    flags = "processor : 0\nflags : fpu avx2 avx512f avx512bw avx512dq avx512vl avx512_vnni\nbugs :\n"
    assert onert_cpu.lacking(flags) == ("avx_vnni",)
    assert onert_cpu.lacking(flags.replace("avx512_vnni", "avx_vnni")) == ()
    assert onert_cpu.lacking("Features : asimd\n") == ()
    assert onert_cpu.why_no_blocks(()) is None
    assert onert.illegal_instruction([], ()).endswith(
        "this CPU does not have; run the file on a newer CPU, or with the runtime tico"
    )
    message = onert.illegal_instruction(["ggml_q8_0"], ("avx_vnni",))
    assert "it has ggml_q8_0 weights. onert 0.1.0 runs block formats (Q4_0, Q8_0) with AVX-512" in message
    assert "this CPU lacks avx_vnni. float32, uint8 and int8 tensors still run here" in message


def test_a_result_of_another_shape_is_no_result() -> None:
    made, _, inputs = program(lambda m, x: m.fc(x), (2, 3, 8), fc=nn.Linear(8, 5))
    with pytest.raises(VerifyError, match=r"onert gives 'y' the shape \[6, 5\], but the file declares \[2, 3, 5\]"):
        onert.run(made, inputs)


def test_an_end_that_the_api_cannot_pass() -> None:
    with pytest.warns(LowPrecisionWarning):
        made, _, inputs = program(lambda m, x: x.half() * 2, (2, 3))
    with pytest.raises(VerifyError, match="'y' is float16, which onert's API cannot pass"):
        onert.run(made, inputs)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, inputs = program(lambda m, x: x + 1.0, (2, 3))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onert" else find(name))
    assert not onert.available()
    with pytest.raises(ImportError, match=r"onert is not installed.*pip install onert==0\.1\.0"):
        onert.run(made, inputs)
