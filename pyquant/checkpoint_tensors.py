# SPDX-License-Identifier: Apache-2.0
"""The tensors of a quantized tree as entries of a file, and back: integers where a site's grid says all of a constant.

It owns which tensors are stored, and in which form. The file's own bytes are tensor_file.py, the folder around it
checkpoint.py, the form of the index checkpoint_index.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyquant import ops, tensor_file
from pyquant.block_site import BlockSite
from pyquant.checkpoint_index import INDEX, WEIGHTS, fault, plausible_stride
from pyquant.errors import CheckpointError, SpecError
from pyquant.qparams import QParams
from pyquant.site import Site
from pyquant.spec import PerAxis, PerGroup, PerTensor
from pyquant.stream import Stream
from pyquant.tensor_file import Entry
from pyquant.wrap import QModule

__all__ = ["Reader", "restore", "store"]

logger = logging.getLogger(__name__)


def store(q: QModule, tensors: dict[str, Entry]) -> dict[str, Any]:
    """Fill `tensors` with what goes into the file; returns name -> how it is stored, for the index."""
    uses: dict[tuple[Any, ...], list[Site]] = {}
    for module in q.all_qmodules():
        for name, value in module.constants().items():
            uses.setdefault(_identity(value), []).append(module.site(name))
    entries: dict[str, Any] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in _named_tensors(q):
        identity = _identity(value)
        if value.numel() and identity in first:
            entries[name] = {"kind": "alias", "of": first[identity]}
            continue
        first[identity] = name
        entry: dict[str, Any] = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        if not value.is_contiguous() and plausible_stride(
            value.shape, value.stride()
        ):  # a product's last bit depends on the layout
            entry["stride"] = list(value.stride())
        integers = _integers(value, uses.get(identity, []))
        if integers is None:
            entries[name], tensors[name] = {"kind": "float", **entry}, tensor_file.whole(value)
        else:
            site, tensors[name] = integers
            entries[name] = {"kind": "integer", "site": site.path, **entry}
        if (stream := q.state.stream) is not None:
            stream.touch(value)
            tensors[name] = _touching(tensors[name], value, stream)
    return entries


def _touching(entry: Entry, value: Tensor, stream: Stream) -> Entry:
    """`entry`, made of `value`, which is touched when it is written."""

    def pieces() -> Iterable[Tensor]:
        stream.touch(value)
        return entry.pieces()

    return replace(entry, pieces=pieces)


def _integers(value: Tensor, sites: list[Site]) -> tuple[Site, Entry] | None:
    """The integers of a constant, if they are enough: every use is on one grid, and the round trip is exact.

    A narrow float type cannot always represent its own grid points; then the tensor stays as it is.
    """
    if sites and isinstance(sites[0], BlockSite):
        return _blocks(value, sites[0]) if all(_like(site, sites[0]) for site in sites) else None
    grids = [site.qparams for site in sites]
    if not grids or grids[0] is None or any(g is None or not grids[0].same_grid(g) for g in grids):
        return None
    grid, packed = _grid_of(grids[0]), grids[0].spec.dtype.bits == 4
    if not _is_exact(value, grid):
        logger.info("%s is stored as %s: that type cannot represent its grid", sites[0].path, value.dtype)
        return None
    form = (torch.uint8, ((value.numel() + 1) // 2,)) if packed else (grid.dtype, tuple(value.shape))
    return sites[0], Entry(*form, lambda: ops.quantize_pieces(value, grid, packed=packed, alone=True))


def _is_exact(value: Tensor, grid: ops.Grid) -> bool:
    """True when integers of the values that the integers of `value` stand for are the same ones."""
    if _is_fine(value.dtype, grid):
        return True
    once = ops.quantize_pieces(value, grid, packed=False)
    for (rows, scale, zero_point), flat in zip(grid.rows(value.shape, min(ops.STEP, ops.PIECE)), once, strict=True):
        integers = flat.reshape(ops.rows_of(value, rows).shape)
        back = _values(integers, scale, zero_point, grid, value.dtype)
        again = ops.quantize(back, scale, zero_point, grid.axis, grid.group, grid.qmin, grid.qmax, grid.dtype)
        if not torch.equal(again, integers):
            return False
    return True


def _is_fine(dtype: torch.dtype, grid: ops.Grid) -> bool:
    """True when rounding to `dtype` moves no point of the grid by half a step, so that the check can be saved.

    A product q * scale is off by its relative error (half the eps of `dtype`, and one rounding of float32) at most,
    while it is a normal number.
    """
    if not grid.zero_point.numel():
        return True
    form = torch.finfo(dtype)
    steps = max(grid.qmax - int(grid.zero_point.min()), int(grid.zero_point.max()) - grid.qmin)
    error = steps * (form.eps / 2 + torch.finfo(torch.float32).eps)
    inside = (grid.scale >= form.tiny) & (grid.scale.double() * steps < form.max)
    return error < 0.499 and bool(inside.all())


def _values(integers: Tensor, scale: Tensor, zero_point: Tensor, grid: ops.Grid, dtype: torch.dtype) -> Tensor:
    """What some rows of integers stand for."""
    return ops.dequantize(integers, scale, zero_point, grid.axis, grid.group).to(dtype)


def _like(site: Site, first: BlockSite) -> bool:
    """Whether two sites of one tensor make the same blocks of it: by ggml's rule, or those that were decided."""
    if not isinstance(site, BlockSite) or site.spec != first.spec:
        return False
    if site.blocks is None or first.blocks is None:
        return site.blocks is first.blocks
    return torch.equal(site.blocks, first.blocks)


