# SPDX-License-Identifier: Apache-2.0
"""What onert computes where eager does not simulate it: linears whose float inputs onert rounds to 8 bits at run time.

It owns that arithmetic, as measured on onert 0.1.0 (x86-64). Running onert itself is onert.py; with float weights its
graphs equal eager and none of this applies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pyquant import ops
from pyquant.errors import VerifyError
from pyquant.exporter.grid import DEQUANTIZE_BLOCKS, FAKE_QUANTIZE, FAKE_QUANTIZE_BLOCKS
from pyquant.exporter.program import CircleProgram
from pyquant.verify.runtimes._inputs import ordered

_BLOCKS = (FAKE_QUANTIZE_BLOCKS, DEQUANTIZE_BLOCKS)
_MOST = 127.0
_CLOSE = 1e-5


def expected(
    program: CircleProgram,
    inputs: Mapping[str, Any] | Sequence[Any],
    seen: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Outputs by name of a program with float activations, with onert's own rounding in every quantized linear.

    A linear with an int8 weight gets each row on 127 symmetric steps; one with a weight in blocks gets blocks of Q8_0.
    One linear agrees with onert to a few units in the last place of float32. In a chain of them a value next to a half
    step may round the other way in onert, and all that follows differs by that step: with `seen`, what onert itself
    computed (`onert.run(program, inputs, trace=True)`), each linear starts from onert's own input. Raises VerifyError
    when such an input is further than 1e-5 of its largest value from what was computed here.
    """
    names = [tensor.name for tensor in program.inputs]
    values = {t.origin: seen[t.name] for t in program.graph.tensors if seen and t.origin and t.name in seen}
    with torch.no_grad():
        outputs = _Onert(program.exported.module(), values).run(
            *(torch.as_tensor(value, device="cpu") for value in ordered(names, inputs))
        )
    parts = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    return dict(zip((tensor.name for tensor in program.outputs), parts, strict=True))


def rows_of_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and scale (..., 1) of the rows of x, as onert quantizes them for an int8 weight: halves away from 0."""
    most = x.abs().amax(-1, keepdim=True)
    steps = torch.full_like(most, _MOST)  # a tensor: dividing a number by one multiplies by its reciprocal
    scaled = x * torch.where(most > 0, steps / most, 0.0)
    whole = scaled.trunc()
    return whole + scaled.sign() * ((scaled - whole).abs() >= 0.5), most / steps


def blocks_of_int8(x: Tensor) -> Tensor:
    """x as onert quantizes it for a weight in blocks: Q8_0, but halves to even, as ggml's x86 code has it."""
    blocks = x.reshape(*x.shape[:-1], -1, ops.BLOCK_LENGTH)
    most = blocks.abs().amax(-1, keepdim=True)
    steps = torch.full_like(most, _MOST)
    integers = (blocks * torch.where(most > 0, steps / most, 0.0)).round()
    return (integers * (most / steps).half().float()).reshape(x.shape)


class _Onert(fx.Interpreter):
    """Runs a traced program; linears with a quantized weight use the functions above."""

    def __init__(self, module: fx.GraphModule, seen: Mapping[str, Tensor]) -> None:
        super().__init__(module, garbage_collect_values=False)  # the scale of a weight is needed after its use
        self.seen = seen

    def run_node(self, n: fx.Node) -> Any:
        weight = n.args[1] if n.op == "call_function" and str(n.target) == "aten.linear.default" else None
        if not isinstance(weight, fx.Node) or str(weight.target) not in (FAKE_QUANTIZE, *_BLOCKS):
            return super().run_node(n)
        x, matrix, bias = (*self.fetch_args_kwargs_from_env(n)[0], None)[:3]
        x = self._as_seen(n.args[0], x)
        if str(weight.target) in _BLOCKS:
            return _with_bias(F.linear(blocks_of_int8(x), matrix), bias)
        scale = self.fetch_args_kwargs_from_env(weight)[0][1].reshape(-1)
        integers, steps = rows_of_int8(x)
        dot = F.linear(integers.double(), (matrix.double() / scale.double()[:, None]).round())  # exact, as in int32
        return _with_bias(dot.float() * (steps * scale), bias)

    def _as_seen(self, source: Any, x: Tensor) -> Tensor:
        value = self.seen.get(getattr(source, "name", ""))
        if value is None:
            return x
        apart, most = float((value - x).abs().max()), float(x.abs().max())
        if not apart <= _CLOSE * most:
            raise VerifyError(
                f"onert's value of '{source.name}' is {apart:.3g} from what its operators give here, and the largest "
                f"there is {most:.3g}; compare the operators before it"
            )
        return value


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias
