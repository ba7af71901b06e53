# SPDX-License-Identifier: Apache-2.0
"""From an adapter module to an exported program: one static graph, and where each of its nodes came from.

It owns the call of torch.export, which blocks of the graph it does not need to see, and the checks of the interface.
Equal blocks are recorded once: templates.py, splice.py. What the nodes become is lower/.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
import torch.fx.config as fx_config
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    TensorArgument,
)
from torch.fx import Node
from torch.utils import _pytree as pytree

from pyquant import autocast
from pyquant.errors import ExportError, ProfileError
from pyquant.exporter.plan import Location
from pyquant.exporter.profile import TensorSpec, check_interface
from pyquant.exporter.splice import Spliced, Template, UnfitError, splice, templates_of
from pyquant.exporter.templates import Block, Calls, Known, UnequalError

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 4
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n?\s*([^\n]*)')
_PATH = re.compile(r"slice\([^)]*\)|[^.]+")
_SLICE = re.compile(r"slice\((-?\d+|None), (?:-?\d+|None), (-?\d+|None)\)")
_PLUMBING = ("/torch/", "/pyquant/ops/", "/pyquant/site.py", "/pyquant/wrap/base.py")


@dataclass(frozen=True)
class Traced:
    """A traced graph with names: which nodes are the user's inputs, and which hold parameters or constants.

    `recorded`: how many calls of blocks torch.export recorded as templates, `copied`: how many are copies of those;
    both 0 for a graph without equal blocks, and for one that was traced in full.
    """

    name: str
    graph: fx.Graph
    inputs: Mapping[str, str]  # fx placeholder -> the user's name, in call order
    outputs: tuple[str, ...]
    lifted: Mapping[str, tuple[str, torch.Tensor]]  # fx placeholder -> (path in the adapter, tensor)
    recorded: int = 0
    copied: int = 0
    _source: torch.export.ExportedProgram = field(kw_only=True, repr=False)
    _spliced: Spliced | None = field(default=None, kw_only=True, repr=False)
    _tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, kw_only=True, repr=False)  # of _spliced, by path

    @property
    def nodes(self) -> list[Node]:
        return list(self.graph.nodes)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph as an exported program: that of torch.export, or made from its templates on first use."""
        return _program(self)


class Templates:
    """Blocks that were recorded, for all graphs of one tree: a graph takes equal ones from there."""

    def __init__(self, *, shared: bool = False) -> None:
        """shared: for several graphs."""
        self.shared = shared
        self.calls: dict[Hashable, Known] = {}
        self.nodes: dict[Hashable, Template] = {}
        self.seen: set[Hashable] = set()  # (kind of a block, form of a graph) whose calls are in `calls`
        self._kinds: dict[Hashable, int] = {}

    def kind(self, block: Block) -> int:
        """A number for the likeness of a block."""
        return self._kinds.setdefault(block.likeness, len(self._kinds))

    def add(
        self, nodes: Mapping[Hashable, Template], calls: Mapping[Hashable, Known], seen: Iterable[Hashable]
    ) -> None:
        """What one graph recorded."""
        self.nodes |= nodes
        self.calls |= {key: calls[key] for key in nodes}
        self.seen |= set(seen)


def trace(
    adapter: nn.Module, name: str | None = None, *, lines: bool = True, templates: Templates | None = None
) -> Traced:
    """Export `adapter` (which has `input_specs` and `output_names`) without decompositions. Without `lines` no node has
    a source line, if this torch can leave them out.

    With `templates` blocks that are equal to recorded ones, or to each other, are recorded once; what comes out is what
    a full trace gives. Raises ProfileError when the adapter's interface contradicts itself, ExportError when it has no
    static graph.
    """
    specs, outputs = _interface(adapter)
    name = name or getattr(adapter, "name", None) or type(adapter).__name__
    if templates is not None and callable(getattr(adapter, "blocks", None)):
        traced = _by_templates(adapter, name, specs, outputs, templates, lines)
        if traced is not None:
            return traced
    return _named(_exported(adapter, specs, lines), specs, outputs, name)


def _exported(adapter: nn.Module, specs: Mapping[str, TensorSpec], lines: bool) -> torch.export.ExportedProgram:
    device = next((t.device for t in chain(adapter.parameters(), adapter.buffers())), torch.device("cpu"))
    examples = tuple(spec.example(device) for spec in specs.values())
    try:
        with torch.no_grad(), autocast.off(), warnings.catch_warnings(), _source_lines(lines):
            warnings.simplefilter("ignore")  # about torch's internals; a caller cannot act on it
            return torch.export.export(adapter, examples, strict=False)
    except UnequalError:
        raise
    except Exception as error:  # torch.export raises whatever the model's forward raises, and types of its own
        signature = ", ".join(f"{key}: {spec}" for key, spec in specs.items())
        raise ExportError(
            f"{type(adapter).__name__}({signature}) has no static graph: torch.export says\n{error}\n"
            "Where a shape or branch depends on data, precompute it in as_export_module()."
        ) from error


