# SPDX-License-Identifier: Apache-2.0
"""Site: the three phases, known ranges, qparams from statistics, and the cache of constants."""

from __future__ import annotations

import copy
import pickle
import re
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from pyquant import PerAxis, QuantSpec, ops
from pyquant.errors import InputError, PhaseError, SpecError
from pyquant.qparams import QParams
from pyquant.site import Phase, Role, Site, TensorCache
from pyquant.spec import INT8, INT16, UINT8
from pyquant.tree_state import set_phase

U8, I8, I16 = QuantSpec(UINT8), QuantSpec(INT8), QuantSpec(INT16, True)
W8 = QuantSpec(INT8, True, PerAxis(0))


def make(role: Role = Role.ACTIVATION, spec: QuantSpec | None = U8, **kwargs: object) -> Site:
    return Site("m.n:x", role, spec, **kwargs)  # type: ignore[arg-type]


def convert(site: Site) -> Site:
    found = site.compute_qparams()
    assert isinstance(found, QParams), found
    site.set_qparams(found)
    site.state.converted = True
    set_phase(site, Phase.QUANTIZED)
    return site


def test_float_phase_passes_through_and_clips() -> None:
    site, x = make(), torch.tensor([-3.0, 3.0])
    set_phase(site, Phase.FLOAT)
    assert site(x) is x
    assert site(x, clip=(None, 1.0)).tolist() == [-3.0, 1.0]
    assert site(x, clip=(None, None)) is x
    assert site.observer is not None
    assert site.observer.elements == 0


def test_calibrate_phase_observes_the_clipped_value_and_returns_it() -> None:
    site, x = make(), torch.tensor([-3.0, 3.0])
    assert site(x, clip=(-1.0, 2.0)).tolist() == [-1.0, 2.0]
    assert x.tolist() == [-3.0, 3.0]
    assert [t.item() for t in site.observer.range()] == [-1.0, 2.0]


def test_calibrate_phase_may_observe_another_tensor() -> None:
    site, x = make(), torch.tensor([-1e9, 3.0])
    assert site(x, observed=torch.tensor([-2.0, 3.0])) is x
    assert [t.item() for t in site.observer.range()] == [-2.0, 3.0]


def test_quantized_phase_is_fake_quantize_and_saturates_instead_of_clipping() -> None:
    site = make()
    site(torch.tensor([-1.0, 1.0]))
    convert(site)
    x = torch.tensor([-9.0, -0.3, 0.0, 0.4, 9.0])
    y = site(x, clip=(-1.0, 1.0))
    assert torch.equal(y, ops.fake_quantize(x, site.scale, site.zero_point, None, 0, 0, 255))
    assert y[2] == 0
    assert (x - y)[1:4].abs().max() <= site.scale / 2 * 1.0001


def test_float_site_stays_float_in_every_phase() -> None:
    site, x = make(spec=None), torch.randn(3)
    assert site(x) is x
    site.state.converted = True
    set_phase(site, Phase.QUANTIZED)
    assert site(x) is x
    assert site.constant(x) is x
    assert site.qparams is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int8], ids=str)
def test_integers_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"site 'm.n:x' got a tensor of torch.\w+, expected floating point"):
        make()(torch.ones(2, dtype=dtype))


def test_float64_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"site 'm.n:x' got a tensor of torch.float64.*cast the model"):
        make()(torch.ones(2, dtype=torch.float64))


FIXED = {
    (Role.SOFTMAX, U8): (1 / 255, 0),
    (Role.SOFTMAX, I8): (1 / 255, -128),
    (Role.SOFTMAX, I16): (1 / 32767, 0),
    (Role.SIGMOID, U8): (1 / 256, 0),
    (Role.SIGMOID, I8): (1 / 256, -128),
    (Role.SIGMOID, I16): (1 / 32768, 0),
    (Role.TANH, U8): (2 / 256, 128),
    (Role.TANH, I8): (2 / 256, 0),
    (Role.TANH, I16): (1 / 32768, 0),
    (Role.UNIT, U8): (2 / 255, 127),
    (Role.UNIT, I16): (1 / 32767, 0),
    (Role.SOFTMAX, QuantSpec(INT8, True)): (1 / 127, 0),
    (Role.TANH, QuantSpec(INT8, True)): (1 / 127, 0),
}


