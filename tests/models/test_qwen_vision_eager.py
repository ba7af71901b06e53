# SPDX-License-Identifier: Apache-2.0
"""transformers' contract of the vision model, kept by the wrapper: arguments, what it precomputes, errors, files."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from qwen_vision_tiny import BATCHES, Grid, cu_seqlens, hf, normal, patches, pixels, places, rotary, vision
from test_qwen_vision_wrappers import all_close, close
from torch import Tensor, nn

import pyquant
from pyquant import Policy, wrap
from pyquant.errors import InputError, PhaseError, UnknownModuleError
from pyquant.models import qwen3_vl
from pyquant.weight import weights
from pyquant.wrap import Phase, QModule

MIXED = BATCHES["mixed"]


def prepared(fp: nn.Module, preset: str = "w8a8") -> QModule:
    return pyquant.prepare(fp, Policy.preset(preset))


def inputs(grids: tuple[Grid, ...] = MIXED) -> dict[str, Tensor]:
    return {"hidden_states": pixels(grids), "grid_thw": torch.tensor(grids)}


def everything(out: Any) -> list[Tensor]:
    return [out.last_hidden_state, out.pooler_output, *out.deepstack_features]


def test_output_is_transformers_own() -> None:
    fp = vision()
    with torch.no_grad():
        expected, out = fp(**inputs()), prepared(fp)(**inputs())
    assert type(out) is type(expected)
    assert isinstance(out.deepstack_features, list)
    all_close(everything(out), everything(expected))
    with torch.no_grad():
        expected, out = (m(**inputs(), return_dict=False) for m in (fp, prepared(fp)))
    assert isinstance(out, tuple)
    close(out[0], expected[0])
    close(out[1], expected[1])
    all_close(out[2], expected[2])


def test_without_transformers_class_the_fields_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hf, "BaseModelOutputWithDeepstackFeatures")
    fp = vision()
    with torch.no_grad():
        out = prepared(fp)(**inputs())
    assert [name for name in out if out[name] is not None] == list(out.keys())
    assert list(out.keys()) == ["last_hidden_state", "pooler_output", "deepstack_features"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_grids_may_be_any_integer_type_and_images_come_one_by_one(dtype: torch.dtype) -> None:
    q = prepared(vision())
    x, start = pixels(MIXED), 0
    with torch.no_grad():
        together = q(x, torch.tensor(MIXED, dtype=dtype)).pooler_output
        alone = []
        for grid in MIXED:
            alone.append(q(x[start : start + patches([grid])], torch.tensor([grid], dtype=dtype)).pooler_output)
            start += patches([grid])
    close(together, torch.cat(alone))


def precomputed(fp: Any, grids: tuple[Grid, ...]) -> dict[str, Tensor]:
    """What this release of transformers lets a caller compute once for all calls; empty for the first ones."""
    module = importlib.import_module(hf.__name__)
    thw = torch.tensor(grids)
    given: dict[str, Tensor] = {}
    if (taps := getattr(module, "get_vision_interpolation_indices_and_weights", None)) is not None:
        given["interp_indices"], given["interp_weights"] = taps(
            thw, fp.num_grid_per_side, align_corners=True, spatial_merge_size=2
        )
    elif (taps := getattr(module, "get_vision_bilinear_indices_and_weights", None)) is not None:
        given["bilinear_indices"], given["bilinear_weights"] = taps(thw, fp.num_grid_per_side, 2)
    if given:
        given |= {"cu_seqlens": cu_seqlens(grids), "position_ids": places(grids)}
    return given


def test_what_transformers_precomputes_is_taken() -> None:
    fp = vision()
    q, given = prepared(fp), precomputed(fp, MIXED)
    if not given:
        pytest.skip("this transformers computes all of it in the model")
    names = list(given)
    with torch.no_grad():
        expected = everything(fp(**inputs()))
        for used in (names, names[:2], names[2:], names[3:]):  # all, or some and the rest from the grids
            all_close(everything(q(**inputs(), **{name: given[name] for name in used})), expected)
        all_close(everything(q(pixels(MIXED), None, **given, max_seqlen=16)), expected)
        one = {**given, "cu_seqlens": torch.tensor([0, patches(MIXED)], dtype=torch.int32)}  # attention over all
        all_close(everything(q(**inputs(), **one)), everything(fp(**inputs(), **one)))


def test_precomputed_tensors_of_other_grids_are_refused() -> None:
    q = prepared(vision())
    with pytest.raises(InputError, match="position_ids has 24 rows for 44 patches"):
        q(**inputs(), position_ids=places(BATCHES["image"]))
    taps = {"interp_indices": torch.zeros(24, 4, dtype=torch.int64), "interp_weights": torch.zeros(24, 4)}
    with pytest.raises(InputError, match="interp_indices has 24 rows for 44 patches"):
        q(**inputs(), **taps)
    with pytest.raises(InputError, match="cu_seqlens must rise from 0 to the 44 rows"):
        q(**inputs(), cu_seqlens=cu_seqlens(BATCHES["image"]))
    with pytest.raises(InputError, match=r"needs grid_thw .* or all that is made of it"):
        q(pixels(MIXED), cu_seqlens=cu_seqlens(MIXED))


def test_blocks_take_the_keywords_of_every_release() -> None:
    """`rotary_pos_emb` until 5.9, `max_seqlen` since 5.15."""
    fp = vision().blocks[0]
    x = normal(patches(MIXED), 32, 3)
    given = {"cu_seqlens": cu_seqlens(MIXED), "position_embeddings": rotary(8, MIXED)}
    for part in (fp, fp.attn):
        with torch.no_grad():
            close(prepared(part)(x, **given, rotary_pos_emb=None, max_seqlen=16), part(x, **given))
    with pytest.raises(InputError, match=r"needs position_embeddings=\(cos, sin\)"):
        prepared(fp)(x, given["cu_seqlens"])


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_outputs_that_are_not_computed_are_refused_by_name(name: str) -> None:
    q = prepared(vision())
    with pytest.raises(InputError, match=f"{name}=True is not supported"):
        q(**inputs(), **{name: True})


WRONG: dict[str, tuple[Tensor, Any, str]] = {
    "too_few_rows": (pixels(MIXED)[:-4], torch.tensor(MIXED), "pixel_values have 40 rows, but grid_thw .* 44 patches"),
    "too_many_rows": (pixels(MIXED), torch.tensor(MIXED[:2]), "pixel_values have 44 rows, but grid_thw .* 32 patches"),
    "unmergeable": (pixels(((1, 3, 4),)), torch.tensor([(1, 3, 4)]), "multiples of spatial_merge_size 2"),
    "zero": (pixels(MIXED), torch.tensor([(1, 0, 4)]), "at least 1"),
    "no_grid": (pixels(MIXED), None, "needs grid_thw"),
    "narrow": (pixels(MIXED)[:, :-1], torch.tensor(MIXED), "no rows of 96 pixels"),
    "bytes": (pixels(MIXED).to(torch.uint8), torch.tensor(MIXED), "pixel_values are torch.uint8, expected floating"),
    "integers": (pixels(MIXED).long(), torch.tensor(MIXED), "pixel_values are torch.int64, expected floating"),
}


@pytest.mark.parametrize(("x", "grid", "message"), WRONG.values(), ids=WRONG)
def test_inputs_that_contradict_the_model_say_so(x: Tensor, grid: Any, message: str) -> None:
    q = prepared(vision())
    for kind in (Phase.FLOAT, Phase.CALIBRATE):
        with wrap.phase(q, kind), torch.no_grad(), pytest.raises(InputError, match=message):
            q(x, grid)


def test_a_batch_with_nan_is_named_by_calibrate() -> None:
    q, bad = prepared(vision()), inputs()
    bad["hidden_states"][3, 5] = float("nan")
    with pytest.raises(
        pyquant.PyquantError, match=r"batch 1 made NaN or Inf, first at site 'patch_embed\.proj:act_in'"
    ):
        pyquant.calibrate(q, [inputs(), bad], progress=False)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "stride": {"stride": (1, 4, 4)},
    "padding": {"padding": (0, 1, 1)},
    "same": {"padding": "same", "kernel_size": 1, "stride": 1},
    "dilation": {"dilation": 2},
    "groups": {"groups": 3, "out_channels": 33},
}


@pytest.mark.parametrize("change", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_that_is_no_linear_map_of_patches_is_refused(change: dict[str, Any]) -> None:
    fp = vision()
    form = {"in_channels": 3, "out_channels": 32, "kernel_size": (2, 4, 4), "stride": (2, 4, 4)} | change
    fp.patch_embed.proj = nn.Conv3d(**form)
    with pytest.raises(UnknownModuleError, match=r"patch_embed\.proj is Conv3d\(.*stride equal to kernel_size"):
        prepared(fp)


def test_a_convolution_without_a_bias_and_with_valid_padding() -> None:
    fp = vision().patch_embed
    fp.proj = nn.Conv3d(3, 32, (2, 4, 4), (2, 4, 4), padding="valid", bias=False)
    with torch.no_grad():
        close(prepared(fp)(pixels(MIXED)), fp(pixels(MIXED)))
        close(prepared(fp)(pixels(MIXED).view(-1, 3, 2, 4, 4)), fp(pixels(MIXED)))


def test_another_interpolation_is_refused() -> None:
    fp = vision()
    fp.interpolation_mode = "bicubic"
    with pytest.raises(UnknownModuleError, match="resamples its position embeddings by 'bicubic'"):
        prepared(fp)


@torch.no_grad()
def edit(model: Any) -> None:
    model.patch_embed.proj.weight.mul_(3)
    model.patch_embed.proj.bias.add_(1)
    model.pos_embed.weight.mul_(2)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "load": lambda model: model.load_state_dict(vision(seed=7).state_dict()),
    "edit": edit,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_flattened_kernel_whose_convolution_changes_after_prepare_is_an_error(
    change: Callable[[nn.Module], Any],
) -> None:
    model = vision()
    q = prepared(model)
    change(model)
    names = r"'patch_embed.proj.weight', 'patch_embed.proj.bias'"
    with pytest.raises(PhaseError, match=f"calibrate: {names} of the float model changed after prepare"):
        pyquant.calibrate(q, [inputs()], progress=False)


@torch.no_grad()
def test_a_flattened_kernel_that_was_replaced_stays() -> None:
    q = prepared(vision())
    (weight,) = [weight for weight in weights(q) if weight.path == "patch_embed.proj:weight"]
    weight.replace(weight.value * 2)
    kept = q.patch_embed.proj.weight
    pyquant.calibrate(q, [inputs()], progress=False)
    pyquant.convert(q)
    assert q.patch_embed.proj.weight is kept


def test_position_embeddings_of_grids_that_calibration_never_saw_do_not_saturate() -> None:
    """A grid of 2 x 2 touches the corners of the table only, but its range is that of the whole table."""
    fp = vision()
    with torch.no_grad():
        fp.pos_embed.weight[4] = 9.0  # the middle of 3 x 3
    q = prepared(fp)
    pyquant.calibrate(q, [inputs(((1, 2, 2),))], progress=False)
    pyquant.convert(q)
    grid = q.site("pos_embed").qparams
    assert grid is not None
    assert (255 - int(grid.zero_point)) * float(grid.scale) == pytest.approx(9.0, rel=0.01)


@pytest.mark.parametrize("preset", ["w8a8", "w4a16", "float"])
def test_saved_and_loaded_gives_the_same_bits(tmp_path: Any, preset: str) -> None:
    q = prepared(vision(), preset)
    pyquant.calibrate(q, [inputs()], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "model")
    loaded = pyquant.load_quantized(tmp_path / "model")
    with torch.no_grad():
        out = q(**inputs())
        assert all(map(torch.equal, everything(loaded(**inputs())), everything(out)))
        static = loaded.as_export_module(qwen3_vl.VisionProfile(MIXED))(pixels(MIXED))
        assert all(map(torch.equal, static, everything(out)[1:]))


def test_gradients_are_those_of_transformers() -> None:
    """Every parameter has one, the position table and the kernel that the patch embedding derived among them."""
    fp, twin = vision(), vision()
    q = prepared(twin)
    generator = torch.Generator().manual_seed(0)
    with wrap.phase(q, Phase.FLOAT):
        for model in (fp, q):
            generator.manual_seed(0)
            out = everything(model(**inputs()))
            torch.autograd.backward(out, [torch.randn(t.shape, generator=generator) for t in out])
    mine, theirs = dict(q.named_parameters()), dict(fp.named_parameters())
    assert set(mine) == set(theirs)
    for name, parameter in theirs.items():
        expected, found = parameter.grad, mine[name].grad
        assert expected is not None
        assert found is not None, name
        close(found.view(expected.shape), expected, 1e-4)


def test_casting_the_tree_leaves_the_float_model_alone() -> None:
    fp = vision()
    state = {name: t.clone() for name, t in fp.state_dict().items()}
    with torch.no_grad():
        before = fp(**inputs()).pooler_output
        q = prepared(fp).to(torch.bfloat16)
        q(**inputs())
        assert torch.equal(fp(**inputs()).pooler_output, before)
    assert {t.dtype for t in q.parameters()} == {torch.bfloat16}
    assert all(torch.equal(t, state[name]) for name, t in fp.state_dict().items())


def test_a_class_that_transformers_renamed_is_one_loud_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyquant.models.qwen3_vl.hf import hf_class

    monkeypatch.delattr(hf, "Qwen3VLVisionPatchMerger")
    with pytest.raises(ImportError, match=r"transformers 5\.\d+\.\d+ has no class Qwen3VLVisionPatchMerger"):
        hf_class("Qwen3VLVisionPatchMerger")
