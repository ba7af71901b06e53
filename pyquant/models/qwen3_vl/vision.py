# SPDX-License-Identifier: Apache-2.0
"""What Qwen3-VL's vision tower is made of: patch embedding, rotary tables, attention, MLP, block, patch merger.

It owns these modules' arithmetic. The tower that strings them together is tower.py, what grids mean is grids.py.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pyquant.errors import InputError, ProfileError, UnknownModuleError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.qwen3_vl.grids import Segments, position_ids
from pyquant.models.qwen3_vl.hf import hf_class
from pyquant.models.qwen3_vl.pixels import require_floating
from pyquant.models.qwen3_vl.vision_static import (
    VisionProfile,
    VisionTables,
    require_vision_profile,
    vision_graph,
    weight_of,
)
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AttentionCore
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype, as_float32
from pyquant.wrap.registry import register, wrap
from pyquant.wrap.rotary import Rotary, RotaryTables
from pyquant.wrap.snapshot import Snapshot


@register(hf_class("Qwen3VLVisionPatchEmbed"))
class QuantQwen3VLVisionPatchEmbed(QModule):
    """A Linear over the pixels of one patch.

    HF writes a Conv3d whose kernel and stride both are one patch, over rows of one patch each: a product with
    the flattened kernel. `proj` is that Linear, with a kernel of its own.
    """

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        linear = _as_linear(fp.proj, ctx.path)
        self.proj = wrap(linear, ctx.child("proj"))
        self.snapshot = Snapshot.of(fp, ctx.path, fp.proj.weight, fp.proj.bias)
        self.pixels = linear.in_features

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Pixels (N, channels * frames * height * width), or anything that reshapes to it -> (N, V)."""
        require_floating(hidden_states)
        if hidden_states.numel() % self.pixels:
            raise InputError(
                f"pixel_values of shape {tuple(hidden_states.shape)} are no rows of {self.pixels} pixels, which one "
                "patch has; use transformers' image processor"
            )
        if hidden_states.dim() != 2 or hidden_states.shape[-1] != self.pixels:
            hidden_states = hidden_states.reshape(-1, self.pixels)
        out: Tensor = self.proj(as_dtype(hidden_states, self.proj.get_parameter("weight").dtype))
        return out


@torch.inference_mode(False)
@torch.no_grad()
def _as_linear(conv: Any, path: str) -> nn.Linear:
    """`conv` as a Linear with the kernel (V, channels * frames * height * width).

    Raises UnknownModuleError unless the convolution takes one patch at a time.
    """
    whole = isinstance(conv, nn.Conv3d) and tuple(conv.kernel_size) == tuple(conv.stride)
    plain = whole and conv.groups == 1 and not any(n != 1 for n in conv.dilation)
    if not plain or (conv.padding != "valid" and any(conv.padding)):
        raise UnknownModuleError(
            f"{path + '.' if path else ''}proj is {conv}, which is no linear map of single patches; that takes a "
            "Conv3d with stride equal to kernel_size, no padding, no dilation and one group"
        )
    weight = conv.weight
    linear = nn.Linear(
        weight[0].numel(), weight.shape[0], bias=conv.bias is not None, device=weight.device, dtype=weight.dtype
    )
    linear.weight.copy_(weight.reshape(linear.weight.shape))
    if conv.bias is not None:
        linear.bias.copy_(conv.bias)
    return linear.requires_grad_(weight.requires_grad)


@register(hf_class("Qwen3VLVisionRotaryEmbedding"))
class QuantQwen3VLVisionRotaryEmbedding(QModule):
    """HF's own rotary module, a copy. No site: cos and sin go through those of the rotation that uses them."""

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.hf = copy.deepcopy(fp)  # it has no parameters, and `.to` must not move fp's
        # (x, position_ids) -> cos, sin; before that (position_ids) -> angles; before that (seqlen) -> a table of them
        self.takes = tuple(inspect.signature(fp.forward).parameters)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever HF's module of this release takes and returns."""
        return self.hf(*args, **kwargs)

    def tables(self, like: Tensor, ids: Tensor) -> RotaryTables:
        """For patches at (row, column) `ids` (N, 2), in float32 as HF rotates, on the device of `like`."""
        if "x" in self.takes:
            cos, sin = self.hf(like, ids)
        else:
            angles = self.hf(int(ids.max()) + 1)[ids].flatten(1) if "seqlen" in self.takes else self.hf(ids)
            angles = torch.cat([angles, angles], dim=-1)
            cos, sin = angles.cos(), angles.sin()
        return rotary_tables((cos, sin))

    def as_export_module(self, profile: Any) -> GraphAdapter:
        """Raises ProfileError: tables of fixed positions are constants."""
        raise ProfileError(
            "rotary tables of fixed grids are constants, so there is no graph of them alone; export the attention, "
            "the block or the vision model with qwen3_vl.VisionProfile, or call tables()"
        )


