# SPDX-License-Identifier: Apache-2.0
"""VisionProfile, the grids of one static vision graph, and the graph that owns all tensors made of them.

It owns the calling convention of the tower's graphs. What a grid means is grids.py, the arithmetic is the wrappers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn

from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.qwen3_vl.grids import Grid, Segments, count_of, fault_of
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule
from pyquant.wrap.rotary import RotaryTables


@dataclass(frozen=True)
class VisionProfile:
    """The images and videos of one vision graph: `VisionProfile(((1, 4, 6), (2, 4, 4)))`.

    `grids`: frames, height and width in patches, one triple each in the order of pixel_values; a single triple is
    allowed. An image has one frame. `attention`: all heads in one product, or one product per head. Raises
    ProfileError for what no model could accept; what contradicts one model is raised when it is exported.
    """

    grids: Any
    attention: Literal["batched", "per_head"] = "batched"

    def __post_init__(self) -> None:
        given = self.grids.tolist() if isinstance(self.grids, Tensor) else self.grids
        if isinstance(given, Sequence) and given and hasattr(given[0], "__index__"):
            given = (given,)
        try:
            grids = tuple((count_of(t), count_of(h), count_of(w)) for t, h, w in given)
        except (TypeError, ValueError) as error:
            raise ProfileError(
                "grids are triples of integers (frames, height, width), in patches, one for each image or video; got "
                f"{self.grids!r}"
            ) from error
        if not grids:
            raise ProfileError("a VisionProfile needs at least one grid (frames, height, width)")
        for grid in grids:
            if fault := fault_of(grid, 1):
                raise ProfileError(f"the grid {grid} is not possible: {fault}")
        if self.attention not in ("batched", "per_head"):
            raise ProfileError(f"VisionProfile.attention is 'batched' or 'per_head', got {self.attention!r}")
        object.__setattr__(self, "grids", grids)

    @property
    def name(self) -> str:
        """`vision_t1_h4_w6`; of several grids, one after the other."""
        return "vision_" + "_".join(f"t{t}_h{h}_w{w}" for t, h, w in self.grids)

    @property
    def patches(self) -> int:
        """Rows of pixel_values."""
        return sum(t * h * w for t, h, w in self.grids)

    def tokens(self, merge: int) -> int:
        """Rows of image_embeds, for a model with this spatial_merge_size. Raises ProfileError as `check`."""
        self.check(merge)
        return self.patches // merge**2

    def check(self, merge: int) -> tuple[Grid, ...]:
        """The grids, if a model that merges `merge` x `merge` patches can take them; else ProfileError."""
        for grid in self.grids:
            if fault := fault_of(grid, merge):
                raise ProfileError(f"the grid {grid} does not fit this model: {fault}")
        grids: tuple[Grid, ...] = self.grids
        return grids


def require_vision_profile(profile: Any, module: object) -> VisionProfile:
    """The profile. Raises ProfileError for one of another kind, which has no grids."""
    if not isinstance(profile, VisionProfile):
        raise ProfileError(
            f"{type(module).__name__} needs the grids of its images: export it with qwen3_vl.VisionProfile(((frames, "
            f"height, width), ...)), got {type(profile).__name__}"
        )
    return profile


@dataclass(frozen=True)
class VisionTables:
    """What the grids of one call mean to the tower: pos_embeds (N, V), rotary tables, segments of attention; and
    whether that takes one head at a time."""

    pos_embeds: Tensor | None
    rotary: RotaryTables
    segments: Segments
    per_head: bool = False


def vision_graph(
    module: QModule,
    profile: VisionProfile,
    tables: VisionTables,
    call: Callable[[Any, Tensor, VisionTables], tuple[Tensor, ...]],
    *,
    inputs: dict[str, TensorSpec],
    outputs: tuple[str, ...],
    name: str,
) -> GraphAdapter:
    """`call(module, x, tables)` as a graph from one input to `outputs`. The graph owns the tables."""
    segments, per_head = tables.segments, profile.attention == "per_head"

    def graph(
        x: Tensor, *, module: QModule, pos_embeds: Tensor | None, cos: Tensor, signed_sin: Tensor
    ) -> tuple[Tensor, ...]:
        return call(module, x, VisionTables(pos_embeds, RotaryTables(cos, signed_sin), segments, per_head))

    own = {"pos_embeds": tables.pos_embeds, "cos": tables.rotary.cos, "signed_sin": tables.rotary.signed_sin}
    parts = {"module": module}
    return GraphAdapter(module, graph, inputs=inputs, outputs=outputs, name=name, parts=parts, tables=own)


def weight_of(module: nn.Module) -> Tensor:
    """A tensor with the dtype and on the device of `module`."""
    return next(chain(module.parameters(), module.buffers()))