@pytest.mark.parametrize(("role", "spec"), FIXED, ids=lambda v: str(getattr(v, "value", v)).replace(" ", "-"))
def test_known_ranges_need_no_data_whatever_the_rule_observes(role: Role, spec: QuantSpec) -> None:
    site = make(role, spec, observer="ema", params={"momentum": 0.5})
    site(torch.tensor([55.0]))
    grid = site.compute_qparams()
    assert isinstance(grid, QParams)
    scale, zero_point = FIXED[role, spec]
    assert grid.scale.item() == torch.tensor(scale, dtype=torch.float32).item()
    assert grid.zero_point.item() == zero_point


def test_known_range_per_channel_does_not_exist() -> None:
    with pytest.raises(SpecError, match="a known range is per tensor"):
        make(Role.SOFTMAX, W8)


VERDICTS = {
    "no-data": (Role.ACTIVATION, [], "saw no calibration data; run calibrate"),
    "empty": (Role.ACTIVATION, [torch.ones(0)], "saw no calibration data"),
    "nan": (Role.ACTIVATION, [torch.tensor([1.0, torch.nan])], "saw 1 NaN or infinite of 2 values"),
    "inf": (Role.ACTIVATION, [torch.tensor([1.0, torch.inf, 2.0])], "saw 1 NaN or infinite of 3 values"),
    "zeros": (Role.ACTIVATION, [torch.zeros(4)], "saw only zeros, which gives no scale"),
    "zeros-way-out": (
        Role.ACTIVATION,
        [torch.zeros(4)],
        r'initialised to zeros.*a rule: Rule\("m.n:x", spec=..., observer=ObserverSpec\("fixed", ',
    ),
    "far-weight": (
        Role.WEIGHT,
        [torch.tensor([3e37, 1.0])],
        r"constant has the range \[1, 3e\+37\].*damaged; repair it",
    ),
    "far-table": (Role.EMBEDDING, [torch.tensor([-3e37, 1.0])], "no trained weight is that large"),
    "far-constant": (Role.CONSTANT, [torch.tensor([-3e37, 1.0])], "use a finite fill such as -1e4, else repair the"),
    "far-activation": (Role.ACTIVATION, [torch.tensor([-3e37, 1.0])], "or a model that overflows"),
    "denormal": (
        Role.ACTIVATION,
        [torch.full((4,), 1e-39)],
        r"saw only values in \[1e-39, 1e-39\], which gives no scale",
    ),
    "mask": (Role.ACTIVATION, [torch.tensor([torch.finfo(torch.float32).min, 1.0])], "which only mask values make"),
    "constant-unseen": (Role.CONSTANT, [], "its constant was never seen"),
    "constant-nan": (Role.WEIGHT, [torch.tensor([torch.nan])], "its constant has 1 NaN or infinite of 1 values"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict_on_bad_statistics(case: str) -> None:
    role, data, message = VERDICTS[case]
    site = make(role)
    for x in data:
        site(x)
    found = site.compute_qparams()
    assert isinstance(found, str)
    assert re.search(message, found), found


def test_zero_channels_of_a_weight_are_fine() -> None:
    site = make(Role.WEIGHT, W8)
    w = torch.randn(3, 4)
    w[1] = 0
    site.constant(w)
    grid = site.compute_qparams()
    assert isinstance(grid, QParams)
    assert grid.scale[1] == 1
    assert grid.zero_point.tolist() == [0, 0, 0]


def test_a_constant_of_zeros_is_fine() -> None:
    site = make(Role.CONSTANT, U8)
    site.constant(torch.zeros(3))
    assert convert(site).constant(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


# --- constants ---


@pytest.fixture
def kernel() -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 6))


@pytest.fixture
def weight(kernel: nn.Parameter) -> Site:
    site = make(Role.WEIGHT, W8).eval()
    site.constant(kernel)
    return convert(site)


def test_constant_is_observed_once(kernel: nn.Parameter, calls: Counter[str]) -> None:
    site = make(Role.WEIGHT, W8)
    for _ in range(3):
        assert site.constant(kernel) is kernel
    assert calls == {"observe_minmax_": 1}


def test_constant_is_quantized_once(weight: Site, kernel: nn.Parameter, calls: Counter[str]) -> None:
    values = [weight.constant(kernel) for _ in range(5)]
    assert calls == {"fake_quantize": 1}
    assert all(v is values[0] for v in values)
    assert torch.equal(values[0], ops.fake_quantize(kernel, weight.scale, weight.zero_point, 0, 0, -127, 127))
    assert not isinstance(values[0], nn.Parameter)
    assert list(weight.state_dict()) == ["scale", "zero_point"]


def edit_in_place(kernel: nn.Parameter, site: Site) -> nn.Parameter:
    with torch.no_grad():
        kernel.mul_(0.5)
    return kernel


def replace(kernel: nn.Parameter, site: Site) -> nn.Parameter:
    return nn.Parameter(kernel.detach() * 0.5)


def point_elsewhere(kernel: nn.Parameter, site: Site) -> nn.Parameter:
    kernel.data = kernel.data * 0.5
    return kernel


def cast(kernel: nn.Parameter, site: Site) -> nn.Parameter:
    return nn.Parameter(kernel.detach().to(torch.bfloat16))


def other_scale(kernel: nn.Parameter, site: Site) -> nn.Parameter:
    site.scale.mul_(2)
    return kernel


@pytest.mark.parametrize(
    "change", [edit_in_place, replace, point_elsewhere, cast, other_scale], ids=lambda f: f.__name__
)
def test_constant_is_quantized_again_after_a_change(weight: Site, kernel: nn.Parameter, change: object) -> None:
    weight.constant(kernel)
    changed = change(kernel, weight)  # type: ignore[operator]
    want = ops.fake_quantize(changed, weight.scale, weight.zero_point, 0, 0, -127, 127)
    assert torch.equal(weight.constant(changed), want)
    assert weight.constant(changed).dtype == changed.dtype


def test_constant_carries_gradients_while_training(weight: Site, kernel: nn.Parameter) -> None:
    assert not weight.constant(kernel).requires_grad
    weight.train()
    weight.constant(kernel).sum().backward()
    assert kernel.grad is not None
    assert not weight.eval().constant(kernel).requires_grad


def test_cache_made_in_inference_mode_serves_outside(weight: Site, kernel: nn.Parameter) -> None:
    with torch.inference_mode():
        weight.constant(kernel)
    x = torch.randn(6, requires_grad=True)
    (weight.constant(kernel) @ x).sum().backward()
    assert x.grad is not None


def test_inference_tensors_are_not_cached(weight: Site, calls: Counter[str]) -> None:
    with torch.inference_mode():
        value = torch.randn(4, 6)
        weight.constant(value)
        value.mul_(2)
        assert torch.equal(
            weight.constant(value), ops.fake_quantize(value, weight.scale, weight.zero_point, 0, 0, -127, 127)
        )


@pytest.mark.parametrize("how", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"])
def test_copies_start_with_an_empty_cache(weight: Site, kernel: nn.Parameter, how: object) -> None:
    before = weight.constant(kernel)
    twin = how(weight)  # type: ignore[operator]
    assert isinstance(twin._cache, TensorCache)
    assert twin._cache._value is None
    assert torch.equal(twin.constant(kernel), before)


@pytest.mark.parametrize("move", [Tensor.half, Tensor.double], ids=["half", "double"])
def test_scales_stay_float32(weight: Site, move: object) -> None:
    scale = weight.scale.clone()
    module = nn.ModuleList([weight])
    (module.half if move is Tensor.half else module.double)()
    assert weight.scale.dtype == torch.float32
    assert torch.equal(weight.scale, scale)
    assert weight.zero_point.dtype == torch.int32


def test_scales_move_with_the_module(weight: Site) -> None:
    assert weight.to("meta").scale.device.type == "meta"


def test_phases_in_order_only() -> None:
    site = make()
    with pytest.raises(PhaseError, match=r"not converted yet; run pyquant.convert\(q\)"):
        set_phase(site, Phase.QUANTIZED)
    assert site.phase is Phase.CALIBRATE
    site.state.converted = True
    with pytest.raises(PhaseError, match="prepare the float model again"):
        set_phase(site, Phase.CALIBRATE)
    with pytest.raises(AttributeError):
        site.phase = Phase.FLOAT  # type: ignore[misc]


def test_site_prints_what_it_is() -> None:
    assert "m.n:x, activation, uint8 asymmetric per-tensor" in repr(make())
    assert "m.n:x, activation, float" in repr(make(spec=None))
