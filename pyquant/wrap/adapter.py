# SPDX-License-Identifier: Apache-2.0
"""GraphAdapter: wrappers seen as one static graph: named inputs in order, named outputs, and the tensors of a profile.

It owns the calling convention of every graph. Which tensors a profile needs, and what is called, is for the model that
makes the adapter to say.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from pyquant.errors import ProfileError
from pyquant.likeness import likeness
from pyquant.role import Phase
from pyquant.tree_state import BlockCalls

if TYPE_CHECKING:
    from pyquant.wrap.base import QModule


class GraphInterface(Protocol):
    """What a plain graph needs of a profile: input name -> spec with `shape` and `dtype`, and output names."""

    @property
    def inputs(self) -> Mapping[str, Any]: ...

    @property
    def outputs(self) -> Sequence[str]: ...


@dataclass(frozen=True, eq=False)
class GraphBlock:
    """A block of a graph (QModule.BLOCKS) whose tensors belong to nothing else in it.

    names: its names in the adapter, several where that reaches it on several ways.
    """

    module: nn.Module
    names: tuple[str, ...]

    @cached_property
    def likeness(self) -> Any:
        """Equal for blocks that perform the same operations."""
        return likeness(self.module)


class GraphAdapter(nn.Module):
    """`call(*inputs, **parts, **tables)` as a static graph. Shares the wrappers, owns the tables.

    module: the wrapper that is exported; its phase is checked, and that its float model was not edited. call: computes
    the outputs of the graph, a tensor or a tuple, from the inputs by position, parts and tables by name. inputs: name
    -> TensorSpec in the order of the call; outputs: names in the order of return. parts: modules that `call` uses, by
    the name under which their tensors are found; tracing goes through every tensor of them, so leave out what is not
    used. tables: tensors of this profile (None for one that it does not have), which become buffers of the adapter.

    Raises PhaseError before convert, and for an edited float model. A float graph is exported on purpose, in
    `pyquant.wrap.phase(q, Phase.FLOAT)`.
    """

    def __init__(
        self,
        module: QModule,
        call: Callable[..., Any],
        *,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        name: str,
        parts: Mapping[str, nn.Module],
        tables: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        if module.phase is not Phase.FLOAT:
            module.require(Phase.QUANTIZED, "export")
        module.require_unedited("export")
        super().__init__()
        self.call = call
        for key, part in parts.items():
            self.add_module(key, part)
        for key, table in (tables or {}).items():
            self.register_buffer(key, None if table is None else table.detach().clone())
        self._tree = module.state
        self._calls: BlockCalls | None = None
        self._seen: list[tuple[str, nn.Module]] | None = None  # all modules that exist for the view `seen_by` makes
        self._named = (*parts, *(tables or {}))
        self.input_specs, self.output_names, self.name = dict(inputs), tuple(outputs), name
        self.training = False

    def forward(self, *inputs: Tensor) -> Any:
        with self._tree.exporting(self._calls):
            return self.call(*inputs, **{key: getattr(self, key) for key in self._named})

    def blocks(self) -> list[GraphBlock]:
        """The blocks of the graph, in tree order; without those of which a tensor belongs to something else too."""
        owner_of: dict[str, nn.Module] = {}
        for name, module in self.named_modules(remove_duplicate=False):
            if (listed := getattr(module, "BLOCKS", None)) is not None:
                start = f"{name}.{listed}." if name else f"{listed}."
                owner_of |= {start + key: child for key, child in module.get_submodule(listed).named_children()}
        depths = sorted({name.count(".") + 1 for name in owner_of})
        owners: dict[int, set[int]] = {}
        tensors = chain(self.named_parameters(remove_duplicate=False), self.named_buffers(remove_duplicate=False))
        for name, tensor in tensors:
            parts = name.split(".")
            own = next((o for n in depths if (o := owner_of.get(".".join(parts[:n]))) is not None), None)
            owners.setdefault(id(tensor), set()).add(id(own))
        tied = set[int]().union(*(several for several in owners.values() if len(several) > 1))
        names: dict[int, list[str]] = {}
        for name, module in owner_of.items():
            names.setdefault(id(module), []).append(name)
        modules = {id(module): module for module in owner_of.values()}
        return [GraphBlock(modules[key], tuple(found)) for key, found in names.items() if key not in tied]

    def seen_by(self, calls: BlockCalls, hidden: Sequence[GraphBlock]) -> GraphAdapter:
        """This graph, to be recorded by `calls`, for which the tensors of the blocks in `hidden` do not exist."""
        view = copy.copy(self)
        left_out = tuple(f"{name}." for block in hidden for name in block.names)
        every = self.named_modules(remove_duplicate=False)
        view._seen = [(n, view if m is self else m) for n, m in every if not f"{n}.".startswith(left_out)]
        view._calls = calls
        return view

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As of any module; without hidden blocks, see `seen_by`."""
        if self._seen is None:
            yield from super().named_modules(memo, prefix, remove_duplicate)
            return
        met = set() if memo is None else memo
        for name, module in self._seen:
            if not (remove_duplicate and module in met):
                met.add(module)
                yield f"{prefix}.{name}" if prefix and name else prefix or name, module

    def train(self, mode: bool = True) -> GraphAdapter:
        """An adapter is for inference; leaves the wrapped modules' own flags alone."""
        return self


def plain_graph(module: QModule, profile: GraphInterface, name: str) -> GraphAdapter:
    """`module` called with the inputs that `profile` names, for a module without data-dependent parts.

    Names that are all parameters of `module.forward` are passed by name, so that a profile may order or leave out
    as it likes; otherwise by position. Raises ProfileError when they can be neither.
    """
    inputs, outputs = getattr(profile, "inputs", None), getattr(profile, "outputs", None)
    if not isinstance(inputs, Mapping) or not isinstance(outputs, Sequence) or isinstance(outputs, str):
        raise ProfileError(
            f"{type(module).__name__} is exported with pyquant.ExportProfile(inputs={{name: "
            f"TensorSpec(shape, dtype)}}, outputs=(name,)), got {type(profile).__name__}, which does not name "
            "what goes in and out"
        )
    names = tuple(inputs)
    parameters = inspect.signature(module.forward).parameters
    by_name = all(key in parameters for key in names)
    by_position = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    if not by_name and not variadic and len(names) > len(by_position):
        raise ProfileError(
            f"the profile has the inputs {list(names)}, but {type(module).__name__}.forward takes {list(parameters)}"
        )

    def call(*given: Tensor, module: nn.Module) -> Any:
        return module(**dict(zip(names, given, strict=True))) if by_name else module(*given)

    return GraphAdapter(module, call, inputs=inputs, outputs=outputs, name=name, parts={"module": module})
