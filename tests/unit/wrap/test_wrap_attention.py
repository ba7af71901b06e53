# SPDX-License-Identifier: Apache-2.0
"""The attention core: against plain softmax attention, with every kind of mask; and how masked logits saturate."""

from __future__ import annotations

import pytest
import torch
from wrap_cases import set_qparams

import pyquant
from pyquant.errors import InputError
from pyquant.metrics import sqnr_db
from pyquant.wrap import WrapContext
from pyquant.wrap.attention import FILL, AdditiveMask, AttentionCore

HEADS = {"mha": (4, 4), "gqa": (4, 2), "mqa": (4, 1)}
heads = pytest.mark.parametrize(("h", "kv"), HEADS.values(), ids=HEADS)


def core(scaling: float = 1.0, preset: str = "w8a16") -> AttentionCore:
    return AttentionCore(WrapContext("attn.core", pyquant.Policy.preset(preset)), scaling=scaling).eval()


def qkv(h: int, kv: int, sq: int = 5, sk: int = 7) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return torch.randn(2, h, sq, 8), torch.randn(2, kv, sk, 8), torch.randn(2, kv, sk, 8)


def plain(q, k, v, scaling=1.0, mask=None):
    """The textbook, keys and values repeated."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * scaling
    probs = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
    return probs @ v, probs


def padded(*lengths: int, sk: int = 7) -> torch.Tensor:
    return torch.arange(sk)[None, :] < torch.tensor(lengths)[:, None]


MASKS = {
    "none": lambda h: None,
    "keys": lambda h: padded(7, 4),
    "keys_4d": lambda h: padded(7, 4)[:, None, None, :],
    "keys_integer": lambda h: padded(7, 4).long(),
    "queries": lambda h: torch.ones(5, 7, dtype=torch.bool).tril(2)[None, None].expand(2, 1, 5, 7),
    "heads": lambda h: torch.arange(7)[None, None, None, :] <= torch.arange(h)[None, :, None, None].expand(2, h, 5, 1),
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@heads
@masks
@pytest.mark.parametrize("scaling", [1.0, 8**-0.5], ids=["unscaled", "scaled"])
def test_float_phase_is_softmax_attention(h, kv, mask, scaling):
    q, k, v = qkv(h, kv)
    keep = mask(h)
    wide = None if keep is None else (keep.bool()[:, None, None, :] if keep.dim() == 2 else keep)
    expected = plain(q, k, v, scaling, wide)
    actual = core(scaling)(q, k, v, AdditiveMask.of(keep, q.dtype))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@heads
@pytest.mark.parametrize("mask", ["keys_4d", "queries", "heads"])
def test_float_masks_of_transformers_mean_the_same(h, kv, mask):
    q, k, v = qkv(h, kv)
    keep = MASKS[mask](h)
    assert keep is not None
    additive = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
    before = additive.clone()
    by_bool = core()(q, k, v, AdditiveMask.of(keep, q.dtype))
    by_float = core()(q, k, v, AdditiveMask.of(additive, q.dtype))
    assert all(torch.equal(a, b) for a, b in zip(by_bool, by_float, strict=True))
    assert torch.equal(additive, before)


def test_a_mask_that_masks_nothing_is_no_mask():
    assert AdditiveMask.of(torch.ones(2, 7, dtype=torch.bool), torch.float32) is None
    assert AdditiveMask.of(torch.zeros(2, 1, 5, 7), torch.float32) is None
    assert AdditiveMask.of(None, torch.float32) is None


@pytest.mark.parametrize(
    "mask", [torch.ones(7), torch.ones(2, 7), torch.ones(2, 5, 7, dtype=torch.bool)], ids=["1d", "2d_float", "3d"]
)
def test_other_masks_are_refused_by_shape_and_type(mask):
    with pytest.raises(InputError, match=r"attention_mask is torch\.\w+ of shape .* expected \(batch, keys\) of bool"):
        AdditiveMask.of(mask, torch.float32)


@heads
@pytest.mark.parametrize("preset", ["w8a8", "w8a16"])
@pytest.mark.parametrize("calibrated", ["unpadded", "padded", "both"])
def test_masked_keys_weigh_nothing_whatever_calibration_saw(h, kv, preset, calibrated):
    """A masked logit saturates on the lower end of its grid; that end is low enough, and FILL did not stretch it."""
    q, k, v = qkv(h, kv)
    keep = padded(7, 4)
    mask = AdditiveMask.of(keep, q.dtype)
    piece = core(preset=preset)
    for given in {"unpadded": [None], "padded": [mask], "both": [None, mask]}[calibrated]:
        piece(q, k, v, given)
    set_qparams(piece)
    out, probs = piece(q, k, v, mask)
    expected, _ = plain(q, k, v, mask=keep[:, None, None, :])
    assert float(probs[1, :, :, 4:].max()) == 0.0
    assert sqnr_db(expected, out) > (20 if preset == "w8a8" else 60)
    grid = piece.site("masked_logits").qparams
    assert grid is not None
    logits = (q.unflatten(1, (kv, -1)) @ k.unsqueeze(2).transpose(-1, -2)).abs().max()
    assert float(grid.scale) * (grid.spec.qmax - grid.spec.qmin) < 2 * (float(logits) + 24) + 1  # FILL is 1e4


@heads
@masks
def test_one_product_per_head_is_the_same(h, kv, mask):
    """The numbers, the ranges that calibration finds, and what is on the grid but for a rounding here and there."""
    q, k, v = qkv(h, kv)
    given = AdditiveMask.of(mask(h), q.dtype)
    batched, single = core(8**-0.5), core(8**-0.5)
    for a, b in zip(batched(q, k, v, given), single(q, k, v, given, per_head=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for piece in (batched, single):
        set_qparams(piece)
    for (name, a), (_, b) in zip(batched.own_sites(), single.own_sites(), strict=True):
        assert a.qparams is not None
        assert b.qparams is not None, name
        torch.testing.assert_close(a.qparams.scale, b.qparams.scale, rtol=1e-5, atol=0, msg=name)
    one, other = batched(q, k, v, given)[0], batched(q, k, v, given, per_head=True)[0]
    steps = (one - other).abs() / batched.site("attn_out").qparams.scale
    assert float(steps.max()) < 3
    assert float((steps > 0.5).float().mean()) < 0.02


def test_a_graph_per_head_has_one_head_in_each_product():
    q, k, v = qkv(4, 2)
    piece = core()
    piece(q, k, v)
    set_qparams(piece)
    program = torch.export.export(piece, (q, k, v), {"per_head": True}, strict=False)
    products = [node for node in program.graph.nodes if str(node.target) == "aten.matmul.default"]
    assert len(products) == 8
    assert all(node.meta["val"].shape[:2] == (2, 1) for node in products)


@pytest.mark.parametrize("mask", [False, True], ids=["unpadded", "padded"])
@pytest.mark.parametrize("scaling", [1.0, 0.5], ids=["unscaled", "scaled"])
def test_each_site_is_in_the_graph_once_and_masks_only_where_there_is_padding(mask, scaling):
    q, k, v = qkv(4, 2)
    given = AdditiveMask.of(padded(7, 4), q.dtype) if mask else None
    piece = core(scaling)
    piece(q, k, v)
    set_qparams(piece)
    program = torch.export.export(piece, (q, k, v, given), strict=False)
    targets = [str(node.target) for node in program.graph.nodes]
    expected = {"logits", "probs", "attn_out"}
    expected |= {"mask", "masked_logits"} if mask else set()
    expected |= {"scaled_logits"} if scaling != 1.0 else set()
    buffers = program.graph_signature.inputs_to_buffers
    nodes = [n for n in program.graph.nodes if str(n.target) == "pyquant.fake_quantize.default"]
    used = [buffers[node.args[1].name].split(".")[1] for node in nodes]
    assert sorted(used) == sorted(expected)
    assert targets.count("aten.add.Tensor") == int(mask)
    with torch.no_grad():
        ours, theirs = piece(q, k, v, given), program.module()(q, k, v, given)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_runs_in_every_phase(dtype):
    q, k, v = (t.to(dtype) for t in qkv(4, 2))
    mask = AdditiveMask.of(padded(7, 4), dtype)
    assert mask is not None
    assert float(mask.values.min()) == pytest.approx(FILL, rel=1e-2)
    piece = core()
    out, _ = piece(q, k, v, mask)
    expected, _ = plain(*(t.float() for t in (q, k, v)), mask=padded(7, 4)[:, None, None, :])
    torch.testing.assert_close(out.float(), expected, rtol=5e-2, atol=5e-2)
    set_qparams(piece)
    quantized, _ = piece(q, k, v, mask)
    assert quantized.dtype == dtype
    torch.testing.assert_close(quantized.float(), expected, rtol=5e-2, atol=5e-2)
