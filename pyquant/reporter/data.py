# SPDX-License-Identifier: Apache-2.0
"""The contents of a report, as plain numbers: summary, layers, sites, bytes, outputs, tensors of the file.

It owns collecting them by running the model twice. Drawing them is figures.py and terminal.py, the page page.py.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pyquant import circle, trace
from pyquant.batch import call, is_batch, result_tensors
from pyquant.errors import InputError, PhaseError
from pyquant.reporter.sites import SiteReport
from pyquant.site import Phase
from pyquant.spec import BlockSpec
from pyquant.trace.metrics import Difference, difference
from pyquant.trace.sites import watching
from pyquant.undecided import Undecided
from pyquant.wrap.base import QModule, phase

POINTS = 3000
PACKAGES = ("pyquant-circle", "torch", "transformers", "numpy", "tico")


class Exported(Protocol):
    """A CircleProgram, as far as a report reads it."""

    @property
    def name(self) -> str: ...

    def to_bytes(self) -> bytes: ...


#: An exported program, or the path of its file.
Program = Exported | str | Path


@dataclass(frozen=True)
class Layer:
    """One call of one wrapper, float against quantized; of several output tensors the one with the lowest SQNR.

    `leaf`: it has no wrapper below it that was called. `block`: it is an entry of a list of layers.
    """

    name: str
    type: str
    sqnr: float
    peir: float
    leaf: bool
    block: bool


@dataclass(frozen=True)
class LayerBytes:
    """Parameters and constants of one layer: bytes in the float model, and on their grids."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the Circle file. `kind`: constant, input, output, or the operator that writes it."""

    index: int
    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    scale: str
    zero_point: str
    bytes: int | None


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows. SQNR in dB; `points` are (float, quantized) values of the outputs, a sample.

    settled: how many weights were compared with themselves, see Undecided.
    """

    title: str
    recipe: str
    model: str
    sites: tuple[SiteReport, ...]
    layers: tuple[Layer, ...]
    bytes: tuple[LayerBytes, ...]
    output: Difference
    points: tuple[tuple[float, float], ...]
    batches: int
    float_sites: int
    tensors: tuple[TensorRow, ...] = ()
    file_bytes: int | None = None
    file_name: str = ""
    operators: int = 0
    accuracies: Mapping[str, float] | None = None
    versions: Mapping[str, str] | None = None
    settled: int = 0

    @property
    def before(self) -> int:
        """Bytes of all parameters and constants in the float model."""
        return sum(layer.before for layer in self.bytes)

    @property
    def after(self) -> int:
        """Bytes of the same in their quantized formats."""
        return sum(layer.after for layer in self.bytes)

    def worst(self, count: int = 10) -> tuple[SiteReport, ...]:
        """The sites with the lowest SQNR."""
        return tuple(sorted(self.sites, key=lambda site: site.sqnr)[:count])

    def rows(self) -> list[tuple[str, str]]:
        """The summary as (name, value) pairs."""
        found: list[tuple[str, str]] = [
            ("model", self.model),
            ("recipe", self.recipe),
            ("sites", f"{len(self.sites)} measured" + (f", {self.float_sites} float" if self.float_sites else "")),
            ("parameters, float", f"{self.before:,} B"),
            ("parameters, quantized", f"{self.after:,} B ({self.after / self.before:.0%})" if self.before else "0 B"),
        ]
        if self.file_bytes is not None:
            found.append((self.file_name or "Circle file", f"{self.file_bytes:,} B, {self.operators} operators"))
        found += [(f"accuracy, {name}", f"{value:.2%}") for name, value in (self.accuracies or {}).items()]
        out = self.output
        found.append(("output SQNR", _db(out.sqnr)))
        found.append(("output PEIR", "-" if out.peir is None else f"{out.peir:.3%}"))
        found.append(("output cosine", "-" if out.cosine is None else f"{out.cosine:.6f}"))
        if self.settled:
            told = "compared with themselves, as decided or loaded; report(..., reference=) compares with float"
            found.append(("weights on their grid", f"{self.settled}, {told}"))
        found.append(("compared on", f"{self.batches} batch{'' if self.batches == 1 else 'es'}"))
        found += [(name, value) for name, value in (self.versions or {}).items()]
        return found


def collect(
    q: QModule,
    batches: Iterable[Any],
    *,
    program: Program | None = None,
    accuracies: Mapping[str, float] | None = None,
    title: str | None = None,
    reference: QModule | None = None,
) -> ReportData:
    """Run a converted tree on `batches`, float and quantized, and measure.

    The layers are those of the first batch; sites and outputs are of all. Raises PhaseError before convert, InputError
    for no batches or an output without floating tensors, CircleError for a file that cannot be read.
    """
    if not isinstance(q, QModule):
        raise PhaseError(f"a report is about the tree that pyquant.prepare returned, converted; got {type(q).__name__}")
    q.require(Phase.QUANTIZED, "a report")
    if isinstance(batches, Tensor | Mapping | str):
        raise InputError(f"a report takes an iterable of batches, got one {type(batches).__name__}; pass [batch]")
    given = list(batches)
    if not given:
        raise InputError("a report needs batches to compare float and quantized on, got none")
    model = q.fp_type.__name__ if q.fp_type is not None else type(q).__name__
    undecided = Undecided(q, reference)
    with torch.no_grad():
        layers = _layers(q, given[0], undecided)
        with phase(q, Phase.FLOAT), undecided.passing(), watching(q, histograms=True) as watch:
            plain = torch.cat([_output(q, batch) for batch in given])
        rounded = torch.cat([_output(q, batch) for batch in given])
    tensors, file = _file(program)
    return ReportData(
        title=title or f"{model}, {q.policy.name}",
        recipe=q.policy.name,
        model=model,
        sites=tuple(site for site in map(SiteReport.of, watch.records()) if site is not None),
        layers=layers,
        bytes=_bytes(q),
        output=difference(plain, rounded)[0],
        points=_points(plain, rounded),
        batches=len(given),
        float_sites=sum(site.qparams is None and not isinstance(site.spec, BlockSpec) for site in q.all_sites()),
        tensors=tensors,
        file_bytes=None if file is None else file.file_size,
        file_name="" if file is None else _file_name(program),
        operators=0 if file is None else len(file.operators),
        accuracies=accuracies,
        versions=_versions(),
        settled=len(undecided.settled),
    )


def _output(q: QModule, batch: Any) -> Tensor:
    floats = result_tensors(call(q, batch))
    if not floats:
        raise InputError("the model's output has no floating tensor, so there is nothing to compare")
    return torch.cat([tensor.detach().float().cpu().flatten() for tensor in floats])


def _layers(q: QModule, batch: Any, undecided: Undecided) -> tuple[Layer, ...]:
    names = [name for name, module in q.named_modules() if isinstance(module, QModule)]
    inputs = batch if is_batch(batch) else (batch,)
    with phase(q, Phase.FLOAT), undecided.passing(), trace.capture(q, inputs, names, tensors=names) as before:
        pass
    with trace.capture(q, inputs, names, tensors=names) as after:
        pass
    worst: dict[tuple[str, int], Difference] = {}
    for entry in trace.compare(before, after):
        found = entry.difference
        if found is None or found.sqnr is None or not entry.a.startswith(("float", "bfloat")):
            continue
        key = entry.module, entry.repeat
        if key not in worst or found.sqnr < (worst[key].sqnr or math.inf):
            worst[key] = found
    called = {name for name, _ in worst}
    parents = {name[:end] for name in called for end in range(len(name)) if name[end] == "."} | {""}
    types = {record.name: record.type for record in before}
    return tuple(
        Layer(
            name + (f" #{repeat + 1}" if repeat else ""),
            types[name],
            found.sqnr if found.sqnr is not None else math.inf,
            found.peir or 0.0,
            leaf=name not in parents,
            block=name.rpartition(".")[2].isdigit(),
        )
        for (name, repeat), found in worst.items()
    )


def _bytes(q: QModule) -> tuple[LayerBytes, ...]:
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    seen: set[int] = set()
    for name, module in q.named_modules():
        if not isinstance(module, QModule):
            continue
        layer = _layer_of(name)
        own = {**dict(module.named_parameters(recurse=False)), **module.constants()}
        for key, value in own.items():
            if id(value) in seen:
                continue
            seen.add(id(value))
            site = module.site(key) if key in module.sites else None
            plain = value.numel() * value.element_size()
            small: float = plain
            if site is not None and isinstance(site.spec, BlockSpec):
                small = value.numel() / 32 * (4 * site.spec.bits + 2)  # a half-precision scale for each 32
            elif site is not None and (qparams := site.qparams) is not None:
                small = value.numel() * qparams.spec.dtype.bits / 8 + 4 * qparams.scale.numel()
            before[layer] = before.get(layer, 0) + plain
            after[layer] = after.get(layer, 0) + small
    return tuple(LayerBytes(layer, int(before[layer]), math.ceil(after[layer])) for layer in before)


def _layer_of(name: str) -> str:
    """`encoder.layers.3.mlp.up_proj` -> `encoder.layers.3`; without a number, the first two names."""
    parts = name.split(".") if name else ["(model)"]
    for number, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: number + 1])
    return ".".join(parts[:2])


def _points(plain: Tensor, rounded: Tensor) -> tuple[tuple[float, float], ...]:
    step = max(1, math.ceil(plain.numel() / POINTS))
    return tuple(zip(plain[::step].tolist(), rounded[::step].tolist(), strict=True))


def _file(program: Program | None) -> tuple[tuple[TensorRow, ...], circle.Model | None]:
    if program is None:
        return (), None
    model = circle.read(program if isinstance(program, str | Path) else program.to_bytes())
    made = {index: op.name for op in model.operators for index in op.outputs}
    rows = []
    for index, tensor in enumerate(model.tensors):
        kind = "input" if index in model.inputs else made.get(index, "constant" if tensor.is_constant else "")
        if index in model.outputs:
            kind += " (output)"
        size = None if tensor.data is None else tensor.data.nbytes
        scale, zero_point = (_some(values) for values in (tensor.scale, tensor.zero_point))
        rows.append(TensorRow(index, tensor.name, kind, tensor.dtype, tuple(tensor.shape), scale, zero_point, size))
    return tuple(rows), model


def _some(values: Sequence[float]) -> str:
    if len(values) <= 1:
        return f"{values[0]:.6g}" if values else ""
    low, high = min(values), max(values)
    return f"{low:.4g} .. {high:.4g} ({len(values)})" if low != high else f"{low:.4g} ({len(values)})"


def _file_name(program: Program | None) -> str:
    return str(program) if program is None or isinstance(program, str | Path) else f"{program.name}.circle"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"
