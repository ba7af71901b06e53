# SPDX-License-Identifier: Apache-2.0
"""Weights that are computed on each call: refused with the call that bakes them in, which then suffices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import pyquant
from pyquant import Policy
from pyquant.errors import PolicyError
from pyquant.models import by_name
from pyquant.wrap.computed import computed_weights


class _Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * 2


def _old(name: str) -> Callable[[nn.Module], Any]:
    def apply(module: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in favour of parametrizations, and still used
            getattr(nn.utils, name)(module)

    return apply


def _recomputed(module: nn.Module) -> None:
    original = module.weight
    del module.weight
    module.raw = original
    module.weight = original.detach() * 2
    module.register_forward_pre_hook(lambda m, args: setattr(m, "weight", m.raw * 2))


REMOVE = "torch.nn.utils.parametrize.remove_parametrizations(model.up, 'weight', leave_parametrized=True)"
KINDS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "prune": (lambda m: prune.l1_unstructured(m, "weight", 0.5), "torch.nn.utils.prune.remove(model.up, 'weight')"),
    "prune-bias": (lambda m: prune.random_unstructured(m, "bias", 1), "torch.nn.utils.prune.remove(model.up, 'bias')"),
    "weight_norm": (_old("weight_norm"), "torch.nn.utils.remove_weight_norm(model.up, 'weight')"),
    "spectral_norm": (_old("spectral_norm"), "torch.nn.utils.remove_spectral_norm(model.up, 'weight')"),
    "parametrize": (lambda m: parametrize.register_parametrization(m, "weight", _Doubled()), REMOVE),
    "new-weight_norm": (parametrizations.weight_norm, REMOVE),
    "new-spectral_norm": (parametrizations.spectral_norm, REMOVE),
    "hook": (
        _recomputed,
        "value = model.up.weight.detach(); del model.up.weight; model.up.weight = nn.Parameter(value)",
    ),
}


class _Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


class _QuantUp(pyquant.wrap.QModule):
    CHILDREN = ("up",)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


@pytest.mark.filterwarnings("ignore:prepare does not take over")
@pytest.mark.parametrize("kind", KINDS)
def test_refused_with_the_call_that_bakes_it_in(kind: str, tmp_path: Path) -> None:
    """On old main: a folder that load_quantized refuses, or advice to register ParametrizedLinear."""
    torch.manual_seed(0)
    model, x = _Up(), torch.randn(16, 8)
    apply, call = KINDS[kind]
    apply(model.up)
    model.eval()
    name = "bias" if "bias" in kind else "weight"
    want = model(x)
    pyquant.wrap.register(_Up)(_QuantUp)
    try:
        with pytest.raises(PolicyError) as caught:
            pyquant.prepare(model, Policy.preset("w8a16"))
        assert f"  up.{name}: {call}" in str(caught.value).splitlines()
        exec(call, {"torch": torch, "nn": nn, "model": model})
        model.up._forward_pre_hooks.clear()  # of "hook", which has no call of its own
        assert computed_weights(model) == []
        torch.testing.assert_close(model(x), want)
        q = pyquant.prepare(model, Policy.preset("w8a16"))
        pyquant.calibrate(q, [x], progress=False)
        pyquant.convert(q)
        pyquant.save_quantized(q, tmp_path / "saved")
        assert torch.equal(pyquant.load_quantized(tmp_path / "saved", _Up())(x), q(x))
        assert float((q(x) - want).detach().abs().max()) < 0.01 * float(want.detach().abs().max())
    finally:
        pyquant.wrap.registry.unregister(_Up)


@pytest.mark.filterwarnings("ignore:prepare does not take over")
def test_many_are_counted() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(7)))
    for module in model:
        prune.identity(module, "weight")
    with pytest.raises(PolicyError, match=r"^7 weights of (.*\n)  0\.weight: (.*\n)+  ... and 2 more"):
        pyquant.prepare(model, Policy.preset("w8a8"))


@pytest.mark.parametrize("family", ["gemma4", "qwen3_vl"])
def test_models_of_transformers_compute_none(family: str) -> None:
    assert computed_weights(by_name(family).example.tiny_model()) == []