def _blocks(value: Tensor, site: BlockSite) -> tuple[Site, Entry] | None:
    """The blocks of a constant, if they are enough; a narrow float type cannot always represent their values."""
    if (decided := site.blocks) is not None:
        return site, tensor_file.whole(decided)
    value, bits = value.detach(), site.bits
    for rows in ops.row_slices(value.shape):
        piece = ops.rows_of(value, rows)
        back = ops.dequantize_blocks(ops.quantize_blocks(piece, bits), bits).to(value.dtype)
        if not torch.equal(ops.fake_quantize_blocks(back, bits), ops.fake_quantize_blocks(piece, bits)):
            logger.info("%s is stored as %s: that type cannot represent its blocks", site.path, value.dtype)
            return None
    shape = (*value.shape[:-1], value.shape[-1] // ops.BLOCK_LENGTH * ops.block_bytes(bits))
    pieces = lambda: (ops.quantize_blocks(ops.rows_of(value, rows), bits) for rows in ops.row_slices(value.shape))  # noqa: E731
    return site, Entry(torch.uint8, shape, pieces)


def _grid_of(grid: QParams) -> ops.Grid:
    spec = grid.spec
    storage = ops.STORAGE[spec.dtype.name]
    return ops.Grid(grid.scale, grid.zero_point, grid.axis, grid.group, spec.qmin, spec.qmax, storage)


def _named_tensors(q: QModule) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer of the wrappers, non-persistent ones too: nothing is left to be derived again."""
    places = [
        (f"{path}." if path else "", module)
        for path, module in q.named_modules(remove_duplicate=False)
        if not isinstance(module, Site)  # whose buffers are the grid
    ]
    for prefix, module in places:
        yield from ((prefix + name, value) for name, value in module._parameters.items() if value is not None)
    for prefix, module in places:
        follows = {f"{name}_scale" for name in module.BIASES} if isinstance(module, QModule) else ()
        for name, value in module._buffers.items():
            if value is not None and name not in follows:
                yield prefix + name, value


def _identity(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), tuple(t.shape), t.stride(), t.dtype, str(t.device)


# --- restoring ---


class Reader:
    """Tensors of the file by name; one that is missing, or of another shape or type than in the index, is an error."""

    def __init__(self, file: tensor_file.Mapped, folder: Path) -> None:
        self._file, self.folder, self.names = file, folder, file.names()

    def get(self, name: str, dtype: torch.dtype, shape: Sequence[int] | None = None) -> Tensor:
        if name not in self.names:
            raise CheckpointError(f"checkpoint {str(self.folder)!r} lacks tensor {name!r} in {WEIGHTS}; save it again")
        seen = self._file.form(name)
        if seen[0] != dtype or (shape is not None and seen[1] != tuple(shape)):
            expected = f"{dtype}" if shape is None else f"{dtype} {tuple(shape)}"
            what = f"is {seen[0]} {seen[1]}, expected {expected}"
            raise fault(self.folder, f"{WEIGHTS}: tensor {name!r}", what)
        return self._file.tensor(name)


def restore(q: QModule, index: Mapping[str, Any], reader: Reader) -> None:
    """Give the tree its grids and tensors. Raises CheckpointError where the file, the index and the tree differ."""
    constants = [(m.site(name).path, value) for m in q.all_qmodules() for name, value in m.constants().items()]
    shapes = {path: value.shape for path, value in constants}
    sites = list(q.all_sites())
    blocks = {site.path: site for site in sites if isinstance(site, BlockSite)}
    quantized = [s for s in sites if index["sites"][s.path]["quantized"] and s.path not in blocks]
    entries, here = index["tensors"], dict(_named_tensors(q))
    if set(entries) != set(here):
        odd = sorted(set(entries) ^ set(here))
        raise CheckpointError(
            f"checkpoint and model differ in the tensors {odd[:5]}; use the configuration and the pyquant version that "
            f"it was saved with"
        )
    _check_shapes(entries, here)
    _check_grids(constants, entries, here, reader.folder)
    stored = {name for name, entry in entries.items() if entry["kind"] != "alias"}
    known = stored | {f"{site.path}.{part}" for site in quantized for part in ("scale", "zero_point")}
    if extra := sorted(reader.names - known):
        raise fault(reader.folder, f"{WEIGHTS}: tensor {extra[0]!r}", f"is in no list of {INDEX} ({len(extra)} such)")
    grids = {site.path: _grid(site, shapes.get(site.path), reader) for site in quantized}
    for site in quantized:
        site.set_qparams(grids[site.path])
    done: dict[str, Tensor] = {}
    with ThreadPoolExecutor(torch.get_num_threads(), "pyquant-load") as pool:

        def read(name: str) -> Tensor:
            with ops.one_thread():  # these threads are those of torch that each would ask for
                return _read(name, entries[name], grids, blocks, reader)

        largest_first = sorted(stored, key=lambda name: (-torch.Size(entries[name]["shape"]).numel(), name))
        values = {name: pool.submit(read, name) for name in largest_first}
        try:
            for name in sorted(entries, key=lambda n: entries[n]["kind"] == "alias"):
                entry = entries[name]
                value = done[entry["of"]] if entry["kind"] == "alias" else values.pop(name).result()
                done[name] = _assign(q, name, value, here[name])
        finally:  # of no use after an error
            pool.shutdown(wait=False, cancel_futures=True)


def _check_shapes(entries: Mapping[str, Any], here: Mapping[str, Tensor]) -> None:
    """Every tensor of the index has the shape, and the kind of numbers, that the model has there."""
    for name, entry in entries.items():
        form = entries[entry["of"]] if entry["kind"] == "alias" else entry
        if tuple(form["shape"]) != tuple(here[name].shape):
            raise CheckpointError(
                f"tensor {name!r} has shape {tuple(form['shape'])} in the checkpoint and {tuple(here[name].shape)} in "
                f"the model; pass a model of the configuration that was quantized"
            )
        if getattr(torch, form["dtype"]).is_floating_point != here[name].is_floating_point():
            raise CheckpointError(
                f"tensor {name!r} is {form['dtype']} in the checkpoint and {here[name].dtype} in the model; copy or "
                f"save it again"
            )


def _check_grids(
    constants: Iterable[tuple[str, Tensor]], entries: Mapping[str, Any], here: Mapping[str, Tensor], folder: Path
) -> None:
    """Integers are on the grid of a site that the tensor, or one that is tied to it, passes through.

    constants: path of a site, and what passes it.
    """
    users: dict[int, set[str]] = {}
    for path, value in constants:
        users.setdefault(id(value), set()).add(path)
    sites: dict[str, set[str]] = {}
    for name, entry in entries.items():
        sites.setdefault(entry.get("of", name), set()).update(users.get(id(here[name]), ()))
    for name, entry in entries.items():
        if entry["kind"] == "integer" and entry["site"] not in sites[name]:
            what = f"is on the grid of site {entry['site']!r}, but passes through {sorted(sites[name]) or 'none'}"
            raise fault(folder, f"{INDEX}: tensor {name!r}", what)


def _grid(site: Site, shape: Sequence[int] | None, reader: Reader) -> QParams:
    """The grid of a quantized site. `shape` is that of its constant, if it has one."""
    spec = site.spec
    assert spec is not None, f"{site.path} has a grid, says the index, and no format"
    expected: tuple[int, ...] | None = () if isinstance(spec.granularity, PerTensor) else None
    axis = getattr(spec.granularity, "axis", 0)
    if shape is not None and not -len(shape) <= axis < max(1, len(shape)):
        raise fault(reader.folder, f"{INDEX}: spec of site {site.path!r}", f"has axis {axis} of shape {tuple(shape)}")
    if shape is not None and isinstance(spec.granularity, PerAxis):
        expected = (shape[spec.granularity.axis],)
    elif shape is not None and isinstance(spec.granularity, PerGroup):
        axis, size = spec.granularity.axis % len(shape), spec.granularity.size
        expected = tuple(n // size if i == axis else n for i, n in enumerate(shape))
    scale = reader.get(f"{site.path}.scale", torch.float32, expected)
    zero_point = reader.get(f"{site.path}.zero_point", torch.int32, scale.shape)
    try:
        return QParams(spec, scale, zero_point)
    except SpecError as error:
        raise fault(reader.folder, f"{WEIGHTS}: grid of site {site.path!r}", f"cannot be: {error}") from error


def _read(
    name: str,
    entry: Mapping[str, Any],
    grids: Mapping[str, QParams],
    blocks: Mapping[str, BlockSite],
    reader: Reader,
) -> Tensor:
    shape, dtype = tuple(entry["shape"]), getattr(torch, entry["dtype"])
    if entry["kind"] == "float":
        value = reader.get(name, dtype, shape)
    elif entry["site"] in blocks:
        site = blocks[entry["site"]]
        bits = site.bits
        width = shape[-1] // ops.BLOCK_LENGTH * ops.block_bytes(bits)
        packed = reader.get(name, torch.uint8, (*shape[:-1], width))
        if site.decided:
            site.blocks = packed.clone()
        value = torch.empty(shape, dtype=dtype, device="cpu")
        for rows in ops.row_slices(shape):
            ops.rows_of(value, rows).copy_(ops.dequantize_blocks(ops.rows_of(packed, rows), bits))
    else:
        value = _dequantized(name, shape, dtype, grids[entry["site"]], reader)
    if "stride" in entry:
        return torch.empty_strided(shape, entry["stride"], dtype=value.dtype, device=value.device).copy_(value)
    return value if entry["kind"] == "integer" else value.clone()  # out of the mapped file: aligned, and ours


def _dequantized(name: str, shape: tuple[int, ...], dtype: torch.dtype, grid: QParams, reader: Reader) -> Tensor:
    """The values of stored integers, some rows at a time."""
    form, four = _grid_of(grid), grid.spec.dtype.bits == 4
    count = torch.Size(shape).numel()
    stored = reader.get(name, torch.uint8, ((count + 1) // 2,)) if four else reader.get(name, form.dtype, shape)
    value, end = torch.empty(shape, dtype=dtype, device="meta"), 0
    for rows, scale, zero_point in form.rows(shape):
        part = ops.rows_of(value, rows)
        if four:
            start, end = end, end + part.numel()
            packed = stored[start // 2 : (end + 1) // 2]
            integers = ops.unpack_int4(packed, part.numel(), grid.spec.dtype.signed).reshape(part.shape)
        else:
            integers = ops.rows_of(stored, rows)
        values = _values(integers, scale, zero_point, form, dtype)
        if rows == ops.ALL:
            return values
        value = torch.empty(shape, dtype=dtype, device="cpu") if value.is_meta else value
        ops.rows_of(value, rows).copy_(values)
    return value


def _assign(q: QModule, name: str, value: Tensor, old: Tensor) -> Tensor:
    """Put `value` where the tree has `old`; never into `old`, which is the float model's."""
    owner, _, leaf = name.rpartition(".")
    module = q.get_submodule(owner)
    if isinstance(old, nn.Parameter):
        value = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=old.requires_grad)
        module._parameters[leaf] = value
    else:
        module._buffers[leaf] = value
    return value
