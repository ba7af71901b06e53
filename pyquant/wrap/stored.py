# SPDX-License-Identifier: Apache-2.0
"""Layers of which a checkpoint has integers and scales only: the trained grids become those of the sites.

It owns a linear layer and a lookup table of this kind. Which classes of other packages are these is hf_gemma_quant.py,
how integers are packed packed.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyquant import ops
from pyquant.errors import ModelError
from pyquant.qparams import QParams
from pyquant.site import Site
from pyquant.spec import INT8, INT16, QuantSpec
from pyquant.wrap import products
from pyquant.wrap.base import Clip, Phase, QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype
from pyquant.wrap.embedding import require_rows
from pyquant.wrap.packed import Packing
from pyquant.wrap.snapshot import Snapshot

__all__ = ["StoredEmbedding", "StoredLinear", "activation_grid"]

_ACTIVATION = QuantSpec(INT8, symmetric=True)
_TABLE_SCALE = QuantSpec(INT16, symmetric=True)


def activation_grid(scale: Tensor, path: str) -> QParams:
    """The grid of an activation with the trained `scale`: 8 bits, signed, without a zero point.

    Raises ModelError for a scale that is not finite and positive.
    """
    value = float(scale.detach())
    if not (math.isfinite(value) and value >= torch.finfo(torch.float32).tiny):
        raise ModelError(
            f"the trained activation scale of {path!r} is {value:.6g}, expected a positive number, or 0 for none; "
            "transformers leaves a scale that the checkpoint lacks uninitialized: pass "
            "prepare(..., checkpoint=FOLDER), which looks at the folder, or set it to 0"
        )
    return QParams(
        _ACTIVATION, scale.detach().float().reshape(()), torch.zeros((), dtype=torch.int32, device=scale.device)
    )


def round_to(x: Tensor, scale: Tensor) -> Tensor:
    """What such a model itself does to an activation, in x's type: 8-bit integers of `scale`, ties to even; 0: as it
    is."""
    step = scale.to(x.dtype)
    used = torch.where(step == 0, torch.ones_like(step), step)
    rounded = (x / used).round().clamp(_ACTIVATION.dtype.qmin, _ACTIVATION.dtype.qmax) * used
    return torch.where(step == 0, x, rounded)


class StoredModule(QModule):
    """What a linear and a table have in common. HOW: in words, where the grids come from."""

    HOW = "stored in the checkpoint"
    FORM = ""  # names how to build the float module again, for checkpoints; see hf_gemma_quant.py

    packing: Packing

    def constants(self) -> Mapping[str, Tensor]:
        """Nothing to scan, where the grid is decided; the values, where the policy gives blocks."""
        site = self.site("weight")
        return {} if site.decided or site.spec is None else {"weight": self.value()}

    def value(self) -> Tensor:
        """The whole weight or table as float32, computed anew on each call."""
        raise NotImplementedError

    def stored_form(self) -> dict[str, object]:
        """What a checkpoint of this tree records, so that the float module can be built again."""
        return {"form": self.FORM, "bits": self.packing.bits}

    def decide_grids(self) -> None:
        """The grids of the sites, from the scales."""
        raise NotImplementedError

    def loaded(self) -> None:
        super().loaded()
        if not self.state.converted:
            self.decide_grids()
            self.snapshot = self.snapshot.again()

    def give(self, name: str, qparams: QParams) -> None:
        """Decide the grid of a site, unless the policy wants it float or in blocks, or somebody else decided it."""
        site = self.site(name)
        if site.takes_grid and site.decided in ("", self.HOW) and not self.state.converted:
            site.decide(qparams, self.HOW)


class StoredLinear(StoredModule):
    """A linear layer of integers (out, in) with a scale per row: (..., in_features) -> (..., out_features).

    The file has the very integers. Where an activation scale is not 0, the model rounds its inputs (outputs) to 8-bit
    integers itself, in every phase; its site has that grid, and one without is calibrated.
    """

    SITES = {"act_in": Role.ACTIVATION, "weight": Role.WEIGHT, "act_out": Role.ACTIVATION}
    BIASES = {"bias": ("act_in", "weight", "act_out")}

    packed: Tensor
    weight_scale: Tensor
    bias: nn.Parameter | None
    input_scale: Tensor
    output_scale: Tensor

    def __init__(
        self,
        fp: nn.Module,
        ctx: WrapContext,
        *,
        packing: Packing,
        packed: nn.Parameter,
        weight_scale: nn.Parameter,
        bias: nn.Parameter | None,
        input_scale: nn.Parameter,
        output_scale: nn.Parameter,
    ) -> None:
        """The tensors are those of `fp`: packed (out, bytes of a row), weight_scale (out, 1), each activation scale."""
        super().__init__(fp, ctx)
        packing.check(packed, ctx.path)
        self.packing = packing
        self.in_features, self.out_features = packing.width, int(packed.shape[0])
        self.register_parameter("packed", packed)
        self.register_parameter("weight_scale", weight_scale)
        self.register_parameter("bias", bias)
        self.register_parameter("input_scale", input_scale)
        self.register_parameter("output_scale", output_scale)
        self.snapshot = Snapshot.of(fp, ctx.path, weight_scale, input_scale, output_scale)
        self.decide_grids()

    def decide_grids(self) -> None:
        if self.weight_scale.is_meta:
            return
        self.give("weight", self.packing.grid(self.weight_scale.reshape(-1), f"{self.path}.weight_scale"))
        for name, scale in (("act_in", self.input_scale), ("act_out", self.output_scale)):
            if float(scale.detach()) != 0:
                self.give(name, activation_grid(scale, f"{self.path}:{name}"))

    def value(self) -> Tensor:
        return self.packing.integers(self.packed) * self.weight_scale.float()

    def forward(self, x: Tensor, *, clip_in: Clip | None = None, clip_out: Clip | None = None) -> Tensor:
        """The model clips, rounds, multiplies, rounds and clips. Quantized, the last two are one: a bound of the output
        becomes the nearest value of its grid."""
        x = self._rounded("act_in", self.q("act_in", x, clip=clip_in), self.input_scale)
        weight, bias = as_dtype(self._weight(), x.dtype), self.qbias("bias", self.bias)
        x = products.linear(x, weight, bias, statistics=self.observes)
        return self.q("act_out", self._rounded("act_out", x, self.output_scale), clip=clip_out)

    def _rounded(self, name: str, x: Tensor, scale: Tensor) -> Tensor:
        """Until its site quantizes, the model's own rounding."""
        return x if self.site(name).phase is Phase.QUANTIZED else round_to(x, scale)

    def _weight(self) -> Tensor:
        site = self.site("weight")
        if not site.decided:
            return site.constant(self.value())
        return site.constant(_dequantized(site, self.packing.integers(self.packed)), on_grid=True)


