# SPDX-License-Identifier: Apache-2.0
"""What is easy to get wrong in Gemma4, one test each, with an oracle of its own where transformers is not one.

Traps tested elsewhere: router and experts test_gemma4_experts.py and test_gemma4_moe.py, audio test_gemma4_audio_*.py,
pooling_kernel_size=1 test_gemma4_eager.py, rings of sliding layers tests/unit/decoder/test_windows.py.
"""

from __future__ import annotations

import functools
from typing import Any

import gemma4_model_tiny as tiny
import gemma4_text_tiny as text_tiny
import pytest
import torch
from gemma4_model_tiny import IMAGE, VIDEO, inputs
from gemma4_text_tiny import VOCAB, WINDOW, F, S, ids
from hf_names import CACHE
from torch import Tensor
from transformers import DynamicCache

import pyquant
from pyquant.models.gemma4.text.model import visual_blocks
from pyquant.wrap import Phase, set_phase

ONE: dict[str, Any] = {
    "layer_types": [S, F],  # transformers makes the last layer a full one
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
}


def floating(fp: Any) -> Any:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    return q


@torch.no_grad()
def one_layer(fp: Any) -> Any:
    """The first layer alone mixes tokens: the second one's attention adds nothing."""
    getattr(fp, "language_model", fp).layers[1].self_attn.o_proj.weight.zero_()
    return floating(fp)


@functools.cache
def pair(form: str = "e2b") -> tuple[Any, Any]:
    fp = tiny.conditional(form)
    return fp, floating(fp)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


@torch.no_grad()
def touched(q: Any, place: int, length: int, **more: Any) -> list[int]:
    """The places whose outputs change with the token at `place`."""
    row = ids(1, length)
    other = row.clone()
    other[0, place] = 3 + (row[0, place] - 2) % (VOCAB - 3)
    before, after = (q(input_ids=each, use_cache=False, **more)[0] for each in (row, other))
    return [int(i) for i in (before != after).any(-1)[0].nonzero()]


# --- per-layer inputs ---


@torch.no_grad()
def test_per_layer_inputs_use_hidden_states_after_fusion_and_the_padding_row_of_the_table() -> None:
    """(RMSNorm(W h / sqrt(D)) + sqrt(P) E[id]) / sqrt(2), with the rows of the image in h and E[PAD] at its places."""
    fp, q = pair()
    given = inputs((2, ("image", 4, 4), 2), mask=False)
    text, seen, width = fp.model.language_model, [], 6
    handle = q.model.language_model.layers[3].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["per_layer_input"]), with_kwargs=True
    )
    q(**given)
    handle.remove()
    image = given["input_ids"][0] == IMAGE
    h = text.embed_tokens.weight[given["input_ids"][0].masked_fill(image, 0)] * 24**0.5
    h[image] = torch.cat(
        [*fp.get_image_features(given["pixel_values"], given["image_position_ids"]).pooler_output]
    ).view(-1, 24)
    projected = (h @ text.per_layer_model_projection.weight.T * 24**-0.5).view(-1, 7, width)
    scale = (projected.pow(2).mean(-1, keepdim=True) + text.config.rms_norm_eps) ** -0.5
    normed = projected * scale * text.per_layer_projection_norm.weight
    table = text.embed_tokens_per_layer.weight[given["input_ids"][0].masked_fill(image, 0)].view(-1, 7, width)
    close(seen[0][0], ((normed + width**0.5 * table) * 2**-0.5)[:, 3])


@torch.no_grad()
def test_embeddings_of_placeholders_with_a_padding_row_that_is_not_zero() -> None:
    """transformers masks with the unscaled padding row, which it then does not find in the table."""
    fp, q = pair()
    given = inputs((2, ("image", 4, 4), 2), mask=False)
    input_ids = given.pop("input_ids")
    embeds = fp.get_input_embeddings()(input_ids)
    assert bool(fp.model.language_model.embed_tokens.weight[0].any())
    close(q(inputs_embeds=embeds, **given).logits, q(input_ids=input_ids, **given).logits)


# --- keys ---


@pytest.mark.parametrize(
    ("layers", "every", "shared", "owners"), [(35, 5, 20, (13, 14)), (42, 6, 18, (22, 23))], ids=["E2B", "E4B"]
)
def test_owners_of_shared_keys(layers: int, every: int, shared: int, owners: tuple[int, int]) -> None:
    kinds = [F if i % every == every - 1 else S for i in range(layers)]
    fp = text_tiny.text_model(num_hidden_layers=layers, layer_types=kinds, num_kv_shared_layers=shared, hidden_size=8)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    readers = {i: kind.shares for i, kind in enumerate(q.kinds) if kind.shares is not None}  # type: ignore[arg-type]
    assert readers == {i: owners[kinds[i] == F] for i in range(layers - shared, layers)}
    for i in readers:
        attention = q.layers[i].self_attn  # type: ignore[index, union-attr]
        assert attention.k_proj is attention.v_proj is attention.k_norm is attention.v_norm is None


