# SPDX-License-Identifier: Apache-2.0
"""What holds for every shared wrapper of the table: float phase, sites, quantized quality, export.

The cases are wrap_cases.py; attention and rotary, which have no torch module, are tested apart.
"""

from __future__ import annotations

import copy

import pytest
import torch
from wrap_cases import CASES, PASSTHROUGH, nodes_per_site, profile_of, quantized, seeded, site_names

import pyquant
from pyquant.metrics import sqnr_db
from pyquant.wrap import Phase, phase

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@every_case
def test_float_phase_is_the_float_module(case):
    fp, batches = seeded(case)
    before = [b.clone() for b in batches], copy.deepcopy(fp.state_dict())
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    with torch.no_grad():
        for x in batches:
            torch.testing.assert_close(q(x), fp(x), rtol=1e-5, atol=1e-5)  # calibrating
            with phase(q, Phase.FLOAT):
                torch.testing.assert_close(q(x), fp(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(batches, before[0], strict=True))
    assert all(torch.equal(value, before[1][name]) for name, value in fp.state_dict().items())


@every_case
def test_sites_are_those_of_the_circle_form(case):
    fp, batches = seeded(case)
    assert len(site_names(quantized(fp, batches))) == case.sites


@every_case
@DTYPES
def test_low_precision_models_run_in_every_phase(case, dtype):
    fp, batches = seeded(case)
    fp = fp.to(dtype)
    batches = [x if case.ids else x.to(dtype) for x in batches]
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    with torch.no_grad():
        reference = fp(batches[0])
        observed = q(batches[0])
        assert observed.dtype == reference.dtype == dtype
        torch.testing.assert_close(observed, reference, rtol=2e-2, atol=2e-2)
        pyquant.calibrate(q, batches, progress=False)
        pyquant.convert(q)
        out = q(batches[0])
    assert out.dtype == dtype
    assert bool(torch.isfinite(out).all())


@every_case
def test_quantized_is_close(case):
    fp, batches = seeded(case)
    q = quantized(fp, batches)
    with torch.no_grad():
        assert sqnr_db(torch.stack([fp(x) for x in batches]), torch.stack([q(x) for x in batches])) > case.min_sqnr


@every_case
@pytest.mark.parametrize("preset", ["w8a8", "w8a16"])
def test_exported_program_has_each_site_once_and_equals_eager(case, preset):
    fp, batches = seeded(case)
    q = quantized(fp, batches, preset)
    adapter = q.as_export_module(profile_of(batches[0]))
    with torch.no_grad():
        program = torch.export.export(adapter, (batches[0],), strict=False)
        for x in batches:
            assert torch.equal(program.module()(x), q(x))
    assert set(nodes_per_site(program)) == site_names(q)
    assert set(nodes_per_site(program).values()) == {1}


@every_case
@pytest.mark.parametrize("preset", ["w8a8", "w8a16", "w4a16"])
def test_the_file_computes_what_eager_computes(case, preset):
    """Fully quantized (export refuses otherwise), and equal in TICO's reference runtime."""
    fp, batches = seeded(case)
    q = quantized(fp, batches, preset)
    pyquant.verify.fidelity(pyquant.export(q, profile_of(batches[0])), q, [batches[0]])


@pytest.mark.parametrize("build", PASSTHROUGH.values(), ids=PASSTHROUGH)
def test_passthrough_has_no_site_and_changes_nothing(build):
    x = torch.randn(2, 3, 4)
    fp = build().eval()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    assert site_names(q) == set()
    assert torch.equal(q(x), fp(x))
    assert torch.equal(q.train()(x), fp(x))  # a Dropout too: quantization is inference


class Clipped(torch.nn.Module):
    """A QuantLinear with clips as the one module of a graph."""

    output_names, name = ("y",), "clipped"

    def __init__(self, q, x, clips):
        super().__init__()
        self.module, self.clips, self.input_specs = q, clips, profile_of(x).inputs

    def forward(self, x):
        return self.module(x, **self.clips)


# preset -> clips, how many clamps are left in the graph. An asymmetric grid reaches from bound to bound; a symmetric
# one has the larger bound on both sides, so the tighter side needs its clamp, unless data never came near it.
CLIPS = {
    "w8a8": ("w8a8", (-1.0, 1.5), (-0.75, 0.5), 0),
    "w8a8_one_sided": ("w8a8", (-1.0, None), (None, 0.5), 0),
    "w8a8_zero_outside": ("w8a8", (-1.0, 1.0), (0.25, 0.5), 1),
    "w8a16_symmetric_bounds": ("w8a16", (-1.0, 1.0), (-0.5, 0.5), 0),
    "w8a16_asymmetric_bounds": ("w8a16", (-1.0, 1.5), (-0.75, 0.5), 2),
    "w8a16_one_sided": ("w8a16", (-1.0, None), (None, 0.5), 2),
    "w8a16_never_reached": ("w8a16", (-100.0, 90.0), (None, 80.0), 0),
}


@pytest.mark.parametrize(("preset", "clip_in", "clip_out", "clamps"), CLIPS.values(), ids=CLIPS)
def test_linear_clips_are_saturation_where_the_grid_says_so(preset, clip_in, clip_out, clamps):
    torch.manual_seed(0)
    fp, x = torch.nn.Linear(6, 4), torch.randn(64, 6) * 3
    clips = {"clip_in": clip_in, "clip_out": clip_out}
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    with torch.no_grad():
        expected = fp(x.clamp(*clip_in)).clamp(*clip_out)
        torch.testing.assert_close(q(x, **clips), expected)  # and calibrates
        pyquant.convert(q)
        assert sqnr_db(expected, q(x, **clips)) > (25 if preset == "w8a8" else 40)
        wild = q(torch.randn(64, 6) * 300, **clips)
        step = float(q.site("act_out").scale)
        assert float(wild.max()) <= min(v for v in (clip_out[1], torch.inf) if v is not None) + step
        assert float(wild.min()) >= max(v for v in (clip_out[0], -torch.inf) if v is not None) - step
    program = pyquant.export(Clipped(q, x, clips))
    targets = [str(node.target) for node in program.exported.graph.nodes]
    assert targets.count("aten.clamp.default") == clamps
    assert sum(op.op in ("MINIMUM", "MAXIMUM") for op in program.graph.operators) == clamps


def test_linear_clips_stay_clamps_where_the_policy_leaves_floats():
    torch.manual_seed(0)
    fp = torch.nn.Linear(6, 4)
    x = torch.randn(64, 6) * 3
    q = pyquant.prepare(fp, pyquant.Policy.preset("float"))
    pyquant.calibrate(q, [x], progress=False)
    pyquant.convert(q)
    with torch.no_grad():
        torch.testing.assert_close(q(x, clip_in=(-1.0, 1.0), clip_out=(0.0, None)), fp(x.clamp(-1, 1)).clamp(min=0))


BAD = {
    "softmax_without_dim": (lambda: torch.nn.Softmax(), "give it one, such as nn.Softmax"),
    "embedding_max_norm": (lambda: torch.nn.Embedding(4, 2, max_norm=1.0), "set max_norm to None"),
    "layer_norm_2d": (lambda: torch.nn.LayerNorm((3, 4)), "only norms over the last dimension"),
    "conv_groups": (lambda: torch.nn.Conv2d(4, 4, 3, groups=2), "groups=1 or groups=in_channels do"),
    "conv_reflect": (lambda: torch.nn.Conv1d(4, 4, 3, padding_mode="reflect"), "padding_mode='zeros'"),
    "rms_norm_2d": (lambda: torch.nn.RMSNorm((3, 4)), "only norms over the last dimension"),
}


@pytest.mark.parametrize(("build", "message"), BAD.values(), ids=BAD)
def test_modules_without_a_wrapper_form_say_so(build, message):
    with pytest.raises(pyquant.errors.UnknownModuleError, match=message):
        pyquant.prepare(torch.nn.Sequential(build())[0], pyquant.Policy.preset("w8a8"))


@pytest.mark.parametrize(("build", "shape"), [(torch.nn.Conv2d, (4, 6, 6)), (torch.nn.Conv1d, (4, 6))])
def test_a_convolution_wants_a_batch(build, shape):
    q = pyquant.prepare(build(4, 4, 3), pyquant.Policy.preset("w8a8"))
    with pytest.raises(pyquant.errors.InputError, match=rf"takes a batch of {len(shape) + 1} dimensions, got"):
        q(torch.randn(shape))


def test_a_glu_wants_two_equal_halves():
    """Of three columns, two and one would be multiplied."""
    q = pyquant.prepare(torch.nn.GLU(), pyquant.Policy.preset("w8a8"))
    with pytest.raises(pyquant.errors.InputError, match=r"halves dimension -1 of \(2, 3\): it is odd"):
        q(torch.randn(2, 3))


@pytest.mark.parametrize("name", ["conv2d", "conv1d_depthwise"])
def test_channels_last_is_the_same_convolution_without_transposes(name):
    fp, batches = seeded(CASES[name])
    q = quantized(fp, batches)
    x = batches[0]
    last = x.movedim(1, -1)
    with torch.no_grad():
        assert torch.equal(q(last, channels_last=True), q(x).movedim(1, -1))
    program = pyquant.export(ChannelsLast(q, last))
    assert not [op.op for op in program.graph.operators if op.op == "TRANSPOSE"]


class ChannelsLast(torch.nn.Module):
    """An adapter of a convolution and a relu between values that are channels last."""

    def __init__(self, module, x):
        super().__init__()
        self.module, self.name, self.output_names = module, "channels_last", ("y",)
        self.input_specs = {"x": pyquant.exporter.TensorSpec(tuple(x.shape))}

    def forward(self, x):
        with self.module.state.exporting():
            return torch.relu(self.module(x, channels_last=True))
