# SPDX-License-Identifier: Apache-2.0
"""Circle = eager for every Qwen3-VL vision wrapper, judged by TICO's reference runtime on the written bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from qwen_vision_tiny import BATCHES, CASES, STATIC
from test_qwen_vision_wrappers import EXPORTS, exported, ids, quantized

from pyquant import circle
from pyquant.circle import write as circle_write
from pyquant.exporter.plan import Quant
from pyquant.verify.tolerance import deep_faults, layer_faults, op_faults
from tests import litert
from tests.judges import judged

# At 16 bits one step is 3e-5 of the range, near float32's own rounding in a sum: flips of one operator reach the next,
# so that wrappers of several linears are judged as deep models there.
DEEP = {"w8a8": ("model",), "w8a16": tuple(CASES), "w4a16": tuple(CASES)}
EVERY = [(*pair, "w8a8") for pair in EXPORTS]
EVERY += [(name, "mixed", "w8a16") for name in ("attention", "block", "model_merge_1", "patch_embed")]
EVERY += [(name, "mixed", "w4a16") for name in ("block", "model_large_table", "mlp", "merger", "deepstack_merger")]


@pytest.mark.parametrize(("name", "batch", "preset"), EVERY, ids=ids(EVERY))
def test_the_file_computes_what_eager_computes(name: str, batch: str, preset: str) -> None:
    fp, _ = quantized(name, preset)
    case = CASES[name]
    given = case.inputs(fp, BATCHES[batch])
    program, inputs = exported(name, batch, preset), [given[case.first]]
    report = judged(program, None, inputs)
    assert op_faults(report) == []
    assert report.unchecked == 0
    if not name.startswith(DEEP[preset]):
        assert layer_faults(report) == []
    with torch.no_grad():
        reference = dict(zip([out.name for out in program.outputs], case.pick(fp(**given)), strict=True))
    assert deep_faults(program, None, inputs, reference, report) == []


@litert.needs_litert
def test_every_operator_in_8_bits_beside_litert(tmp_path: Path) -> None:
    """A whole block in integers. LiteRT refuses probabilities in steps of 1/255 alone: here they are 1/256."""
    plan = exported("block", "mixed", "w8a8_int8").graph
    path = tmp_path / "block.circle"
    circle_write(plan.to_json(), plan.constants, path)
    given = [np.random.default_rng(0).normal(0, 40, plan.tensors[i].shape) for i in plan.inputs]
    given = [value.clip(-128, 127).astype(np.int8) for value in given]
    with pytest.raises(litert.RefusedError, match="output->params"):
        litert.run(path, given)
    ours, theirs = (Quant("int8", (float(np.float32(step)),), (-128,), None, -128, 127) for step in (1 / 255, 1 / 256))
    plan = plan.replace(tensors=tuple(t.replace(quant=theirs) if t.quant == ours else t for t in plan.tensors))
    circle_write(plan.to_json(), plan.constants, path)
    apart = [int(apart.max()) for _, apart in litert.operators_apart(path, given)]
    assert len(apart) == len(plan.operators)
    assert max(apart) <= 1
    (got,), (judged_by,) = circle.Runner(path).run(given).values(), litert.run(path, given)
    assert np.abs(got.astype(int) - judged_by).max() <= 3, "a step here and there, from one operator to the next"


def test_the_table_covers_every_wrapper_and_preset() -> None:
    assert {name for name, _, _ in EVERY} == set(CASES)
    assert {preset for name, _, preset in EVERY if name in STATIC} == {"w8a8", "w8a16", "w4a16"}
