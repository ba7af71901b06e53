# SPDX-License-Identifier: Apache-2.0
"""Weight-only formats on onert: what the file holds, and what onert computes, to its own arithmetic."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant import ExportProfile, PerAxis, Policy, QuantSpec, Rule, ops
from pyquant.errors import ExportError, VerifyError
from pyquant.exporter import CircleProgram, TensorSpec
from pyquant.spec import INT8
from pyquant.verify.runtimes import onert
from pyquant.verify.runtimes.onert_expected import blocks_of_int8, expected, rows_of_int8
from tests.onert_blocks import presets

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")

WEIGHT = {"w8_onert": "int8", "q8_onert": "ggml_q8_0", "w4_onert": "ggml_q4_0"}
TABLE = {"w8_onert": "float32", "q8_onert": "float32", "w4_onert": "ggml_q4_0"}
PRESETS = pytest.mark.parametrize("preset", WEIGHT)
RUNS = pytest.mark.parametrize("preset", presets(*WEIGHT))


class Words(nn.Module):
    """Ids to scores: a table, a gated MLP with a residual, a linear without bias."""

    def __init__(self, width: int = 64, vocabulary: int = 40) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.RMSNorm(width)
        self.gate, self.up, self.down = nn.Linear(width, 96), nn.Linear(width, 96), nn.Linear(96, width)
        self.head = nn.Linear(width, vocabulary, bias=False)


@pyquant.register(Words)
class QuantWords(pyquant.wrap.QModule):
    CHILDREN = ("embed", "norm", "gate", "up", "down", "head")
    SITES = {"gated": pyquant.wrap.Role.ACTIVATION, "sum": pyquant.wrap.Role.ACTIVATION}

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        x = self.norm(h)
        h = self.q("sum", h + self.down(self.q("gated", torch.tanh(self.gate(x)) * self.up(x))))
        return self.head(h)


def quantized(fp: nn.Module, policy: str | Policy, *batches: Any) -> Any:
    q = pyquant.prepare(fp, Policy.preset(policy) if isinstance(policy, str) else policy)
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    return q


def exported(q: Any, *shape: int, dtype: torch.dtype = torch.float32, target: Any = "onert") -> CircleProgram:
    return pyquant.export(q, ExportProfile({"x": TensorSpec(shape, dtype)}, ("y",)), target=target)


def constants(program: CircleProgram, dtype: str) -> list[str]:
    return [t.name for t in program.graph.tensors if t.constant is not None and t.dtype == dtype]


def linear(preset: str, rows: int = 50, bias: bool = True, seed: int = 0) -> tuple[Any, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(rows, 128) * torch.logspace(-2, 2, rows)[:, None]
    x[0], x[1] = (torch.arange(128) % 32 - 15.5), 0.0  # half steps, once the largest value of a row or block is 127
    x[0, ::32] = 127.0
    return quantized(nn.Linear(128, 40, bias=bias), preset, x), x


@RUNS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_one_linear_is_what_onerts_arithmetic_makes_it(preset: str, bias: bool) -> None:
    q, x = linear(preset, bias=bias)
    program = exported(q, *x.shape)
    assert program.check("onert") == []
    assert constants(program, WEIGHT[preset]) == ["weight"]
    got, want = onert.run(program, [x])["y"], expected(program, [x])["y"]
    limit = 1e-5 * want.abs().amax(-1, keepdim=True).clamp(min=0.1)
    assert ((got - want).abs() <= limit).all()
    rounded = float((got - q(x)).detach().abs().max())
    assert rounded > 50 * float((got - want).abs().max())  # its own rounding is there, and is what expected() knows


@RUNS
def test_the_error_is_that_of_the_weights_and_of_the_8_bit_inputs(preset: str) -> None:
    q, x = linear(preset)
    w = q.weight.detach()
    rounded = q.site("weight").constant(w)
    with pyquant.wrap.phase(q, pyquant.wrap.Phase.FLOAT):
        exact = q(x)
    got = onert.run(exported(q, *x.shape), [x])["y"]
    step = rows_of_int8(x)[1] if preset == "w8_onert" else (x - blocks_of_int8(x)).abs().amax(-1, keepdim=True) * 2
    weights = x.abs() @ (rounded - w).abs().T
    inputs = 0.5 * step * rounded.abs().sum(-1)
    assert ((got - exact).abs() <= (weights + inputs) * 1.001 + 1e-5).all()


@RUNS
def test_a_model_runs_end_to_end(preset: str) -> None:
    torch.manual_seed(3)
    ids = torch.randint(0, 40, (2, 7))
    q = quantized(Words(), preset, ids)
    program = exported(q, 2, 7, dtype=torch.int32)
    assert program.check("onert") == []
    assert len(constants(program, WEIGHT[preset])) == 4 + (preset == "w4_onert")
    table = next(t for t in program.graph.tensors if t.name.startswith("embed.weight"))
    assert table.dtype == TABLE[preset]
    seen = onert.run(program, [ids], trace=True)
    assert float((seen["y"] - expected(program, {"x": ids.int()}, seen)["y"]).abs().max()) <= 1e-5
    assert float((seen["y"] - q(ids)).detach().abs().max()) > 1e-3  # onert's own rounding, which no bound here allows
    norm = next(program.graph.tensors[op.outputs[0]].name for op in program.graph.operators if op.op == "RMS_NORM")
    seen[norm] = seen[norm] + 1e-3
    with pytest.raises(VerifyError, match=r"onert's value of '.*' is 0.001 from what its operators give here"):
        expected(program, {"x": ids.int()}, seen)


@PRESETS
def test_sizes_are_what_the_formats_promise(preset: str) -> None:
    q, x = linear(preset)
    bits = {"w8_onert": 8, "q8_onert": 8.5, "w4_onert": 4.5}[preset]
    weight = next(t for t in exported(q, *x.shape).graph.tensors if t.dtype == WEIGHT[preset])
    data = exported(q, *x.shape).graph.constants[weight.constant]
    assert data.nbytes == data.tensor().nbytes == 40 * 128 * bits / 8


@pytest.mark.parametrize("preset", ["q8_onert", "w4_onert"])
def test_the_bytes_in_the_file_are_those_of_the_operator(preset: str) -> None:
    q, x = linear(preset)
    model = pyquant.circle.read(exported(q, *x.shape).to_bytes())
    rounded = next(t for t in model.tensors if t.dtype == WEIGHT[preset])
    assert (rounded.shape, rounded.quantized) == ((40, 128), False)
    assert bytes(rounded.data) == ops.quantize_blocks(q.weight, 4 if preset == "w4_onert" else 8).numpy().tobytes()
    assert WEIGHT[preset] in pyquant.circle.inspect(model)


def test_target_circle_keeps_bias_rank_and_table() -> None:
    q, x = linear("w4_onert")
    assert [op.op for op in exported(q, *x.shape, target="circle").graph.operators] == ["FULLY_CONNECTED"]
    assert [op.op for op in exported(q, *x.shape).graph.operators] == ["FULLY_CONNECTED", "ADD"]


def test_a_moved_weight_is_a_plain_constant_again() -> None:
    class Transposed(nn.Linear):
        pass

    @pyquant.register(Transposed)
    class QuantTransposed(type(quantized(nn.Linear(32, 4), "float", torch.zeros(1, 32)))):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.const("weight", self.weight).t()

    x = torch.randn(3, 32)
    q = quantized(Transposed(32, 4, bias=False), Policy.preset("q8_onert"), x)
    program = exported(q, 3, 32)
    assert constants(program, "ggml_q8_0") == []
    assert float((onert.run(program, [x])["y"] - q(x)).abs().max()) <= 1e-5


def test_per_channel_weights_are_refused_where_onert_is_silently_wrong() -> None:
    _, x = linear("w8_onert")
    rule = Policy((Rule("*", role="weight", spec=QuantSpec(INT8, True, PerAxis(0))),))
    q = quantized(nn.Linear(128, 40), rule, x)
    with pytest.raises(ExportError, match=r"E_ONERT_WRONG: operators\[0\] FULLY_CONNECTED: .*use per tensor"):
        exported(q, *x.shape)
    program = exported(q, *x.shape, target="circle")
    assert float((onert.run(program, [x])["y"] - expected(program, [x])["y"]).abs().max()) > 0.05  # wrong indeed
