# SPDX-License-Identifier: Apache-2.0
"""A table of embeddings beside the graphs: integers and scales in a .safetensors file, of which a host reads rows.

It owns the file and its entry in the manifest. A table inside a graph, or split into several, is a family's.

The file has `rows` (V, D) as integers of one byte or two, or (V, D / 2) uint8 with two 4-bit integers in each byte (the
even column in the low half), or floats; and, unless they are floats, `scale` float32 and `zero_point` int32, () or one
for each row (V,). A row is (rows - zero_point) * scale, times `factor` of the manifest's entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyquant import ops, tensor_file
from pyquant.errors import InputError, ProfileError
from pyquant.spec import BlockSpec, PerAxis, PerGroup
from pyquant.wrap.base import Phase
from pyquant.wrap.embedding import QuantEmbedding

__all__ = ["RowTable", "bytes_of", "entry", "save"]


def save(path: Path, table: QuantEmbedding) -> None:
    """Write the table of a converted tree, some rows at a time. Raises OSError, and ProfileError for a format that the
    file has no form for (blocks, groups, a scale per column, an odd number of 4-bit columns)."""
    weight, grid = table.weight.detach(), _grid(table)
    if grid is None:
        entries = {"rows": tensor_file.whole(weight)}
    else:
        packed = _dtype(table) in ("int4", "uint4")
        height, width = weight.shape
        shape, dtype = ((height, width // 2), torch.uint8) if packed else ((height, width), grid.dtype)
        entries = {
            "rows": tensor_file.Entry(dtype, shape, lambda: ops.quantize_pieces(weight, grid, packed=packed)),
            "scale": tensor_file.whole(grid.scale),
            "zero_point": tensor_file.whole(grid.zero_point),
        }
    tensor_file.save(path, entries, {"format": "pt", "numbers": _dtype(table)})


def entry(table: QuantEmbedding, file: str, *, output: str, factor: float) -> dict[str, Any]:
    """What a manifest says of the table. Raises ProfileError as `save` does."""
    _grid(table)
    return {
        "file": file,
        "numbers": _dtype(table),
        "rows": table.num_embeddings,
        "width": table.embedding_dim,
        "factor": factor,
        "output": output,
    }


def bytes_of(table: QuantEmbedding) -> int:
    """Bytes of the table's rows in a graph or file."""
    count, spec = table.weight.numel(), table.site("weight").spec
    if table.site("weight").phase is Phase.FLOAT or spec is None:
        return count * table.weight.element_size()
    if isinstance(spec, BlockSpec):
        return count // ops.BLOCK_LENGTH * ops.block_bytes(spec.bits)
    return count * spec.dtype.bits // 8


class RowTable:
    """Reads rows of a table that `save` wrote; the file is mapped, and only rows that are asked for are read."""

    def __init__(self, path: Path, entry: Mapping[str, Any]) -> None:
        """Raises InputError for a file that is not the table of `entry` (a manifest's)."""
        self.path, self.factor, self.output = path, float(entry["factor"]), str(entry["output"])
        self.count, self.width, self.numbers = int(entry["rows"]), int(entry["width"]), str(entry["numbers"])
        try:
            with safe_open(path, framework="pt") as file:
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"'{path}' is no table ({error}); export the bundle again") from error
        rows, four = self._tensors.get("rows"), self.numbers in ("int4", "uint4")
        shape = (self.count, self.width // 2 if four else self.width)
        if rows is None or tuple(rows.shape) != shape:
            found = None if rows is None else tuple(rows.shape)
            raise InputError(f"'{path}' has rows of {found}, the manifest says {shape}; export the bundle again")
        self._rows: Tensor = rows

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"input_ids": (B, S) int} -> {output: (B, S, D) float32}, as a graph. Raises InputError for other ids."""
        ids = inputs.get("input_ids")
        if ids is None or ids.is_floating_point():
            raise InputError(f"the table '{self.path.name}' takes input_ids, integers; got {', '.join(inputs)}")
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.count):
            raise InputError(
                f"input_ids of the table '{self.path.name}' are 0 to {self.count - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}"
            )
        return {self.output: self._values(ids.reshape(-1).long()).reshape(*ids.shape, self.width) * self.factor}

    def _values(self, ids: Tensor) -> Tensor:
        rows: Tensor = self._rows[ids]
        if rows.is_floating_point():
            return rows.float()
        if self.numbers in ("int4", "uint4"):
            rows = ops.unpack_int4(rows, len(ids) * self.width, self.numbers == "int4").reshape(len(ids), self.width)
        scale, zero_point = self._tensors["scale"], self._tensors["zero_point"]
        if scale.dim():
            scale, zero_point = scale[ids], zero_point[ids]
        return ops.dequantize(rows, scale.clone(), zero_point.clone(), 0 if scale.dim() else None, 0)


def _dtype(table: QuantEmbedding) -> str:
    site = table.site("weight")
    if site.phase is Phase.FLOAT or site.spec is None:
        return str(table.weight.dtype).removeprefix("torch.")
    return site.spec.dtype.name


def _grid(table: QuantEmbedding) -> ops.Grid | None:
    """The grid of the rows; None for floats."""
    site = table.site("weight")
    spec = site.spec
    if site.phase is Phase.FLOAT or spec is None:
        return None
    qparams = site.qparams
    if isinstance(spec, BlockSpec) or qparams is None or isinstance(spec.granularity, PerGroup):
        raise ProfileError(
            f"table {table.path!r} has {spec}, and a table beside the graphs has one scale, or one for each row; use "
            "PerTensor() or PerAxis(0), or keep the table in a graph"
        )
    if isinstance(spec.granularity, PerAxis) and spec.granularity.axis % 2 == 1:
        raise ProfileError(f"table {table.path!r} has a scale for each column; use PerTensor() or PerAxis(0)")
    if spec.dtype.bits == 4 and table.embedding_dim % 2:
        raise ProfileError(
            f"table {table.path!r} has an odd number of 4-bit columns, {table.embedding_dim}; use 8 bits"
        )
    storage = ops.STORAGE[spec.dtype.name]
    return ops.Grid(qparams.scale, qparams.zero_point, qparams.axis, 0, spec.qmin, spec.qmax, storage)
