# SPDX-License-Identifier: Apache-2.0
"""export(): from a converted model and a profile to a CircleProgram.

It owns the order of the steps and the checks before and after: the model is converted, every tensor that must be
quantized is. The steps are tracing.py, lower/, passes/ and legalize/.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from torch import nn

from pyquant import __version__, circle
from pyquant.circle.files import Target
from pyquant.errors import ExportError, PhaseError, ProfileError
from pyquant.exporter.absent import Absent
from pyquant.exporter.coverage import require_quantized
from pyquant.exporter.dynamic import open_lengths
from pyquant.exporter.legalize import legalize
from pyquant.exporter.lower import lower
from pyquant.exporter.passes import run_passes
from pyquant.exporter.plan import Graph
from pyquant.exporter.precision import warn_low_precision
from pyquant.exporter.profile import TensorSpec
from pyquant.exporter.program import CircleProgram
from pyquant.exporter.registry import is_fake_quantize
from pyquant.exporter.tracing import Templates, Traced, trace

TARGETS = get_args(Target)
_TRACING = threading.RLock()  # torch.export changes modules of torch while it runs: one thread at a time


def export(
    q: nn.Module,
    profile: Any = None,
    *,
    name: str | None = None,
    target: Target = "circle",
    allow_float: bool = False,
    absent: Absent | None = None,
) -> CircleProgram:
    """One static graph of a converted model.

    `profile` goes to `q.as_export_module(profile)`. The graph may hold float tensors only when the policy left sites
    float, or with `allow_float`, which also exports a tree in its float phase. `q` and the profile stay unchanged.
    Warns with LowPrecisionWarning when the model computes in bfloat16 or float16. Concurrent calls run one after the
    other. The program holds no integers: those of a weight are made when the program is saved, one tensor at a time,
    from the model's values, which must be the same then; `absent` reads parameters that are not in memory.

    Raises PhaseError before convert, ProfileError for a profile that does not fit, ExportError for what has no Circle
    form, a float tensor in a fully quantized graph, or a rule of `target` that the graph breaks.
    """
    program = build(q, profile, name=name, target=target, allow_float=allow_float, absent=absent)
    warn_low_precision([(program.graph, program.traced)])
    return program


def build(
    q: nn.Module,
    profile: Any = None,
    *,
    name: str | None = None,
    target: Target = "circle",
    allow_float: bool = False,
    absent: Absent | None = None,
    templates: Templates | None = None,
    in_full: bool = False,
) -> CircleProgram:
    """As export(), without the LowPrecisionWarning: a bundle warns once for all of its graphs.

    `templates`: blocks that other graphs of `q` recorded, which this one takes from there. `in_full`: torch.export
    records each block of the graph; the file is the same, and takes longer.
    """
    if target not in TARGETS:
        raise ExportError(f"target {target!r} is not known; choose one of {', '.join(TARGETS)}")
    if not isinstance(q, nn.Module):
        raise ExportError(f"export takes a module from pyquant.prepare, got {type(q).__name__}")
    _require_converted(q, allow_float)
    stream = getattr(getattr(q, "state", None), "stream", None)
    if stream is not None:
        stream.check()
        absent = absent or Absent(stream.touch)
    with _TRACING:
        adapter = _adapter(q, profile)
    with _collector_paused():
        try:
            known = None if in_full else Templates() if templates is None else templates
            traced, graph = _lowered(q, adapter, name, target, allow_float, absent, known)
        except ExportError:  # once more, for a message with source lines: recording them takes a quarter of an export
            traced, graph = _lowered(q, adapter, name, target, allow_float, absent, None, lines=True)
    program = CircleProgram(graph, traced, adapter, profile)
    if target != "circle" and (faults := program.check(target)):
        listed = "\n".join(f"  {line}" for line in circle.listed(faults))
        raise ExportError(f"the graph breaks {len(faults)} rule(s) of target '{target}':\n{listed}")
    return program


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Python's search for cycles waits until the graph is there: its objects live on, and looking at all of them again
    and again was a quarter of an export. Of several threads, the one that paused it lets it go on."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _lowered(
    q: nn.Module,
    adapter: nn.Module,
    name: str | None,
    target: Target,
    allow_float: bool,
    absent: Absent | None,
    templates: Templates | None,
    *,
    lines: bool = False,
) -> tuple[Traced, Graph]:
    """The traced adapter and its graph, checked; `templates` and `lines` as of trace."""
    with _TRACING:
        traced = trace(adapter, name, lines=lines, templates=templates)
    graph = legalize(run_passes(lower(traced, {"pyquant": __version__}, absent)), target)
    graph = open_lengths(graph, _open_axes(adapter))
    if not (allow_float or _float_by_policy(q, traced)):
        require_quantized(graph)
    return traced, graph


def _open_axes(adapter: nn.Module) -> dict[str, int]:
    specs: Mapping[str, TensorSpec] = adapter.input_specs  # type: ignore[assignment]
    return {name: spec.dynamic for name, spec in specs.items() if spec.dynamic is not None}


def sites(q: nn.Module) -> list[Any]:
    """Every quantization site below `q`: the modules that have a `spec` and a `phase`."""
    return [module for module in q.modules() if hasattr(module, "spec") and hasattr(module, "phase")]


def _require_converted(q: nn.Module, allow_float: bool) -> None:
    for site in sites(q):
        phase = getattr(site.phase, "name", str(site.phase))
        if phase == "QUANTIZED" or (phase == "FLOAT" and allow_float):
            continue
        path = getattr(site, "path", "?")
        hint = "" if phase == "CALIBRATE" else ", or export(..., allow_float=True) for a float graph"
        raise PhaseError(
            f"export needs a converted model, but site '{path}' is in phase {phase}; run pyquant.convert(q){hint}"
        )


def _float_by_policy(q: nn.Module, traced: Traced) -> bool:
    """True when the policy left some site float, or nothing is quantized at all."""
    specs = [site.spec for site in sites(q)]
    if specs:
        return any(spec is None for spec in specs)
    return not any(is_fake_quantize(node) for node in traced.nodes)


def _adapter(q: nn.Module, profile: Any) -> nn.Module:
    if hasattr(q, "as_export_module"):
        if profile is None:
            raise ProfileError(
                f"{type(q).__name__} needs a profile: an ExportProfile, or the model's own such as gemma4.VisionProfile"
            )
        make: Callable[[Any], nn.Module] = q.as_export_module  # type: ignore[assignment]
        return make(profile)
    if hasattr(q, "input_specs") and profile is None:
        return q
    raise ExportError(
        f"{type(q).__name__} is neither a quantized model (as_export_module) nor an export adapter (input_specs, "
        "output_names); run pyquant.prepare, calibrate and convert first"
    )