def test_full_layers_have_a_head_dim_of_their_own_and_key_heads_only_where_keys_are_values() -> None:
    for form, heads in (("e2b", 2), ("k_eq_v", 1)):
        q = pyquant.prepare(text_tiny.text_model(form, num_global_key_value_heads=1), pyquant.Policy.preset("w8a8"))
        assert [(k.head_dim, k.kv_heads) for k in q.kinds[1:3]] == [(8, 2), (16, heads)]  # type: ignore[index]
        assert (q.layers[2].self_attn.v_proj is None) == (form == "k_eq_v")  # type: ignore[index, union-attr]


@torch.no_grad()
def test_values_are_projected_keys_before_their_norm() -> None:
    q = floating(text_tiny.text_model("k_eq_v"))
    attention, x = q.layers[2].self_attn, torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(0))
    tables = q.tables(x, torch.arange(3)[None, None])[attention.kind.variant]
    raw = attention.k_proj(x).view(1, 3, 1, 16)
    value = raw * (raw.pow(2).mean(-1, keepdim=True) + q.config.rms_norm_eps) ** -0.5
    close(attention.keys(x, tables)[1], value.transpose(1, 2))


@torch.no_grad()
def test_a_sliding_cache_returns_every_key_at_prefill_and_readers_see_them() -> None:
    q = floating(text_tiny.text_model())
    keys: list[int] = []
    handle = q.layers[5].self_attn.register_forward_hook(lambda module, args, out: keys.append(out[1].shape[-1]))
    cache = DynamicCache(config=q.config)
    q(input_ids=ids(1, 3 * WINDOW), **{CACHE: cache})
    q(input_ids=ids(1, 1), **{CACHE: cache})
    handle.remove()
    assert keys == [3 * WINDOW, WINDOW]
    assert cache.layers[0].keys.shape[2] == WINDOW - 1


@torch.no_grad()
def test_shared_keys_without_per_layer_inputs() -> None:
    """transformers 5.23 on slices per-layer inputs that are not there, unless logits_to_keep is a tensor."""
    fp = text_tiny.causal_lm("e2b", hidden_size_per_layer_input=0)
    q, given = floating(fp), {"input_ids": ids(2, 9)}
    expected = fp(**given, logits_to_keep=torch.arange(9)).logits
    close(q(**given).logits, expected)
    close(q(**given, logits_to_keep=1).logits, expected[:, -1:])
    assert q.generate(**given, max_new_tokens=3, do_sample=False).shape == (2, 12)


def test_layers_that_read_shared_keys_have_an_mlp_of_twice_the_width() -> None:
    q = pyquant.prepare(text_tiny.text_model(), pyquant.Policy.preset("w8a8"))
    assert [layer.mlp.gate_proj.weight.shape[0] for layer in q.layers] == [20] * 4 + [40] * 3  # type: ignore[union-attr]


# --- masks ---


def test_a_window_counts_the_token_itself() -> None:
    q = one_layer(text_tiny.text_model(**ONE))
    assert touched(q, 3, 12) == list(range(3, 3 + WINDOW))


def test_window_of_a_bidirectional_model_is_half_and_one_to_both_sides() -> None:
    config = text_tiny.text_config("all", **ONE, sliding_window=512)
    assert config.sliding_window == 257
    q = one_layer(text_tiny.text_model("all", **ONE))
    assert q.config.sliding_window == 4
    if getattr(q.config, "is_causal", True):
        pytest.skip("before 5.12 transformers gives such a model causal masks")
    assert touched(q, 10, 20) == list(range(6, 15))


def test_an_image_beside_a_video_is_one_block_and_audio_is_none() -> None:
    blocks = visual_blocks(torch.tensor([[0, 1, 1, 2, 0, 3, 3, 1]]), WINDOW, 0)
    assert blocks is not None
    assert blocks.ids.tolist() == [[-1, 0, 0, 0, -1, -1, -1, 1]]
    types = torch.tensor([[0, 1, 1, 2, 2, 0, 3, 3, 3, 0]])
    q = one_layer(tiny.model("vision", **ONE))
    for place, expected in ((4, [1, 2, 3, 4, 5, 6, 7, 8]), (8, [8, 9])):
        assert touched(q, place, 10, mm_token_type_ids=types) == expected