def rotary_tables(position_embeddings: tuple[Tensor, Tensor] | RotaryTables) -> RotaryTables:
    """(cos, sin) as HF passes them around, each (N, head_dim), in float32; tables pass as they are."""
    if isinstance(position_embeddings, RotaryTables):
        return position_embeddings
    cos, sin = position_embeddings
    return RotaryTables.of((as_float32(cos).unsqueeze(0), as_float32(sin).unsqueeze(0)), parts=1)


@register(hf_class("Qwen3VLVisionAttention"))
class QuantQwen3VLVisionAttention(QModule):
    """Bidirectional attention within each frame. Query, key and value are one product, and share its grid.

    Segments of one length that follow each other are a batch of the core; where lengths differ it runs once for each,
    so that no mask, and nothing of size N * N, exists.
    """

    ACCEPTED = ("max_seqlen", "rotary_pos_emb")  # for flash attention; of old releases, which do not read it
    CHILDREN = ("qkv", "proj")
    SITES = {"act_in": Role.ACTIVATION}
    PAIRS = (("qkv", "proj"),)

    qkv: QModule
    proj: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.num_heads, self.head_dim = int(fp.num_heads), int(fp.head_dim)
        self.q_rotary = Rotary(ctx.child("q_rotary"), parts=1)
        self.k_rotary = Rotary(ctx.child("k_rotary"), parts=1)
        self.core = AttentionCore(ctx.child("core"), scaling=float(fp.scaling))

    def pair_rows(self, producer: str, consumer: str) -> tuple[Tensor | None, int | None]:
        """The values are the last third of what `qkv` makes."""
        width = self.num_heads * self.head_dim
        return torch.arange(2 * width, 3 * width, dtype=torch.int64, device="cpu"), self.head_dim

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor | Segments,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables | None = None,
        *,
        per_head: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (N, V), cu_seqlens (segments + 1,), position_embeddings (cos, sin) each (N, head_dim)
        -> (N, V).

        `per_head`: see AttentionCore. Further keywords are accepted as HF accepts them (`max_seqlen`,
        `rotary_pos_emb`), and not needed. Raises InputError for segments that do not add up to N.
        """
        if position_embeddings is None:
            raise InputError("the vision attention needs position_embeddings=(cos, sin), each (patches, head_dim)")
        tables, dtype = rotary_tables(position_embeddings), hidden_states.dtype
        rows, width = hidden_states.shape[0], self.num_heads * self.head_dim
        segments = Segments.of(cu_seqlens, rows)

        fused = self.qkv(self.q("act_in", hidden_states))
        query, key, value = (
            fused[:, part * width : (part + 1) * width].reshape(1, rows, self.num_heads, self.head_dim)
            for part in range(3)
        )
        query = as_dtype(self.q_rotary(as_float32(query), tables), dtype)
        key = as_dtype(self.k_rotary(as_float32(key), tables), dtype)
        outs = []
        for fold in segments.folds(self.num_heads):
            heads = (fold.count, fold.length, self.num_heads, self.head_dim)
            q, k, v = (x[:, fold.start : fold.stop].reshape(heads).transpose(1, 2) for x in (query, key, value))
            outs.append(self.core(q, k, v, per_head=per_head)[0].transpose(1, 2).reshape(-1, width))
        out: Tensor = self.proj(outs[0] if len(outs) == 1 else torch.cat(outs))
        return out

    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """hidden_states (N, V) -> attn_output (N, V), for the grids of `profile`."""
        return _adapter(self, self, profile, "attn_output", "qwen3_vl_vision_attention")


@register(hf_class("Qwen3VLVisionMLP"))
class QuantQwen3VLVisionMLP(QModule):
    """Two linears with a GELU between (by tanh, in the published models)."""

    CHILDREN = ("linear_fc1", "act_fn", "linear_fc2")

    linear_fc1: QModule
    act_fn: QModule
    linear_fc2: QModule

    def forward(self, hidden_state: Tensor) -> Tensor:
        out: Tensor = self.linear_fc2(self.act_fn(self.linear_fc1(hidden_state)))
        return out


@register(hf_class("Qwen3VLVisionBlock"))
class QuantQwen3VLVisionBlock(QModule):
    """Attention and MLP, a norm before each, each added to the residual stream."""

    ACCEPTED = ("rotary_pos_emb",)
    CHILDREN = ("norm1", "norm2", "attn", "mlp")
    SITES = {"act_in": Role.ACTIVATION, "attn_residual": Role.ACTIVATION, "act_out": Role.ACTIVATION}
    FEEDS = {"norm1": ("attn.qkv",), "norm2": ("mlp.linear_fc1",)}
    READS = ("norm1", "norm2")
    WRITES = ("attn.proj", "mlp.linear_fc2")

    norm1: QModule
    norm2: QModule
    attn: QuantQwen3VLVisionAttention
    mlp: QModule

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor | Segments,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables | None = None,
        *,
        per_head: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (N, V) -> (N, V); the other arguments as QuantQwen3VLVisionAttention takes them."""
        x = self.q("act_in", hidden_states)
        attended = self.attn(self.norm1(x), cu_seqlens, position_embeddings=position_embeddings, per_head=per_head)
        x = self.q("attn_residual", x + attended)
        return self.q("act_out", x + self.mlp(self.norm2(x)))

    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """hidden_states (N, V) -> hidden_states_out (N, V), for the grids of `profile`."""
        return _adapter(self, self.attn, profile, "hidden_states_out", "qwen3_vl_vision_block")


