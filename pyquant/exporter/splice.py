# SPDX-License-Identifier: Apache-2.0
"""From a graph with marks to the graph that a full trace gives: each marked call becomes the operators of its template.

It owns copying nodes, the names that torch.export gives them, and the placeholders of blocks that were not recorded.
Which calls are marked is templates.py.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.fx.graph import _Namespace
from torch.fx.node import map_arg

from pyquant.exporter.templates import MARK, Block, Call

_NUMBERED = re.compile(r"_\d+$")
_LIFTED = (InputKind.PARAMETER, InputKind.BUFFER)
_ROOT = "L__self__"  # before the path, in a key of the module stack
_MOST_UNUSED = 64
_PREFIX = {InputKind.PARAMETER: "p_", InputKind.BUFFER: "b_"}
_COPIED = ("val", "tensor_meta", "torch_fn")


class UnfitError(Exception):
    """The graph has something that copies of nodes cannot reproduce; it is to be traced in full."""


@dataclass(frozen=True)
class Template:
    """The nodes of one call, between its marks.

    inputs: node that stands for a tensor that was given -> its number. owned: placeholder of a tensor of the block ->
    which name of the block, and the name in the block. tensors: name in the block -> how each of them is lifted.
    unused: see _unused_names.
    """

    block: Block
    depth: int  # of the module stack around the call
    inputs: Mapping[Node, int]
    nodes: Sequence[Node]
    outputs: Sequence[Node]
    owned: Mapping[Node, tuple[int, str]]
    tensors: Mapping[str, tuple[InputSpec, Mapping[str, Any]]]
    unused: Mapping[Node, int]


def templates_of(program: torch.export.ExportedProgram, marks: Sequence[Call]) -> dict[Hashable, Template]:
    """Of all calls that are recorded in full. Raises UnfitError for one that reads what is not its own."""
    specs = {str(getattr(spec.arg, "name", "")): spec for spec in program.graph_signature.input_specs}
    lifted = {n: specs[n.name] for n in program.graph.nodes if n.op == "placeholder" and specs[n.name].kind in _LIFTED}
    tensors = {id(mark.block): _tensors(mark.block, lifted) for mark in marks if mark.kind == "begin"}
    unused = _unused_names(program.graph, marks)
    found: dict[Hashable, Template] = {}
    begin: Node | None = None
    nodes: list[Node] = []
    inputs: dict[Node, int] = {}
    for node in program.graph.nodes:
        mark, part = _mark_of(node, marks), _part_of(node)
        if mark is not None and mark.kind == "begin":
            begin, nodes, inputs = node, [], {}
        elif mark is not None and mark.kind == "end":
            assert begin is not None, "a call ends that did not begin"
            outer = {source for each in nodes for source in each.all_input_nodes} - {*nodes, *inputs}
            owned = {source: _own_tensor(mark.block, lifted, source) for source in outer}
            outputs: Any = node.args[0]
            if strange := [n for n in outputs if n not in inputs and n not in owned and n not in set(nodes)]:
                owned |= {source: _own_tensor(mark.block, lifted, source) for source in strange}
            depth = len(begin.meta.get("nn_module_stack") or {})
            lifts = tensors[id(mark.block)]
            found[mark.key] = Template(mark.block, depth, inputs, nodes, outputs, owned, lifts, unused)
            begin = None
        elif part is not None and part[0] is begin:
            inputs[node] = part[1]
        elif begin is not None:
            nodes.append(node)
    return found


def _tensors(block: Block, lifted: Mapping[Node, InputSpec]) -> dict[str, tuple[InputSpec, Mapping[str, Any]]]:
    start = f"{block.names[0]}."
    return {str(s.target)[len(start) :]: (s, n.meta) for n, s in lifted.items() if str(s.target).startswith(start)}


def _own_tensor(block: Block, lifted: Mapping[Node, InputSpec], node: Node) -> tuple[int, str]:
    target = str(lifted[node].target) if node in lifted else ""
    for number, name in enumerate(block.names):
        if target.startswith(f"{name}."):
            return number, target[len(name) + 1 :]
    raise UnfitError(f"a call of {block.names[0]} reads '{node.name}', which is not its own and was not given to it")


@dataclass(frozen=True)
class Spliced:
    """A flat graph and its inputs in order; `renamed`: names of nodes in the graph with marks -> in this one.

    recorded, copied: how many calls of blocks are in it as they were recorded, and as copies.
    """

    graph: fx.Graph
    input_specs: list[InputSpec]
    renamed: Mapping[str, str]
    recorded: int
    copied: int


def splice(
    program: torch.export.ExportedProgram,
    marks: Sequence[Call],
    known: Mapping[Hashable, Template],
    names: Sequence[str],
    hidden: Sequence[Block],
) -> Spliced:
    """`names`: of every parameter, then every buffer of the whole adapter, as torch.export lifts them. `hidden`: blocks
    that were not recorded. Raises UnfitError."""
    return _Splice(program, marks, known, hidden).result(names)


class _Splice:
    """The new graph under construction; `new`: nodes of the graph with marks -> its nodes."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        marks: Sequence[Call],
        known: Mapping[Hashable, Template],
        hidden: Sequence[Block],
    ) -> None:
        self.program, self.marks, self.known, self.hidden = program, marks, known, hidden
        self.unused = _unused_names(program.graph, marks)
        self.graph = fx.Graph()
        self.new: dict[Node, Node] = {}
        self.lifted: dict[str, Node] = {}  # by target
        self.read: list[Node] = []  # whose originals have readers: torch.export may leave out what has none
        self.specs: list[InputSpec] = []

    def result(self, names: Sequence[str]) -> Spliced:
        nodes = list(self.program.graph.nodes)
        self._lift(nodes, names)
        for node in nodes:
            mark, part = _mark_of(node, self.marks), _part_of(node)
            if node.op == "placeholder":
                continue
            if mark is not None:
                if mark.kind == "copy":
                    self._copy(node, mark)
            elif part is not None and part[0].target is MARK:
                given: Any = part[0].args[0]
                if node not in self.new:  # a part of a copied call is there already
                    self.new[node] = self.new[given[part[1]]]
            else:
                self.new[node] = self._append(node, self.new, self.unused)
                self.new[node].meta = dict(node.meta)
        if dead := next((n for n in self.read if not n.users), None):
            raise UnfitError(f"nothing reads '{dead.name}', which a mark alone kept in the graph")
        kinds = Counter(mark.kind for node in nodes if (mark := _mark_of(node, self.marks)) is not None)
        renamed = {old.name: new.name for old, new in self.new.items()}
        return Spliced(self.graph, self.specs, renamed, kinds["begin"], kinds["copy"])

    def _lift(self, nodes: Sequence[Node], names: Sequence[str]) -> None:
        """Placeholders in the order of a full trace: parameters, buffers, then what else the graph with marks has."""
        specs = {str(getattr(spec.arg, "name", "")): spec for spec in self.program.graph_signature.input_specs}
        given = [(node, specs[node.name]) for node in nodes if node.op == "placeholder"]
        seen = {str(spec.target): (node, spec) for node, spec in given if spec.kind in _LIFTED}
        copies = self._copied_tensors()
        if [name for name in names if name in seen] != list(seen) or len(seen) + len(copies) != len(names):
            raise UnfitError("torch.export lifts other tensors than the adapter has, or in another order")
        for name in names:
            node, spec, meta = (*seen[name], None) if name in seen else (None, *copies.get(name, (None, None)))
            if spec is None or (node is not None and node.name != _lifted_name(spec)):
                raise UnfitError(f"the placeholder of '{name}' has a name of its own")
            self.lifted[name] = self._placeholder(_lifted_name(spec), spec, node.meta if node is not None else meta)
            if node is not None:
                self.new[node] = self.lifted[name]
        for node, spec in given:
            if spec.kind not in _LIFTED:
                self.new[node] = self._placeholder(node.name, spec, node.meta)

    def _copied_tensors(self) -> dict[str, tuple[InputSpec, Mapping[str, Any]]]:
        """Name -> how it is lifted, of every tensor of the hidden blocks."""
        of = {id(mark.block): self.known[mark.key] for mark in self.marks if mark.kind == "copy"}
        found = {}
        for block in self.hidden:
            if id(block) not in of:
                raise UnfitError(f"{block.names[0]} is declared as a block, and was not called as one")
            for name in block.names:
                for own, (spec, meta) in of[id(block)].tensors.items():
                    placed = copy.copy(spec)
                    placed.target = f"{name}.{own}"
                    placed.arg = TensorArgument(name=_lifted_name(placed))
                    found[placed.target] = (placed, meta)
        return found

    def _placeholder(self, name: str, spec: InputSpec, meta: Mapping[str, Any] | None) -> Node:
        node = self.graph.placeholder(name)
        if node.name != name:
            raise UnfitError(f"two placeholders have the name '{name}'")
        node.meta = dict(meta or {})
        self.specs.append(spec)
        return node

    def _copy(self, node: Node, mark: Call) -> None:
        """The nodes of the template of a call, with the block's own tensors, in place of `node`."""
        template = self.known[mark.key]
        given: Any = node.args[0]
        local = {source: self.new[given[number]] for source, number in template.inputs.items()}
        for source, (number, own) in template.owned.items():
            if number >= len(mark.block.names) or (name := f"{mark.block.names[number]}.{own}") not in self.lifted:
                raise UnfitError(f"{mark.block.names[0]} has no '{own}'")
            local[source] = self.lifted[name]
        around = dict(node.meta.get("nn_module_stack") or {})
        moved: dict[str, str] = {}
        for each in template.nodes:
            local[each] = new = self._append(each, local, template.unused)
            new.meta = {key: each.meta[key] for key in _COPIED if key in each.meta}
            inner = list((each.meta.get("nn_module_stack") or {}).items())[template.depth :]
            for key, (path, _) in inner:
                if key not in moved:
                    moved[key] = _moved(key, template.block, mark.block)
                    moved[path] = _moved(path, template.block, mark.block)
            new.meta["nn_module_stack"] = around | {moved[key]: (moved[path], kind) for key, (path, kind) in inner}
        for user in node.users:
            if (part := _part_of(user)) is not None:
                self.new[user] = local[template.outputs[part[1]]]

    def _append(self, node: Node, new: Mapping[Node, Node], unused: Mapping[Node, int]) -> Node:
        args, kwargs = map_arg((node.args, node.kwargs), lambda source: new[source])
        kind = _NUMBERED.sub("", node.name)
        for _ in range(unused.get(node, 0)):
            self.graph._graph_namespace.create_name(kind, None)
        made = self.graph.create_node(node.op, node.target, name=kind)
        made.args, made.kwargs = args, kwargs  # given to create_node, they are searched for symbolic numbers each time
        if node.users:
            self.read.append(made)
        return made


