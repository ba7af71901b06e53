# SPDX-License-Identifier: Apache-2.0
"""A bias and its integers: weights too small, empty or too coarse for it, in every recipe, eager and in the file."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

import pyquant
from pyquant import ObserverSpec, PerAxis, Policy, QuantSpec, Rule, ops
from pyquant.errors import CalibrationError
from pyquant.exporter.profile import ExportProfile, TensorSpec
from pyquant.site import Role
from pyquant.spec import INT4, INT8, INT16, UINT8
from pyquant.wrap import QModule

SIGNED, UNSIGNED, WIDE = QuantSpec(INT8), QuantSpec(UINT8), QuantSpec(INT16, True)


def policy(act: QuantSpec, weight: QuantSpec, observer: str = "minmax") -> Policy:
    return Policy((Rule("*", Role.ACTIVATION, act), Rule("*", Role.WEIGHT, weight, ObserverSpec(observer))))


RECIPES = {
    **{name: Policy.preset(name) for name in ("w8a8", "w8a8_int8", "w4a8", "w8a16", "w4a16")},
    "uint8 per-tensor": policy(UNSIGNED, UNSIGNED),
    "int8 per-tensor": policy(SIGNED, QuantSpec(INT8, True)),
    "int16 per-tensor": policy(WIDE, QuantSpec(INT8, True)),
    "w4a8 searched": policy(UNSIGNED, QuantSpec(INT4, True, PerAxis(0)), "mse"),
    "int8 asymmetric channels": policy(SIGNED, QuantSpec(INT8, False, PerAxis(0))),
}


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    fp = nn.Linear(64, 8)
    with torch.no_grad():
        fp.bias[3] = 0.5
    return fp


def tiny_row(fp: nn.Linear, factor: float = 1e-7) -> None:
    fp.weight[3] *= factor


def empty_row(fp: nn.Linear) -> None:
    fp.weight[3] = 0


def all_tiny(fp: nn.Linear) -> None:
    fp.weight.mul_(1e-20)


def all_empty(fp: nn.Linear) -> None:
    fp.weight.zero_()


def one_large_bias(fp: nn.Linear) -> None:
    fp.bias[3] = -3e7


FORMS: dict[str, Callable[[nn.Linear], None]] = {
    "tiny row": tiny_row,
    "tinier row": lambda fp: tiny_row(fp, 1e-20),
    "row below float32": lambda fp: tiny_row(fp, 1e-36),
    "empty row": empty_row,
    "all tiny": all_tiny,
    "all empty": all_empty,
    "one large bias": one_large_bias,
}


def quantized(fp: nn.Module, recipe: Policy, x: Tensor) -> QModule:
    q = pyquant.prepare(fp, recipe)
    pyquant.calibrate(q, [x], progress=False)
    pyquant.convert(q)
    return q


def integers(q: QModule) -> Tensor:
    bits = 64 if q.site("act_in").spec.dtype.bits == 16 else 32
    return ops.quantize_bias(q.bias.detach().float(), q.bias_scale, bits)


@pytest.mark.parametrize("width", [1.0, 100.0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_bias_fits_its_integers_and_loses_less_than_half_a_step(recipe: str, form: str, width: float) -> None:
    fp = linear()
    with torch.no_grad():
        FORMS[form](fp)
    x = width * torch.randn(256, 64)
    q = quantized(fp, RECIPES[recipe], x)
    step = float(q.site("act_out").scale)
    wide = q.site("act_in").spec.dtype.bits == 16
    assert integers(q).abs().max() <= 2.0 ** (46 if wide else 30) * (1 + 1e-6)
    lost = (q.qbias("bias", q.bias) - fp.bias).abs().max()
    assert lost <= 0.5 * step
    if form in ("tiny row", "tinier row", "row below float32", "empty row"):
        # the row's output is its bias: rounded once as a bias, once as an output
        assert (q(x)[:, 3] - 0.5).abs().max() <= 1.01 * step


def test_the_issue_in_numbers() -> None:
    fp = linear()
    with torch.no_grad():
        tiny_row(fp)
    x = torch.randn(256, 64)
    got = quantized(fp, Policy.preset("w8a8"), x)(x)[:, 3]
    assert (got - 0.5).abs().max() < 0.01  # it was 0.06
    with torch.no_grad():
        empty_row(fp)
    got = quantized(fp, Policy.preset("w8a8"), 100 * x)(100 * x)[:, 3]
    out_step = 100 * fp(x).detach().abs().max() * 2 / 255
    assert (got - 0.5).abs().max() <= out_step


@pytest.mark.parametrize("rows", [(0,), (3,), (1, 4, 7), tuple(range(8))], ids=str)
@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_int8", "w4a8", "w4a16"])
def test_any_rows_may_be_empty_or_tiny(recipe: str, rows: tuple[int, ...]) -> None:
    fp = linear(1)
    with torch.no_grad():
        for n, row in enumerate(rows):
            fp.weight[row] *= (0.0, 1e-9, 1e-25)[n % 3]
            fp.bias[row] = (-1.0) ** n * (n + 0.25)
    x = 30 * torch.randn(256, 64)
    q = quantized(fp, RECIPES[recipe], x)
    assert (q(x)[:, list(rows)] - fp.bias[list(rows)]).abs().max() <= 1.01 * float(q.site("act_out").scale)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_raised_scale_loses_nothing_of_the_weights_that_shows(recipe: str) -> None:
    """Per tensor one bias raises the scale of all rows; they change by less than a step of the output that shows it."""
    fp = linear(2)
    with torch.no_grad():
        fp.bias[3] = 1e9
        fp.weight.mul_(1e-3)
    x = torch.randn(256, 64)
    q = quantized(fp, RECIPES[recipe], x)
    assert (q(x) - fp(x)).abs().max() <= 1.01 * float(q.site("act_out").scale)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_ordinary_layer_keeps_the_scales_of_its_weights(recipe: str) -> None:
    fp, x = linear(), torch.randn(64, 64)
    q = pyquant.prepare(fp, RECIPES[recipe])
    pyquant.calibrate(q, [x], progress=False)
    found = q.site("weight").compute_qparams()
    pyquant.convert(q)
    assert q.site("weight").qparams.same_grid(found)


def test_zero_points_follow_a_raised_scale() -> None:
    fp = linear()
    with torch.no_grad():
        fp.weight[3] = torch.linspace(-1e-9, 3e-9, 64)
        fp.bias[3] = 0.004  # a scale 2.4 times the row's own
    x = torch.randn(64, 64)
    q = quantized(fp, Policy.preset("w8a8"), x)
    site = q.site("weight")
    natural = 4e-9 / 255
    assert 1.2 * natural < float(site.scale[3]) < 255 * natural
    kept = site.constant(fp.weight)[3]
    assert (kept - fp.weight[3]).abs().max() <= 0.51 * float(site.scale[3])


@pytest.mark.parametrize("form", ["tiny row", "empty row", "all empty"])
@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_int8", "w4a8", "w8a16", "w4a16"])
def test_the_file_has_the_same_bias(recipe: str, form: str) -> None:
    fp = linear()
    with torch.no_grad():
        FORMS[form](fp)
    x = 100 * torch.randn(32, 64)
    q = quantized(fp, RECIPES[recipe], x)
    program = pyquant.export(q, ExportProfile({"x": TensorSpec((32, 64))}, ("y",)))
    report = pyquant.verify.compare(program, q, (x,))
    worst = report.outputs[0].max_lsb
    assert worst is not None
    assert worst <= 1, str(report)


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_int8", "w4a16"])
def test_a_clipped_linear(recipe: str) -> None:
    torch.manual_seed(0)
    config = Gemma4VisionConfig(hidden_size=64, use_clipped_linears=True)
    fp = modeling_gemma4.Gemma4ClippableLinear(config, 64, 8)
    for name, bound in {"input_min": -2.0, "input_max": 2.0, "output_min": -3.0, "output_max": 3.0}.items():
        getattr(fp, name).fill_(bound)
    inner = fp.linear
    inner.bias = nn.Parameter(torch.full((8,), 0.75))
    with torch.no_grad():
        inner.weight[2] = 0
        inner.weight[5] *= 1e-9
    x = 50 * torch.randn(128, 64)
    q = quantized(fp, RECIPES[recipe], x)
    step = float(q.linear.site("act_out").scale)
    assert (q(x)[:, [2, 5]] - 0.75).abs().max() <= 1.01 * step


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_int8", "w4a16"])
def test_a_bias_that_is_folded_from_a_kernel(recipe: str) -> None:
    """Gemma4's patches: the bias is that of the model less the sum of the kernel."""
    torch.manual_seed(0)
    config = Gemma4VisionConfig(hidden_size=16, patch_size=4, position_embedding_size=8)
    fp = modeling_gemma4.Gemma4VisionPatchEmbedder(config)
    fp.input_proj = nn.Linear(48, 16)
    with torch.no_grad():
        fp.position_embedding_table.normal_()
        fp.input_proj.weight[4] = 0
        fp.input_proj.weight[9] *= 1e-10
        fp.input_proj.bias.fill_(2.0)
    pixels = torch.rand(2, 16, 48)
    at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1).reshape(1, 16, 2)
    q = pyquant.prepare(fp, RECIPES[recipe])
    batch = {
        "pixel_values": pixels,
        "pixel_position_ids": at.expand(2, 16, 2),
        "padding_positions": torch.zeros(2, 16, dtype=torch.bool),
    }
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    out = q.input_proj(pixels)
    assert (out[..., [4, 9]] - 2.0).abs().max() <= 1.01 * float(q.input_proj.site("act_out").scale)


