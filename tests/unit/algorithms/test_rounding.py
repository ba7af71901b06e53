# SPDX-License-Identifier: Apache-2.0
"""Block tuning: gradients of offsets and ranges as torch has them, less loss than the start, the same bits again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant import algorithms
from pyquant.algorithms.learned import Learned
from pyquant.algorithms.rounding import tune
from pyquant.decision import Decision
from pyquant.errors import InputError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.llama import example as llama
from pyquant.qparams import QParams
from pyquant.spec import INT4, Granularity, PerAxis, PerGroup, PerTensor, QuantSpec
from pyquant.verify import compare
from pyquant.verify.tolerance import op_faults
from pyquant.weight import Weight, weights
from pyquant.wrap import QModule
from tests.models import gemma4_model_tiny as gemma

torch.set_num_threads(1)
W4 = pyquant.Policy.preset("w4a16")
SCALES: dict[str, tuple[Granularity, tuple[int, ...]]] = {
    "tensor": (PerTensor(), ()),
    "rows": (PerAxis(0), (6,)),
    "groups": (PerGroup(1, 4), (6, 2)),
}


def tree(seed: int = 0) -> tuple[QModule, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    batches = [{"input_ids": torch.randint(0, 256, (1, 16), generator=generator)} for _ in range(8)]
    return pyquant.prepare(llama.tiny_model(), W4), batches


def learned(granularity: Granularity, shape: tuple[int, ...], integers: Tensor | None = None) -> Learned:
    torch.manual_seed(1)
    q = pyquant.prepare(torch.nn.Linear(8, 6), W4)
    symmetric = granularity != PerGroup(1, 4)
    spec = QuantSpec(INT4, symmetric=symmetric, granularity=granularity)
    scale = 0.03 + 0.02 * torch.rand(shape)
    zero_point = torch.zeros(shape, dtype=torch.int32) if symmetric else torch.randint(-2, 3, shape).int()
    return Learned(Weight(q, "weight"), QParams(spec, scale, zero_point), "", integers)


def wide(value: Tensor, granularity: Granularity) -> Tensor:
    if isinstance(granularity, PerGroup):
        return value.repeat_interleave(granularity.size, dim=1)
    return value[:, None] if isinstance(granularity, PerAxis) else value


@pytest.mark.parametrize(("granularity", "shape"), SCALES.values(), ids=SCALES)
def test_a_step_goes_against_the_signs_of_torchs_own_gradients(
    granularity: Granularity, shape: tuple[int, ...]
) -> None:
    each = learned(granularity, shape)
    weight, grid, spec = each.weight.value, each.grid, each.grid.spec
    offset = torch.zeros_like(weight).requires_grad_()
    factor = torch.ones(shape).requires_grad_()
    scale = wide(grid.scale * factor, granularity)
    zero = wide(grid.zero_point.float(), granularity)
    place = weight / scale + offset
    whole = place + ((place.abs() + 0.5).floor() * place.sign() - place).detach() + zero  # straight through
    expected = (whole.clamp(spec.qmin, spec.qmax) - zero) * scale
    target = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    leaf = each.leaf()
    torch.testing.assert_close(leaf, expected)
    (expected - target).square().sum().backward()
    (leaf - target).square().sum().backward()
    each.step(0.1)
    assert offset.grad is not None
    assert factor.grad is not None
    torch.testing.assert_close(each.scale, grid.scale * (1 - 0.1 * factor.grad.sign()))
    moved = weight + wide(each.scale, granularity) * -0.1 * offset.grad.sign()
    places = (moved / wide(each.scale, granularity)).double()
    nearest = ((places.abs() + 0.5).floor() * places.sign() + zero).clamp(spec.qmin, spec.qmax)
    torch.testing.assert_close(each.value(), ((nearest - zero) * wide(each.scale, granularity)).float())


@pytest.mark.parametrize(("granularity", "shape"), SCALES.values(), ids=SCALES)
def test_it_starts_from_the_integers_that_are_given(granularity: Granularity, shape: tuple[int, ...]) -> None:
    spec = learned(granularity, shape).grid.spec
    integers = torch.randint(spec.qmin, spec.qmax + 1, (6, 8), generator=torch.Generator().manual_seed(5))
    each = learned(granularity, shape, integers)
    zero = wide(each.grid.zero_point, granularity)
    torch.testing.assert_close(each.value(), (integers - zero) * wide(each.grid.scale, granularity))
    each.keep()
    each.decide("test")
    assert torch.equal(each.weight.integers.long(), integers)


def test_blocks_get_nearer_to_the_float_model_and_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    def run(**settings: Any) -> tuple[list[Decision], dict[str, Tensor], QModule]:
        q, batches = tree()
        log = tune(q, batches[:4], steps=16, batch=2, **settings)
        return log, {w.path: w.integers for w in weights(q) if w.how == "tune"}, q

    log, found, q = run(resume=tmp_path / "run")
    assert q.state.log == log
    assert len(found) == sum(w.is_linear and w.path != "lm_head:weight" for w in weights(q)) == 21
    losses = {(float(entry.note.split()[4]), entry.loss) for entry in log}
    assert len(losses) == 3  # of three blocks
    assert all(after is not None and after < 0.9 * before for before, after in losses)
    (tmp_path / "run" / "block_001.safetensors").unlink()  # as if it had been killed there
    (tmp_path / "run" / "block_002.safetensors").unlink()
    _, again, _ = run(resume=tmp_path / "run")
    assert all(torch.equal(again[path], found[path]) for path in found)
    _, other, _ = run(seed=1)
    assert not all(torch.equal(other[path], found[path]) for path in found)


def test_a_tuned_tree_is_saved_loaded_and_exported_bit_by_bit(tmp_path: Path) -> None:
    q, batches = tree()
    tune(q, batches[:2], steps=4, batch=2, start="gptq")
    decided = {w.path: w.integers for w in weights(q) if w.how}
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    assert all(torch.equal(w.integers, decided[w.path]) for w in weights(q) if w.path in decided)
    pyquant.save_quantized(q, tmp_path / "saved")
    loaded = pyquant.load_quantized(tmp_path / "saved", llama.tiny_model())
    ids = batches[0]["input_ids"]
    assert torch.equal(loaded(input_ids=ids).logits, q(input_ids=ids).logits)
    linear = q.get_submodule("model.layers.1.mlp.down_proj")
    x = torch.randn(1, 5, decided["model.layers.1.mlp.down_proj:weight"].shape[1])
    program = pyquant.export(linear, pyquant.ExportProfile({"x": TensorSpec(tuple(x.shape))}))
    assert op_faults(compare(program, None, [x])) == []


def test_experts_are_tuned_and_one_without_data_stays_nearest() -> None:
    q = pyquant.prepare(gemma.conditional("experts", num_hidden_layers=1, layer_types=["full_attention"]), W4)
    nearest = pyquant.prepare(gemma.conditional("experts", num_hidden_layers=1, layer_types=["full_attention"]), W4)
    batches = [gemma.inputs([2])]  # two rows of two choices: one of four experts sees nothing
    algorithms.range_search(nearest, batches, match="*experts*")
    log = tune(q, batches, match="*experts*", steps=20, batch=1)
    expected = {w.path: w.integers.chunk(w.matrices) for w in weights(nearest) if w.how}
    assert [entry.path.rpartition(".")[2] for entry in log] == ["gate_up_proj:weight", "down_proj:weight"]
    note = log[0].note.partition("experts ")[2]
    silent = int(note[0])
    assert note[1:] == " saw no data: nearest integers"
    for weight in weights(q):
        if weight.how:
            same = [map(torch.equal, weight.integers.chunk(weight.matrices), expected[weight.path])]
            assert [list(each)[silent] for each in same] == [True]
            assert not torch.equal(weight.integers, torch.cat(expected[weight.path]))


def test_numbers_that_make_no_sense_are_refused() -> None:
    q, batches = tree()
    with pytest.raises(InputError, match="tune starts from 'nearest' or 'gptq', got 'zero'"):
        tune(q, batches, start="zero")  # type: ignore[arg-type]
    for settings in ({"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": 2.0}):
        with pytest.raises(InputError, match="tune takes steps >= 1"):
            tune(q, batches, **settings)  # type: ignore[arg-type]