class StoredEmbedding(StoredModule):
    """A table of integers (rows, width) with a scale per row, or per block of a row: ids (...) -> (..., width).

    A Circle tensor cannot hold such scales: a gathered value has one for all of it. So the file has the very integers
    (with the scale 1), the scales as a second table at 16 bits (`row_scale`), looks both up, and multiplies.
    `factor` is what the model multiplies every row with.
    """

    SITES = {"weight": Role.EMBEDDING, "row_scale": Role.CONSTANT, "act_out": Role.ACTIVATION}

    packed: Tensor
    table_scale: Tensor

    def __init__(
        self,
        fp: nn.Module,
        ctx: WrapContext,
        *,
        packing: Packing,
        packed: nn.Parameter,
        scale: nn.Parameter,
        factor: float,
        dtype: torch.dtype,
    ) -> None:
        """packed (rows, bytes of a row); scale (rows, blocks). The rows leave as `dtype`."""
        super().__init__(fp, ctx)
        packing.check(packed, ctx.path)
        if packing.width % scale.shape[-1] or scale.shape[0] != packed.shape[0]:
            raise ModelError(
                f"the table {ctx.path!r} of {packed.shape[0]} rows of {packing.width} has scales of shape "
                f"{tuple(scale.shape)}, expected ({packed.shape[0]}, a divisor of {packing.width}); repair the "
                "checkpoint"
            )
        self.packing, self.factor, self.output_dtype = packing, factor, dtype
        self.num_embeddings, self.embedding_dim = int(packed.shape[0]), packing.width
        self.register_parameter("packed", packed)
        self.register_parameter("table_scale", scale)
        self.snapshot = Snapshot.of(fp, ctx.path, scale)
        self.decide_grids()

    def decide_grids(self) -> None:
        scale = self.table_scale
        if scale.is_meta:
            return
        path = f"{self.path}.{self.packing.bits}-bit table"
        self.packing.grid(scale.reshape(-1), path)  # every scale is one
        self.give("weight", self.packing.grid(torch.ones((), dtype=torch.float32, device=scale.device), path))
        largest = (scale.detach().float() * self.factor).abs().max() / _TABLE_SCALE.qmax
        if self.site("weight").decided:
            self.give("row_scale", QParams(_TABLE_SCALE, largest, torch.zeros_like(largest, dtype=torch.int32)))

    def value(self) -> Tensor:
        rows = self.packing.integers(self.packed).to(torch.float32)
        return _scaled(rows, self.table_scale.float())

    def stored_form(self) -> dict[str, object]:
        return super().stored_form() | {"blocks": int(self.table_scale.shape[-1])}

    @property
    def weight(self) -> Tensor:
        """The whole table, without `factor`, as the module that is wrapped has it."""
        return self.value().to(self.output_dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Raises InputError for an id that is not a row of the table."""
        require_rows(ids, self.num_embeddings, self.path)
        site = self.site("weight")
        if not site.decided:  # float, or blocks
            rows = F.embedding(ids, site.constant(self.value())) * self.factor
        elif self.state.explicit:
            table = site.constant(_dequantized(site, self.packing.integers(self.packed)))
            scale = self.const("row_scale", self.table_scale.float() * self.factor)
            rows = _scaled(F.embedding(ids, table), F.embedding(ids, scale))
        else:
            rows = self._look_up(ids)
        return self.q("act_out", as_dtype(rows, self.output_dtype))

    def float_rows(self, ids: Tensor) -> Tensor:
        """The rows of `ids` (...) as the module that is wrapped returns them, (..., embedding_dim)."""
        rows = self.packing.integers(self.packed[ids]).to(self.output_dtype)
        return _scaled(rows, self.table_scale[ids].detach().to(self.output_dtype)) * self.factor

    def _look_up(self, ids: Tensor) -> Tensor:
        """The same numbers, from the rows that are asked for: no float copy of the table."""
        rows = self.packing.integers(self.packed[ids]).to(self.output_dtype)
        scale = self.table_scale[ids]
        if self.site("row_scale").phase is Phase.QUANTIZED:
            return _scaled(self.q("weight", rows.float()), self.q("row_scale", scale.float() * self.factor))
        rows = _scaled(self.q("weight", rows), self.q("row_scale", scale.to(self.output_dtype)))
        return rows * self.factor


def _scaled(rows: Tensor, scale: Tensor) -> Tensor:
    """rows (..., width) times scale (..., blocks), each for its block."""
    if scale.shape[-1] == 1:
        return rows * scale
    blocks = rows.reshape(*rows.shape[:-1], scale.shape[-1], -1) * scale.unsqueeze(-1)
    return blocks.flatten(-2)


def _dequantized(site: Site, integers: Tensor) -> Tensor:
    """float32; in a graph, a node from which the file gets the integers as they are."""
    assert site.scale is not None
    assert site.zero_point is not None
    return ops.dequantize(integers, site.scale, site.zero_point, 0 if site.scale.dim() else None, 0)