IMPOSSIBLE = {
    "no float32 scale": (1e-30, 1e29, "needs a weight scale that is no float32 number"),
    "too coarse": (1.0, 0.03, r"channel 3 loses [\d.]+ steps of the output"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_fit_is_named(case: str) -> None:
    width, bias, message = IMPOSSIBLE[case]
    fp = linear()
    x = torch.randn(64, 64).clamp(-1, 1) * width
    with torch.no_grad():
        fp.weight.mul_(1e-3)
        fp.bias.fill_(bias)
        if case == "too coarse":
            fp.weight[3, 0] = 100.0  # for an input that is always zero
            x[:, 0] = 0
    q = pyquant.prepare(fp, Policy.preset("w4a8"))
    pyquant.calibrate(q, [x], progress=False)
    with pytest.raises(CalibrationError, match=message) as caught:
        pyquant.convert(q)
    assert re.search(r"^  :weight: ", str(caught.value), re.MULTILINE)
    assert all(site.scale is None for site in q.all_sites())


def test_a_wide_output_of_narrow_inputs_is_no_error() -> None:
    """The output has finer steps than the bias here, and than the products."""
    fp, x = linear(), torch.randn(64, 64)
    wide_out = Rule("*:act_out", Role.ACTIVATION, WIDE)
    q = quantized(fp, Policy.preset("w4a8") + wide_out, x)
    assert float(q.bias_scale.max()) > float(q.site("act_out").scale)
    assert (q.qbias("bias", q.bias) - fp.bias).abs().max() <= 128 * float(q.site("act_out").scale)