@torch.no_grad()
def test_full_layers_stay_causal_where_images_see_themselves() -> None:
    types = torch.tensor([[0, 1, 1, 1, 0, 0]])
    full = visual_blocks(types, None, 0)
    q = floating(tiny.model("vision", **ONE | {"layer_types": [F], "num_hidden_layers": 1}))
    assert touched(q, 3, 6, mm_token_type_ids=types) == ([3, 4, 5] if full is None else [1, 2, 3, 4, 5])


@torch.no_grad()
def test_decode_drops_blocks_and_takes_types_since_the_start() -> None:
    """A token of text after the image sees what is before it; its own type changes nothing, nor do those before."""
    fp, q = pair("vision")
    whole = inputs((1, ("image", 8, 4), 5), mask=False)
    types = whole["mm_token_type_ids"]
    expected = fp(**whole).logits[:, -2:]
    for given in (None, types[:, -2:], types):
        cache = DynamicCache(config=fp.config.text_config)
        head = {**whole, "input_ids": whole["input_ids"][:, :-2], "mm_token_type_ids": types[:, :-2]}
        q(**head, **{CACHE: cache})
        got = q(input_ids=whole["input_ids"][:, -2:], mm_token_type_ids=given, **{CACHE: cache}).logits
        close(got, expected)


# --- numbers ---


@torch.no_grad()
def test_soft_cap_is_in_the_logits_and_keeps_their_order() -> None:
    fp = text_tiny.causal_lm()
    plain = text_tiny.causal_lm(final_logit_softcapping=None)
    given = {"input_ids": ids(2, 9)}
    logits, free = floating(fp)(**given).logits, floating(plain)(**given).logits
    close(logits, 3.0 * torch.tanh(free / 3.0))
    assert float(free.abs().max()) > 3.0 > float(logits.abs().max())
    assert torch.equal(logits.argmax(-1), free.argmax(-1))


@torch.no_grad()
def test_factor_of_embeddings_is_rounded_in_bfloat16() -> None:
    """sqrt(24) = 4.898979 is 4.90625 in bfloat16."""
    fp = text_tiny.text_model().to(torch.bfloat16)
    q = floating(fp)
    assert q.embed_tokens.factor == 4.90625
    assert torch.equal(q.embed_tokens(ids(2, 5)), fp.embed_tokens(ids(2, 5)))
    assert floating(text_tiny.text_model()).embed_tokens.factor == pytest.approx(24**0.5, rel=1e-7)


@torch.no_grad()
def test_proportional_rotary_tables_leave_what_does_not_rotate() -> None:
    q = floating(text_tiny.text_model())
    cos, sin = q.rotary_emb(torch.zeros(1, 4, 24), torch.arange(4)[None], F)
    turned = int(16 * 0.25) // 2
    rest = [*range(turned, 8), *range(8 + turned, 16)]
    assert torch.equal(cos[..., rest], torch.ones(1, 4, len(rest)))
    assert torch.equal(sin[..., rest], torch.zeros(1, 4, len(rest)))
    assert bool((sin[:, 1:, :turned] != 0).all())


@torch.no_grad()
def test_logits_of_attention_are_not_scaled() -> None:
    q = floating(text_tiny.text_model(**ONE))
    attention = q.layers[0].self_attn
    x = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0))
    tables = q.tables(x, torch.zeros(1, 1, 2, dtype=torch.int64))[attention.kind.variant]
    mask = torch.zeros(1, 1, 2, 2)
    query = attention.normed(attention.q_norm, attention.heads(attention.q_proj(x))).transpose(1, 2)
    key = attention.keys(x, tables)[0].repeat_interleave(2, dim=1)
    close(attention(x, tables, mask)[1], torch.softmax(query @ key.transpose(2, 3), dim=-1))


@torch.no_grad()
def test_layer_scalar_does_not_change_the_callers_tensor() -> None:
    """transformers multiplies in place."""
    q = floating(text_tiny.text_model(**ONE))
    assert float(q.layers[0].layer_scalar) != 1.0
    x = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    tables = q.tables(x, torch.zeros(1, 1, 2, dtype=torch.int64))[q.kinds[0].variant]
    q.layers[0](x, position_embeddings=tables)
    assert torch.equal(x, before)


@torch.no_grad()
def test_video_frames_are_images_with_marks_of_their_own() -> None:
    """Rows of videos come after those of images, whatever their order in the prompt."""
    fp, q = pair()
    given = inputs((1, ("video", 2, 2, 4), 2, ("image", 4, 4), 1), mask=False)
    assert given["input_ids"][0, 1] == VIDEO
    close(q(**given).logits, fp(**given).logits)