def _mark_of(node: Node, marks: Sequence[Call]) -> Call | None:
    return marks[node.args[1]] if node.target is MARK else None  # type: ignore[index]


def _part_of(node: Node) -> tuple[Node, int] | None:
    """(source, number) of a node that takes one of several values."""
    if node.op != "call_function" or getattr(node.target, "__name__", "") != "getitem":
        return None
    source, number = node.args
    return (source, number) if isinstance(source, Node) and isinstance(number, int) else None


def _lifted_name(spec: InputSpec) -> str:
    return _PREFIX[spec.kind] + str(spec.target).replace(".", "_")


def _unused_names(graph: fx.Graph, marks: Sequence[Call]) -> dict[Node, int]:
    """Operator -> how many names of its kind went, before it, to nodes that torch.export left out later.

    Raises UnfitError where such a node may have been inside a call or outside, and for names by another rule.
    """
    names, places, place = _Namespace(), dict[str, int](), 0
    unused: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        kind = _NUMBERED.sub("", node.name)
        skipped = next((n for n in range(_MOST_UNUSED) if names.create_name(kind, None) == node.name), None)
        if skipped is None or (skipped and places.get(kind, 0) != place):
            raise UnfitError(f"torch.export gave '{node.name}' a name by another rule")
        if skipped:
            unused[node] = skipped
        place += _mark_of(node, marks) is not None
        places[kind] = place
    return unused


