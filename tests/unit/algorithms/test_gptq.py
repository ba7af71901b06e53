# SPDX-License-Identifier: Apache-2.0
"""GPTQ and the range search, against the definitions of the paper written out in numpy, and on trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant import Policy, Rule, algorithms
from pyquant.algorithms.range_search import grid_of
from pyquant.errors import CalibrationError, InputError, PhaseError, PolicyError
from pyquant.models.gemma4 import whole_example
from pyquant.models.llama import example as llama
from pyquant.spec import INT4, INT8, PerAxis, PerGroup, PerTensor, QuantSpec
from pyquant.weight import Weight, weights

ROWS, OUT, IN = 96, 6, 16


ROW = PerAxis(0)


def spec(granularity: Any = ROW, symmetric: bool = True) -> QuantSpec:
    return QuantSpec(INT4, symmetric=symmetric, granularity=granularity)


def tree(form: QuantSpec | None = None) -> Any:
    torch.manual_seed(0)
    policy = Policy((Rule("*", spec=QuantSpec(INT8)), Rule("*:weight", spec=form or spec())))
    return pyquant.prepare(nn.Linear(IN, OUT), policy)


def data() -> list[Tensor]:
    """Columns that depend on each other and differ in size, in two batches."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(IN, IN, generator=generator) + 0.3
    x = torch.randn(ROWS, IN, generator=generator) @ mix * torch.linspace(0.2, 3, IN)
    return [x[:40], x[40:]]


def of(q: Any) -> Weight:
    return next(iter(weights(q)))


def output_error(q: Any, float_weight: Tensor) -> float:
    x = torch.cat(data()).double()
    return float((x @ (of(q).value - float_weight).double().T).square().sum())


def by_the_paper(weight: Tensor, scale: Tensor, columns: list[int], damping: float) -> np.ndarray[Any, Any]:
    """Integers by optimal brain quantization in the order of `columns`: the inverse of the free columns' Hessian is
    computed anew in each step."""
    x = torch.cat(data()).double().numpy()
    h = x.T @ x
    h += np.eye(IN) * damping * h.diagonal().mean()
    w, found = weight.double().numpy().copy(), np.zeros(weight.shape, dtype=np.int64)
    free = list(columns)
    while free:
        j = free[0]
        inverse = np.linalg.inv(h[np.ix_(free, free)])
        steps = w[:, j] / scale.double().numpy()
        found[:, j] = np.clip(np.trunc(steps + np.copysign(0.5, steps)), -7, 7)
        error = (w[:, j] - found[:, j] * scale.double().numpy()) / inverse[0, 0]
        w[:, free] -= error[:, None] * inverse[0][None]
        free.pop(0)
    return found


@pytest.mark.parametrize("order", [True, False])
def test_integers_are_those_of_the_paper(order: bool) -> None:
    q = tree()
    weight = of(q).value.clone()
    diagonal = torch.cat(data()).square().sum(0)
    columns = torch.argsort(diagonal, descending=True).tolist() if order else list(range(IN))
    (decision,) = algorithms.gptq(q, data(), order=order, ranges="minmax", damping=0.02, progress=False)
    scale = weight.abs().amax(1) / 7
    assert torch.equal(of(q).qparams.scale, scale)
    assert np.array_equal(of(q).integers.numpy(), by_the_paper(weight, scale, columns, 0.02))
    assert (decision.path, decision.how, decision.bits, decision.rows) == (":weight", "gptq", 4, ROWS)


def test_the_loss_is_the_relative_error_of_the_output() -> None:
    q = tree()
    weight = of(q).value.clone()
    (decision,) = algorithms.gptq(q, data(), damping=0, progress=False)
    whole = float((torch.cat(data()).double() @ weight.double().T).square().sum())
    assert decision.loss == pytest.approx(output_error(q, weight) / whole, rel=1e-3)