def _by_templates(
    adapter: Any, name: str, specs: dict[str, TensorSpec], outputs: tuple[str, ...], known: Templates, lines: bool
) -> Traced | None:
    """None for a graph without equal blocks, and for one that has to be traced in full."""
    blocks: list[Block] = adapter.blocks()
    interface = tuple((each.shape, each.dtype) for each in specs.values())
    kinds = [known.kind(block) for block in blocks]
    hidden, seen = [], set(known.seen)
    for block, kind in zip(blocks, kinds, strict=True):
        form = (kind, interface)
        if form in seen:
            hidden.append(block)
        seen.add(form)
    if not hidden and not known.shared:
        return None
    tensors = dict(chain(_members(adapter, "named_parameters"), _members(adapter, "named_buffers")))
    for _ in range(_ATTEMPTS):
        calls = Calls(blocks, kinds, hidden, known.calls)
        try:
            marked = _exported(adapter.seen_by(calls, hidden), specs, lines)
            new = templates_of(marked, calls.marks)
            spliced = splice(marked, calls.marks, known.nodes | new, list(tensors), hidden)
        except UnequalError as unequal:
            hidden = [block for block in hidden if block is not unequal.block]
        except UnfitError as unfit:
            _LOG.info("graph '%s' is traced in full: %s", name, unfit)
            return None
        else:
            known.add(new, calls.known, seen)
            return _spliced(name, marked, spliced, tensors, specs, outputs)
    _LOG.info("graph '%s' is traced in full: its blocks are called in too many ways", name)
    return None


def _members(module: nn.Module, method: str) -> Iterator[tuple[str, torch.Tensor]]:
    found: Iterator[tuple[str, torch.Tensor]] = getattr(module, method)(remove_duplicate=False)
    return found


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
    tensors = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    inputs, lifted = _inputs(signature.input_specs, tensors, specs)
    _require_outputs(signature, outputs)
    return Traced(name, program.graph, inputs, outputs, lifted, _source=program)


def _spliced(
    name: str,
    marked: torch.export.ExportedProgram,
    spliced: Spliced,
    tensors: Mapping[str, torch.Tensor],
    specs: dict[str, TensorSpec],
    outputs: tuple[str, ...],
) -> Traced:
    inputs, lifted = _inputs(spliced.input_specs, {**marked.constants, **tensors}, specs)
    _require_outputs(marked.graph_signature, outputs)
    return Traced(
        name,
        spliced.graph,
        inputs,
        outputs,
        lifted,
        recorded=spliced.recorded,
        copied=spliced.copied,
        _source=marked,
        _spliced=spliced,
        _tensors=tensors,
    )


def _inputs(
    signature: Sequence[InputSpec], tensors: Mapping[str, Any], specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, str], dict[str, tuple[str, torch.Tensor]]]:
    """Placeholder -> the user's name of it, and placeholder -> path and tensor of each that is lifted."""
    lifted: dict[str, tuple[str, torch.Tensor]] = {}
    user: list[str] = []
    for spec in signature:
        node, path = str(getattr(spec.arg, "name", "")), str(spec.target)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            tensor = tensors.get(path)
            assert isinstance(tensor, torch.Tensor), f"torch.export lost {path}"
            lifted[node] = (path, tensor.detach())
        elif spec.kind is InputKind.USER_INPUT:
            user.append(node)
        else:
            raise ExportError(f"graph input {node!r} is a {spec.kind.name}; only tensors can be inputs of a graph")
    if len(user) != len(specs):
        raise ProfileError(f"the adapter names {len(specs)} inputs {list(specs)}, but its graph takes {len(user)}")
    return dict(zip(user, specs, strict=True)), lifted


def _require_outputs(signature: ExportGraphSignature, outputs: tuple[str, ...]) -> None:
    if len(signature.output_specs) != len(outputs):
        raise ProfileError(
            f"the adapter names {len(outputs)} outputs {list(outputs)}, but returns {len(signature.output_specs)}"
        )


def _program(traced: Traced) -> torch.export.ExportedProgram:
    """The exported program of a spliced graph: that of torch.export, with the graph in place of the one with marks."""
    marked, spliced = traced._source, traced._spliced
    if spliced is None:
        return marked
    _in_one_mode(spliced.graph, marked.graph)
    ends = [copy.copy(spec) for spec in marked.graph_signature.output_specs]
    for end in ends:
        end.arg = TensorArgument(name=spliced.renamed[str(getattr(end.arg, "name", ""))])
    tensors = traced._tensors
    kept = {str(s.target): s for s in spliced.input_specs if s.kind in (InputKind.PARAMETER, InputKind.BUFFER)}
    state = {path: tensors[path] for path, spec in kept.items() if spec.persistent is not False}
    rest = {path: tensors[path] for path in kept.keys() - state.keys()}
    return torch.export.ExportedProgram(
        nn.Module(),
        spliced.graph,
        ExportGraphSignature(spliced.input_specs, ends),
        state,
        marked.range_constraints,
        marked.module_call_graph,
        marked.example_inputs,
        {**marked.constants, **rest},
        verifiers=marked.verifiers,
    )


def _in_one_mode(graph: fx.Graph, recorded: fx.Graph) -> None:
    """Values of nodes that another graph recorded, in the fake mode of this one: torch takes no two in one program."""
    own = [leaf.fake_mode for node in recorded.nodes for leaf in _fakes(node)]
    if not own:
        return
    mode = own[0]

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, FakeTensor) or leaf.fake_mode is mode:
            return leaf
        with mode:
            new = torch.empty_strided(tuple(leaf.shape), leaf.stride(), dtype=leaf.dtype, device=leaf.device)
        return new.requires_grad_(leaf.requires_grad)

    for node in graph.nodes:
        if any(leaf.fake_mode is not mode for leaf in _fakes(node)):
            node.meta["val"] = pytree.tree_map(moved, node.meta["val"])


def _fakes(node: Node) -> list[FakeTensor]:
    return [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, FakeTensor)]


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
