# SPDX-License-Identifier: Apache-2.0
"""From an adapter module to an exported program: one static graph, and where each of its nodes came from.

It owns the call of torch.export and the checks of the interface. What the nodes become is lower/.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.fx.config as fx_config
from torch import nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from pyquant import autocast
from pyquant.errors import ExportError, ProfileError
from pyquant.exporter.plan import Location
from pyquant.exporter.profile import TensorSpec, check_interface

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n?\s*([^\n]*)')
_PATH = re.compile(r"slice\([^)]*\)|[^.]+")
_SLICE = re.compile(r"slice\((-?\d+|None), (?:-?\d+|None), (-?\d+|None)\)")
_PLUMBING = ("/torch/", "/pyquant/ops/", "/pyquant/site.py", "/pyquant/wrap/base.py")


@dataclass(frozen=True)
class Traced:
    """An exported program with names: which nodes are the user's inputs, and which hold parameters or constants."""

    name: str
    program: torch.export.ExportedProgram
    inputs: Mapping[str, str]  # fx placeholder -> the user's name, in call order
    outputs: tuple[str, ...]
    lifted: Mapping[str, tuple[str, torch.Tensor]]  # fx placeholder -> (path in the adapter, tensor)

    @property
    def nodes(self) -> list[Node]:
        return list(self.program.graph.nodes)


def trace(adapter: nn.Module, name: str | None = None, *, lines: bool = True) -> Traced:
    """Export `adapter` (which has `input_specs` and `output_names`) without decompositions. Without `lines` no node has
    a source line, if this torch can leave them out.

    Raises ProfileError when the adapter's interface contradicts itself, ExportError when it has no static graph.
    """
    specs, outputs = _interface(adapter)
    device = next((t.device for t in [*adapter.parameters(), *adapter.buffers()]), torch.device("cpu"))
    examples = tuple(spec.example(device) for spec in specs.values())
    try:
        with torch.no_grad(), autocast.off(), warnings.catch_warnings(), _source_lines(lines):
            warnings.simplefilter("ignore")  # about torch's internals; a caller cannot act on it
            program = torch.export.export(adapter, examples, strict=False)
    except Exception as error:  # torch.export raises whatever the model's forward raises, and types of its own
        signature = ", ".join(f"{key}: {spec}" for key, spec in specs.items())
        raise ExportError(
            f"{type(adapter).__name__}({signature}) has no static graph: torch.export says\n{error}\n"
            "Where a shape or branch depends on data, precompute it in as_export_module()."
        ) from error
    return _named(program, specs, outputs, name or getattr(adapter, "name", None) or type(adapter).__name__)


@contextmanager
def _source_lines(wanted: bool) -> Iterator[None]:
    """Whether torch.export records the stack of each operator. One trace at a time: see pipeline.py."""
    former = getattr(fx_config, "do_not_emit_stack_traces", None)
    if former is None or wanted:  # torch 2.10 always records them
        yield
        return
    fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = former


def _interface(adapter: nn.Module) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    specs, outputs = getattr(adapter, "input_specs", None), getattr(adapter, "output_names", None)
    if not isinstance(specs, Mapping) or outputs is None:
        raise ProfileError(
            f"{type(adapter).__name__} is no export adapter: it needs input_specs (name: TensorSpec) and output_names; "
            "return one from as_export_module(profile)"
        )
    check_interface(specs, tuple(outputs))
    return dict(specs), tuple(outputs)


def _named(
    program: torch.export.ExportedProgram, specs: dict[str, TensorSpec], outputs: tuple[str, ...], name: str
) -> Traced:
    signature = program.graph_signature
    lifted: dict[str, tuple[str, torch.Tensor]] = {}
    user: list[str] = []
    for spec in signature.input_specs:
        node, path = str(getattr(spec.arg, "name", "")), str(spec.target)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensor = program.state_dict.get(path, program.constants.get(path))
            assert isinstance(tensor, torch.Tensor), f"torch.export lost {path}"
            lifted[node] = (path, tensor.detach())
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            tensor = program.constants[path]
            assert isinstance(tensor, torch.Tensor), f"torch.export lost {path}"
            lifted[node] = (path, tensor.detach())
        elif spec.kind is InputKind.USER_INPUT:
            user.append(node)
        else:
            raise ExportError(f"graph input {node!r} is a {spec.kind.name}; only tensors can be inputs of a graph")
    if len(user) != len(specs):
        raise ProfileError(f"the adapter names {len(specs)} inputs {list(specs)}, but its graph takes {len(user)}")
    if len(signature.output_specs) != len(outputs):
        raise ProfileError(
            f"the adapter names {len(outputs)} outputs {list(outputs)}, but returns {len(signature.output_specs)}"
        )
    return Traced(name, program, dict(zip(user, specs, strict=True)), outputs, lifted)


def location_of(node: Node) -> Location:
    """Module path and source line of a node: the innermost frame outside torch and pyquant's own modules."""
    stack = node.meta.get("nn_module_stack") or {}
    module = readable(str(list(stack.values())[-1][0])) if stack else ""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not any(part in frame[0] for part in _PLUMBING)] or frames
    if not own:
        return Location(module)
    path, number, _, code = own[-1]
    return Location(module, f"{path}:{number}: {code.strip()}")


def readable(path: str) -> str:
    """A module path of the user's model: without the adapters' own level `module`, and with the items of a sliced list
    (`layers.slice(1, None, None).0`) at their place in the list (`layers.1`)."""
    parts: list[str] = []
    step: tuple[int, int] | None = None
    for part in _PATH.findall(path):
        if sliced := _SLICE.fullmatch(part):
            first, by = (None if group == "None" else int(group) for group in sliced.groups())
            step = (first or 0, by or 1)
        elif step is not None:
            parts.append(str(step[0] + step[1] * int(part)) if part.isdigit() else part)
            step = None
        elif part != "module":
            parts.append(part)
    return ".".join(parts)


def static_shape(value: torch.Tensor, node: Node) -> tuple[int, ...]:
    """The integer shape of a fake tensor; ExportError when a size depends on data."""
    if not all(isinstance(size, int) for size in value.shape):
        raise ExportError(
            f"node '{node.name}' ({node.target}) has the data-dependent shape {tuple(value.shape)} at "
            f"{location_of(node)}; a Circle graph is static: take the size from the profile"
        )
    return tuple(value.shape)