@register(hf_class("Qwen3VLVisionPatchMerger"))
class QuantQwen3VLVisionPatchMerger(QModule):
    """Patches of one token side by side, through two linears with an exact GELU between.

    The norm is over each patch (the tower's end) or over all patches of a token (deepstack).
    """

    CHILDREN = ("norm", "linear_fc1", "act_fn", "linear_fc2")
    FEEDS = {"norm": ("linear_fc1",)}

    norm: QModule
    linear_fc1: QModule
    act_fn: QModule
    linear_fc2: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.hidden_size = int(fp.hidden_size)
        self.use_postshuffle_norm = bool(fp.use_postshuffle_norm)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, V) -> (N / merge**2, D)."""
        if self.use_postshuffle_norm:
            x = self.norm(x.reshape(-1, self.hidden_size))
        else:
            x = self.norm(x).reshape(-1, self.hidden_size)
        out: Tensor = self.linear_fc2(self.act_fn(self.linear_fc1(x)))
        return out


def _adapter(
    module: QModule, attention: QuantQwen3VLVisionAttention, profile: VisionProfile, output: str, name: str
) -> GraphAdapter:
    """A block or its attention alone: the rotary tables come from HF's rotary module, built from the config."""
    config, weight = attention.config, weight_of(module)
    grids = require_vision_profile(profile, module).check(config.spatial_merge_size)
    make = hf_class("Qwen3VLVisionRotaryEmbedding")
    takes_config = "config" in inspect.signature(make.__init__).parameters
    rotary = wrap(make(config) if takes_config else make(attention.head_dim // 2), WrapContext("", module.policy))
    assert isinstance(rotary, QuantQwen3VLVisionRotaryEmbedding)
    ids = position_ids(grids, config.spatial_merge_size, weight.device)
    tables = VisionTables(None, rotary.to(weight.device).tables(weight, ids), Segments.of_grids(grids))
    spec = TensorSpec((profile.patches, attention.num_heads * attention.head_dim), weight.dtype)
    return vision_graph(module, profile, tables, _call, inputs={"hidden_states": spec}, outputs=(output,), name=name)


def _call(module: QModule, x: Tensor, tables: VisionTables) -> tuple[Tensor, ...]:
    return (module(x, tables.segments, position_embeddings=tables.rotary, per_head=tables.per_head),)
