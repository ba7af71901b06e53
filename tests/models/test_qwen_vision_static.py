# SPDX-License-Identifier: Apache-2.0
"""Vision profiles, and adapters that own what they precomputed; every profile gives what eager gives."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from qwen_vision_tiny import BATCHES, PIXELS, WIDTH, Grid, patches, pixels, vision
from torch import Tensor, nn

import pyquant
from pyquant.errors import ProfileError
from pyquant.models.qwen3_vl import VisionProfile
from pyquant.wrap import Phase, QModule, phase

PROFILES: dict[str, tuple[Grid, ...]] = {
    **BATCHES,
    "tall": ((1, 12, 2),),
    "large": ((1, 16, 20),),
    "smallest": ((1, 2, 2),),
    "many": ((1, 4, 4), (1, 2, 2), (1, 2, 2), (2, 4, 2), (1, 4, 4)),
}


def inputs(grids: tuple[Grid, ...], seed: int = 1) -> dict[str, Tensor]:
    return {"hidden_states": pixels(grids, seed), "grid_thw": torch.tensor(grids)}


def tokens(out: Any) -> list[Tensor]:
    return [out.pooler_output, *out.deepstack_features]


def converted(preset: str = "w8a8", **overrides: Any) -> tuple[nn.Module, QModule]:
    fp = vision(**overrides)
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    pyquant.calibrate(q, [inputs(grids) for grids in (BATCHES["mixed"], PROFILES["large"])], progress=False)
    pyquant.convert(q)
    return fp, q


@pytest.fixture(scope="module")
def tree() -> tuple[nn.Module, QModule]:
    return converted()


@pytest.mark.parametrize("grids", PROFILES.values(), ids=PROFILES)
def test_static_is_eager_bit_for_bit(tree: tuple[nn.Module, QModule], grids: tuple[Grid, ...]) -> None:
    _, q = tree
    given = inputs(grids)
    adapter = q.as_export_module(VisionProfile(grids))
    with torch.no_grad():
        eager, static = tokens(q(**given)), adapter(given["hidden_states"])
    assert len(static) == len(adapter.output_names) == 4
    assert all(map(torch.equal, static, eager))
    assert static[0].shape == (VisionProfile(grids).tokens(2), 24)


@pytest.mark.parametrize("part", ["", "blocks.0", "blocks.0.attn"])
def test_heads_one_by_one_give_the_same(tree: tuple[nn.Module, QModule], part: str) -> None:
    q = tree[1].get_submodule(part)
    batched, per_head = (
        q.as_export_module(VisionProfile(BATCHES["mixed"], attention=attention))  # type: ignore[operator]
        for attention in ("batched", "per_head")
    )
    (spec,) = batched.input_specs.values()
    x = torch.randn(spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = batched(x), per_head(x)
    for mine, theirs in zip(other, one, strict=True):
        assert float((mine - theirs).abs().max()) <= 0.02 * float(theirs.abs().max())  # a rounding flip at 8 bits


def test_heads_one_by_one_are_products_of_one_head(tree: tuple[nn.Module, QModule]) -> None:
    attention = tree[1].get_submodule("blocks.0.attn")
    graph = pyquant.export(attention, VisionProfile((1, 4, 4), attention="per_head")).graph
    products = [op for op in graph.operators if op.op == "BATCH_MATMUL"]
    assert len(products) == 2 * 4
    assert {graph.tensors[op.outputs[0]].shape[:-2] for op in products} <= {(1, 1), ()}


def test_a_second_profile_changes_nothing_in_the_first() -> None:
    _, q = converted(depth=1, deepstack_visual_indexes=[0])
    first = q.as_export_module(VisionProfile(BATCHES["image"]))
    x = pixels(BATCHES["image"])
    with torch.no_grad():
        before = first(x)
        buffers = {name: buffer.clone() for name, buffer in first.named_buffers(recurse=False)}
        graph = pyquant.export(q, VisionProfile(BATCHES["image"])).graph
        state = {name: t.clone() for name, t in q.state_dict().items()}
        second = q.as_export_module(VisionProfile(BATCHES["mixed"]))
        second(pixels(BATCHES["mixed"]))
        assert all(map(torch.equal, first(x), before))
        again = pyquant.export(q, VisionProfile(BATCHES["image"])).graph
    assert again.to_json() == graph.to_json()
    assert all(torch.equal(a.tensor(), b.tensor()) for a, b in zip(again.constants, graph.constants, strict=True))
    assert set(buffers) == {"pos_embeds", "cos", "signed_sin"}
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in first.named_buffers(recurse=False))
    assert all(torch.equal(t, state[name]) for name, t in q.state_dict().items())
    mine = {t.data_ptr() for t in first.buffers(recurse=False)}
    assert not mine & {t.data_ptr() for t in (*second.buffers(recurse=False), *q.parameters(), *q.buffers())}


@pytest.mark.parametrize("batch", ["video", "mixed"])
def test_an_adapter_stores_nothing_of_patches_squared(tree: tuple[nn.Module, QModule], batch: str) -> None:
    _, q = tree
    adapter = q.as_export_module(VisionProfile(BATCHES[batch]))
    rows = patches(BATCHES[batch])
    assert sum(buffer.numel() for buffer in adapter.buffers(recurse=False)) == rows * (WIDTH + 2 * 8)


def test_the_graph_has_pixels_in_and_tokens_out(tree: tuple[nn.Module, QModule]) -> None:
    _, q = tree
    adapter = q.as_export_module(VisionProfile(((1, 4, 6), (2, 4, 4))))
    assert adapter.name == "vision_t1_h4_w6_t2_h4_w4"
    (name,), (spec,) = zip(*adapter.input_specs.items(), strict=True)
    assert (name, spec.shape, spec.dtype) == ("pixel_values", (56, PIXELS), torch.float32)
    assert adapter.output_names == ("image_embeds", "deepstack_0", "deepstack_1", "deepstack_2")


def test_deepstack_features_come_in_the_order_of_blocks() -> None:
    """Taps [1, 2, 0]: the merger of block 0 is the third, and its features are the first."""
    fp = vision()
    q = pyquant.prepare(fp, pyquant.Policy.preset("float"))
    seen: list[str] = []
    for path in ("deepstack_merger_list.0", "deepstack_merger_list.1", "deepstack_merger_list.2", "merger"):
        q.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.append(path))
    with torch.no_grad():
        q(**inputs(BATCHES["image"]))
    assert [path[-1] for path in seen] == ["2", "0", "1", "r"]


def test_a_tree_in_its_float_phase_exports_as_float() -> None:
    fp, q = converted(depth=1, deepstack_visual_indexes=[0])
    grids = BATCHES["mixed"]
    with phase(q, Phase.FLOAT), torch.no_grad():
        program = pyquant.export(q, VisionProfile(grids), allow_float=True)
        out = program.exported.module()(pixels(grids))
        expected = tokens(fp(**inputs(grids)))
    assert not any("fake_quantize" in str(node.target) for node in program.exported.graph.nodes)
    for mine, theirs in zip(out, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_adapters_move_and_copy(tree: tuple[nn.Module, QModule]) -> None:
    _, q = tree
    adapter = copy.deepcopy(q.as_export_module(VisionProfile(BATCHES["mixed"])))
    x = pixels(BATCHES["mixed"])
    with torch.no_grad():
        assert all(map(torch.equal, adapter(x), q.as_export_module(VisionProfile(BATCHES["mixed"]))(x)))
    assert adapter.train() is adapter
    assert not adapter.training


def test_a_profile_is_a_value() -> None:
    profile = VisionProfile(((1, 4, 6),))
    assert profile == VisionProfile((1, 4, 6)) == VisionProfile([[1, 4, 6]]) == VisionProfile(torch.tensor([[1, 4, 6]]))
    assert hash(profile) == hash(VisionProfile((1, 4, 6)))
    assert (profile.name, profile.patches, profile.tokens(2)) == ("vision_t1_h4_w6", 24, 6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.grids = ()


BAD: dict[str, tuple[Any, str]] = {
    "none": (None, "grids are triples of integers"),
    "empty": ((), "at least one grid"),
    "pairs": (((4, 4),), "grids are triples of integers .*frames, height, width"),
    "floats": (((1, 4.0, 4),), "grids are triples of integers"),
    "truth": (((1, True, 4),), "grids are triples of integers"),
    "words": ("abc", "grids are triples of integers"),
    "zero": (((1, 4, 4), (1, 0, 4)), r"the grid \(1, 0, 4\) is not possible: .* at least 1"),
    "negative": (((-1, 4, 4),), "at least 1"),
}


@pytest.mark.parametrize(("grids", "message"), BAD.values(), ids=BAD)
def test_impossible_profiles_are_refused(grids: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        VisionProfile(grids)


def test_another_attention_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"VisionProfile\.attention is 'batched' or 'per_head', got 'flash'"):
        VisionProfile((1, 4, 4), attention="flash")  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["", "blocks.0", "blocks.0.attn"])
def test_a_grid_that_the_model_cannot_merge_is_refused_by_export(tree: tuple[nn.Module, QModule], part: str) -> None:
    _, q = tree
    with pytest.raises(ProfileError, match=r"the grid \(1, 4, 5\) does not fit this model: .* spatial_merge_size 2"):
        q.get_submodule(part).as_export_module(VisionProfile((1, 4, 5)))  # type: ignore[operator]


def test_rotary_tables_have_no_graph_of_their_own(tree: tuple[nn.Module, QModule]) -> None:
    _, q = tree
    with pytest.raises(ProfileError, match="rotary tables of fixed grids are constants"):
        q.rotary_pos_emb.as_export_module(VisionProfile((1, 4, 4)))