def _moved(path: str, source: Block, block: Block) -> str:
    """A path in the module stack of `source`, or its key, as that of `block`."""
    for long, new in zip(source.names, block.names, strict=False):
        for left_out in range(long.count(".")):  # a graph within a graph has paths from its own root
            old = long.split(".", left_out)[-1]
            head, found, rest = path.partition(old)
            if found and (not head or head in (_ROOT, f"{_ROOT}.")) and (not rest or rest[0] in ".@"):
                return head + new.split(".", left_out)[-1] + rest
    return _moved_in_slice(path, source, block)


_SLICED = re.compile(r"(.*\bslice\((-?\d+|None), (?:-?\d+|None), (-?\d+|None)\)\.)(\d+)(.*)")


def _moved_in_slice(path: str, source: Block, block: Block) -> str:
    """As _moved, where the blocks are items of a sliced list: `layers.slice(1, None, None).0`."""
    sliced = _SLICED.fullmatch(path)
    last, new = source.names[0].rpartition(".")[2], block.names[0].rpartition(".")[2]
    if sliced is None or not (last.isdigit() and new.isdigit()):
        raise UnfitError(f"the module path '{path}' is not below {source.names[0]}")
    head, _, step, item, rest = sliced.groups()
    by = 1 if step == "None" else int(step)
    return f"{head}{int(item) + (int(new) - int(last)) // by}{rest}"