@pytest.mark.parametrize("granularity", [PerAxis(0), PerGroup(1, 4), PerTensor()], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_beats_the_nearest_integers_on_the_same_grid(granularity: Any, symmetric: bool) -> None:
    form = spec(granularity, symmetric)
    if isinstance(granularity, PerGroup) and not symmetric:
        form = spec(granularity)
    by_gptq, nearest = tree(form), tree(form)
    weight = of(nearest).value.clone()
    algorithms.gptq(by_gptq, data(), progress=False)
    algorithms.range_search(nearest, data(), progress=False)
    one, two = of(by_gptq).qparams, of(nearest).qparams
    assert one.same_grid(two)
    assert output_error(by_gptq, weight) < 0.7 * output_error(nearest, weight)


def test_a_searched_range_has_the_least_weighted_error() -> None:
    q, plain = tree(), tree()
    weight = of(q).value.clone()
    importance = torch.cat(data()).square().sum(0)
    (decision,) = algorithms.range_search(q, data(), progress=False)
    best = torch.full((OUT,), torch.inf)
    for part in np.linspace(1, 0.2, 400):  # finer than the search
        scale = weight.abs().amax(1) * part / 7
        error = ((weight / scale[:, None]).round().clamp(-7, 7) * scale[:, None] - weight).square() @ importance
        best = torch.minimum(best, error)
    found = (of(q).value - weight).square() @ importance
    assert bool((found <= best * 1.02).all())
    assert decision.loss == pytest.approx(float(found.sum() / (weight.square() @ importance).sum()), rel=1e-4)
    nearest = grid_of(weight, None, spec(), "search")
    of(plain).decide(nearest, "least square error")
    assert output_error(q, weight) < output_error(plain, weight)


def test_memory_changes_no_bit() -> None:
    model = whole_example.tiny_model()
    batch = whole_example.example_inputs(model)
    found = []
    for memory in (1 << 30, 1):
        q = pyquant.prepare(model, Policy.preset("w4a16"))
        decisions = algorithms.gptq(q, [batch], memory=memory, progress=False)
        found.append({w.path: w.value.clone() for w in weights(q) if w.how})
        assert len(decisions) == len(found[-1])
    assert all(torch.equal(found[0][path], found[1][path]) for path in found[0])


def test_the_float_model_and_undecided_weights_stay() -> None:
    model = llama.tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    q: Any = pyquant.prepare(model, Policy.preset("w4a16"))
    batch = llama.example_inputs(model)
    algorithms.gptq(q, [batch], match="*.0.mlp.*", progress=False)
    mlps = [layer.mlp for layer in q.model.layers]
    assert mlps[1].up_proj.weight is model.model.layers[1].mlp.up_proj.weight
    assert not torch.equal(mlps[0].up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    assert torch.equal(mlps[0].up_proj.const("weight", mlps[0].up_proj.weight), mlps[0].up_proj.weight)


def test_a_column_that_is_always_zero_is_rounded_to_the_nearest() -> None:
    q = tree()
    weight = of(q).value.clone()
    x = data()
    for batch in x:
        batch[:, 3] = 0
    algorithms.gptq(q, x, ranges="minmax", progress=False)
    scale = of(q).qparams.scale
    assert torch.equal(of(q).integers[:, 3].float(), (weight[:, 3] / scale).round().clamp(-7, 7))


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(PolicyError, match="no weight to decide: the tree has 1 weights of linears, 0 match 'x'"):
        algorithms.gptq(tree(), data(), match="x")
    with pytest.raises(PolicyError, match="at most 2 bits"):
        algorithms.gptq(tree(), data(), max_bits=2)
    with pytest.raises(InputError, match="damping"):
        algorithms.gptq(tree(), data(), damping=1.5)
    with pytest.raises(CalibrationError, match=r"':weight' multiplies, of 2 rows, have no inverse with damping=0; use"):
        algorithms.gptq(tree(), [torch.ones(2, IN)], damping=0, progress=False)
    with pytest.raises(CalibrationError, match="gptq got no batches"):
        algorithms.gptq(tree(), [])
    with pytest.raises(CalibrationError, match=r"gptq: batch 0: the model raised RuntimeError.*float32 \(2, 3\)"):
        algorithms.gptq(tree(), [torch.ones(2, 3)])
    with pytest.raises(CalibrationError, match=r"inputs of ':weight' have NaN .*; repair the data"):
        algorithms.gptq(tree(), [torch.full((2, IN), torch.nan)], progress=False)
    with pytest.raises(CalibrationError, match="gptq takes an iterable of batches, got NoneType"):
        algorithms.gptq(tree(), None)  # type: ignore[arg-type]
    with pytest.raises(PhaseError, match=r"auto16 takes the tree that pyquant\.prepare returned, got Linear"):
        algorithms.auto16(nn.Linear(2, 2), data())  # type: ignore[arg-type]
    q = tree()
    algorithms.gptq(q, data(), progress=False)
    with pytest.raises(PolicyError, match=r"undecided \(decided already: \['gptq'\]\)"):
        algorithms.gptq(q, data(), progress=False)
    late = tree()
    pyquant.calibrate(late, data(), progress=False)
    with pytest.raises(PhaseError, match=r"':act_in' was calibrated with weights that are not decided yet"):
        algorithms.range_search(late, data(), progress=False)
    pyquant.calibrate(q, data(), progress=False)
    pyquant.convert(q)
    with pytest.raises(PhaseError, match="QUANTIZED"):
        algorithms.gptq(q, data())


def test_a_damaged_weight_is_named() -> None:
    model = llama.tiny_model()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = torch.nan
    q = pyquant.prepare(model, Policy.preset("w4a16"))
    with pytest.raises(CalibrationError, match=r"the weight 'model.layers.0.self_attn.q_proj:weight' has NaN or inf"):
        algorithms.gptq(q, [llama.example_inputs(model)], progress=False)
