# SPDX-License-Identifier: Apache-2.0
"""The two ends of Gemma4's vision tower: pixels of patches in, pooled soft tokens out.

It owns the embedding of patches and the pooling as quantized arithmetic. Positions become tensors in tables.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.hf import hf_class
from pyquant.models.gemma4.vision.adapter import static_graph
from pyquant.models.gemma4.vision.profiles import VisionProfile, require_vision_profile
from pyquant.models.gemma4.vision.tables import Pooling, StaticTables, padding_of, position_embeddings
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype, as_float32
from pyquant.wrap.registry import register, wrap
from pyquant.wrap.snapshot import Snapshot


@register(hf_class("Gemma4VisionPatchEmbedder"))
class QuantGemma4VisionPatchEmbedder(QModule):
    """Linear over the pixels of a patch, plus the embedding of its x and of its y.

    Gemma4 maps pixels from [0, 1] to [-1, 1] first: W (2 (p - 0.5)) = (2 W) p - W 1. That is folded into the
    projection (a doubled kernel and a bias, the float model's own kernel stays), which spares two operators on pixels.
    A projection with grids of its own (of a quantization-aware checkpoint) stays as it is, and the operators are there.
    """

    SITES = {"position_embeddings": Role.ACTIVATION, "act_out": Role.ACTIVATION}
    CENTERING = {"pixels": Role.ACTIVATION, "shifted": Role.ACTIVATION, "centered": Role.ACTIVATION}

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.folded = _is_plain(fp.input_proj)
        projection = fp.input_proj
        if self.folded:
            self.snapshot = Snapshot.of(fp, ctx.path, projection.weight, projection.bias)
            projection = _centered(projection)
        self.input_proj = wrap(projection, ctx.child("input_proj"))
        self.position_embedding_table = fp.position_embedding_table
        self.pixels = int(fp.input_proj.in_features)

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        return cls.SITES if _is_plain(fp.input_proj) else {**cls.CENTERING, **cls.SITES}

    def worth_observing(self, pixel_values: Tensor, pixel_position_ids: Tensor | None) -> Tensor:
        """While calibrating, the pixels with zeros at padding: what a caller left there is no data."""
        if not self.observes or pixel_position_ids is None:
            return pixel_values
        return pixel_values.masked_fill(padding_of(pixel_position_ids).unsqueeze(-1), 0)

    def embeddings(self, pixel_position_ids: Tensor, padding: Tensor) -> Tensor:
        """(B, P, 2), (B, P) -> (B, P, V), from the float table; its site is in forward."""
        return position_embeddings(self.position_embedding_table, pixel_position_ids, padding)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_position_ids: Tensor | None = None,
        padding_positions: Tensor | None = None,
        *,
        position_embeddings: Tensor | None = None,
    ) -> Tensor:
        """pixel_values (B, P, 3 * patch**2) in [0, 1] -> (B, P, V).

        Positions as HF gives them, or `position_embeddings` that `embeddings` made of them.
        """
        if not pixel_values.is_floating_point():
            raise InputError(
                f"pixel_values are {pixel_values.dtype}, expected floating point from 0 to 1; convert to float and "
                "divide bytes by 255 (gemma4.patchify and transformers' image processor do)"
            )
        if position_embeddings is None:
            if pixel_position_ids is None:
                raise InputError("the patch embedder needs pixel_position_ids (batch, patches, 2)")
            pixel_values = self.worth_observing(pixel_values, pixel_position_ids)
            padding = padding_of(pixel_position_ids) if padding_positions is None else padding_positions
            position_embeddings = self.embeddings(pixel_position_ids, padding)
        pixels = as_dtype(pixel_values, self.position_embedding_table.dtype)
        if not self.folded:
            pixels = self.q("centered", self.q("shifted", self.q("pixels", pixels) - 0.5) * 2.0)
        patches = self.input_proj(pixels)
        return self.q("act_out", patches + self.q("position_embeddings", position_embeddings))

    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """pixel_values (B, P, 3 * patch**2) -> hidden_states (B, P, V), at the positions of `profile`."""
        require_vision_profile(profile, self)
        return static_graph(
            self,
            StaticTables(position_embeddings=self.static_embeddings(profile)),
            _embedder_arguments,
            inputs={"pixel_values": self.pixel_spec(profile)},
            output="hidden_states",
            name="gemma4_vision_patch_embedder",
        )

    @torch.no_grad()
    def static_embeddings(self, profile: VisionProfile) -> Tensor:
        """`embeddings` of a profile. Raises ProfileError for positions beyond the table."""
        profile.check_table(self.position_embedding_table.shape[1])
        ids = profile.positions.to(self.position_embedding_table.device)
        return self.embeddings(ids, padding_of(ids))

    def pixel_spec(self, profile: VisionProfile) -> TensorSpec:
        """The graph input `pixel_values`."""
        return TensorSpec((*profile.shape, self.pixels), torch.float32)


def _embedder_arguments(tables: StaticTables) -> dict[str, Any]:
    return {"position_embeddings": tables.position_embeddings}


def _is_plain(projection: nn.Module) -> bool:
    """Whether its kernel can be folded: a subclass of Linear has arithmetic of its own."""
    return type(projection) is nn.Linear


@torch.inference_mode(False)
@torch.no_grad()
def _centered(linear: nn.Linear) -> nn.Linear:
    """A Linear with a bias that does on pixels in [0, 1] what `linear` does on pixels in [-1, 1]."""
    weight = linear.weight
    new = nn.Linear(linear.in_features, linear.out_features, device=weight.device, dtype=weight.dtype)
    shift = -weight.float().sum(dim=1)
    new.weight.copy_(weight * 2)
    new.bias.copy_(shift if linear.bias is None else shift + linear.bias.float())
    return new.requires_grad_(weight.requires_grad)


@register(hf_class("Gemma4VisionPooler"))
class QuantGemma4VisionPooler(QModule):
    """Average over k x k patches times sqrt(V), in float32, as one product with a matrix made of positions."""

    SITES = {"act_in": Role.ACTIVATION, "pool_weight": Role.CONSTANT, "act_out": Role.ACTIVATION}

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.hidden_size = int(fp.hidden_size)
        self.root_hidden_size = float(fp.root_hidden_size)

    def pooling(self, pixel_position_ids: Tensor, padding: Tensor, length: int) -> Pooling:
        """The pools that follow from the positions; `length` tokens per image."""
        return Pooling.of(pixel_position_ids, padding, length, self.root_hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        pixel_position_ids: Tensor | None = None,
        padding_positions: Tensor | None = None,
        output_length: int | None = None,
        *,
        pooling: Pooling | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states (B, P, V) -> (B, output_length, V) in float32, and which tokens are real (B, output_length).

        Positions as HF gives them, or a `pooling` made of them; a static one has no mask to return.
        """
        if pooling is None:
            if pixel_position_ids is None or output_length is None:
                raise InputError("the pooler needs pixel_position_ids (batch, patches, 2) and output_length")
            padding = padding_of(pixel_position_ids) if padding_positions is None else padding_positions
            pooling = self.pooling(pixel_position_ids, padding, output_length)
        x = self.q("act_in", as_float32(hidden_states))
        return self.q("act_out", torch.matmul(self.q("pool_weight", pooling.weight), x)), pooling.valid

    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """hidden_states (B, P, V) -> pooled (B, L, V), L the most real tokens that an image of `profile` has."""
        require_vision_profile(profile, self)
        return static_graph(
            self,
            StaticTables(pooling=self.static_pooling(profile, None)),
            _pooler_arguments,
            inputs={"hidden_states": TensorSpec((*profile.shape, self.hidden_size), torch.float32)},
            output="pooled",
            name="gemma4_vision_pooler",
        )

    def static_pooling(self, profile: VisionProfile, kernel: int | None) -> Pooling:
        """`pooling` of a profile, for a model's `kernel` or the profile's own. Raises ProfileError unless they fit."""
        k = profile.check_kernel(kernel)
        ids = profile.positions
        return self.pooling(ids, padding_of(ids), ids.shape[1] // k**2).static()


def _pooler_arguments(tables: StaticTables) -> dict[str, Any]:
    return {"pooling": tables.pooling}
