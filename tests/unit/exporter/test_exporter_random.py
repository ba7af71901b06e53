# SPDX-License-Identifier: Apache-2.0
"""Random graphs of moves, joins and arithmetic with sites at random places: exported, coverage or fidelity must hold.

Where the sites leave a value float, the same graph is exported as a mixed one, and must still be the eager model.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exporter_cases import Graph, Grid, channels, inputs_of, weight
from torch import Tensor

from pyquant.errors import ExportError
from pyquant.exporter import export
from pyquant.verify import compare
from pyquant.verify.tolerance import op_faults

KINDS = ("uint8", "int8", "int16")
MOVES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.transpose(-1, -2),
    lambda x: x.reshape(2, -1),
    lambda x: x.flatten().view(2, 4, -1),
    lambda x: x[..., : x.shape[-1] // 2].repeat_interleave(2, -1),
    lambda x: torch.cat(x.chunk(2, 0)[::-1], 0),
    lambda x: x.unsqueeze(0).expand(2, *x.shape)[1],
    lambda x: torch.stack(x.unbind(0), 0),
    lambda x: F.relu(x),
    lambda x: x.clamp(-0.9, 1.3),
    lambda x: x.masked_fill(torch.ones(x.shape[-1]).cumsum(0) > 3, -2.0),
    lambda x: x.index_select(0, torch.tensor([1, 0])),
]
UNARY: list[Callable[[Tensor], Tensor]] = [
    lambda x: x * -0.37,
    lambda x: 0.5 - x,
    lambda x: -x,
    torch.tanh,
    F.gelu,
    lambda x: F.softmax(x, -1),
    lambda x: x**2,
    lambda x: F.rms_norm(x, (x.shape[-1],), None, 1e-5),
    lambda x: x.mean(-1, keepdim=True).expand(x.shape),
]
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: x + y.reshape(x.shape),
    lambda x, y: x * y.reshape(x.shape),
    lambda x, y: torch.cat([x, y.reshape(x.shape)], 0)[:2] if x.shape[0] == 2 else torch.maximum(x, y.reshape(x.shape)),
    lambda x, y: torch.where(y.reshape(x.shape) > 0.2, x, y.reshape(x.shape)),
]


def random_graph(seed: int, share_of_sites: float) -> Graph:
    """A chain of 8 steps over two inputs and one linear; every draw is made here, none while running."""
    draw = random.Random(seed)
    grids = {f"g{i}": Grid(draw.choice(KINDS), -draw.uniform(1, 3), draw.uniform(1, 3)) for i in range(4)}
    steps = []
    for _ in range(8):
        family = draw.choice(["move", "move", "unary", "binary", "linear"])
        function = draw.choice({"move": MOVES, "unary": UNARY, "binary": BINARY, "linear": [None]}[family])
        steps.append((family, function, draw.choice([*grids]) if draw.random() < share_of_sites else None))
    ends = [draw.choice([*grids]) for _ in range(3)]
    w = weight(8, 8, seed)

    def fn(m: Graph, x: Tensor, y: Tensor) -> Tensor:
        values = [getattr(m, ends[0])(x), getattr(m, ends[1])(y)]
        for index, (family, function, site) in enumerate(steps):
            last, other = values[-1], values[(index * 7) % len(values)]
            if family == "linear":
                made = F.linear(last.reshape(-1, 8), m.wq(m.w)).reshape(last.shape)
            else:
                assert function is not None
                made = function(last, other) if family == "binary" else function(last)  # type: ignore[call-arg]
            values.append(made if site is None else getattr(m, site)(made))
        return getattr(m, ends[2])(values[-1] + values[0].reshape(values[-1].shape))

    return Graph(fn, (2, 4, 8), (2, 4, 8), w=w, wq=channels(w, draw.choice(["sym8", "uint8", "int4"])), **grids)


@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("seed", range(12))
def test_random_graph(seed: int, share: float) -> None:
    graph = random_graph(seed, share)
    program = export(graph, allow_float=True)
    if program.missing_qparams():
        assert share < 1.0
        with pytest.raises(ExportError, match=r"float tensor\(s\) remain in the fully quantized graph"):
            export(graph)
    assert program.check() == []
    report = compare(program, graph, inputs_of(graph))
    assert report.exported_equal
    assert op_faults(report) == []
