# SPDX-License-Identifier: Apache-2.0
"""ExportAdapter: a wrapper seen as one static graph: named inputs in order, named outputs.

It owns the calling convention of a graph for modules without data-dependent parts. Adapters that precompute tables for
a profile belong to the models that need them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

from pyquant.errors import ProfileError
from pyquant.tree_state import Phased


class GraphInterface(Protocol):
    """What the default adapter needs of a profile: input name -> spec with `shape` and `dtype`, and output names."""

    @property
    def inputs(self) -> Mapping[str, Any]: ...

    @property
    def outputs(self) -> Sequence[str]: ...


class ExportAdapter(nn.Module):
    """`forward` takes the profile's inputs by position and calls `module` with them.

    Names that are all parameters of `module.forward` are passed by name, so that a profile may order or leave out
    as it likes; otherwise by position. Raises ProfileError when they can be neither.
    """

    def __init__(self, module: nn.Module, profile: GraphInterface, name: str) -> None:
        inputs, outputs = getattr(profile, "inputs", None), getattr(profile, "outputs", None)
        if not isinstance(inputs, Mapping) or not isinstance(outputs, Sequence) or isinstance(outputs, str):
            raise ProfileError(
                f"{type(module).__name__} is exported with pyquant.ExportProfile(inputs={{name: "
                f"TensorSpec(shape, dtype)}}, outputs=(name,)), got {type(profile).__name__}, which does not name "
                "what goes in and out"
            )
        super().__init__()
        self.module = module
        self.input_specs = dict(inputs)
        self.output_names = tuple(outputs)
        self.name = name
        parameters = inspect.signature(module.forward).parameters
        self._by_name = all(key in parameters for key in self.input_specs)
        by_position = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        if not self._by_name and not variadic and len(self.input_specs) > len(by_position):
            raise ProfileError(
                f"the profile has the inputs {list(self.input_specs)}, but {type(module).__name__}.forward takes "
                f"{list(parameters)}"
            )
        self.eval()

    def forward(self, *args: Tensor) -> Any:
        with recording(self.module):
            if self._by_name:
                return self.module(**dict(zip(self.input_specs, args, strict=True)))
            return self.module(*args)

    def train(self, mode: bool = True) -> ExportAdapter:
        """An adapter is for inference; leaves the wrapped module's own flags alone."""
        self.training = False
        return self


def recording(module: nn.Module) -> AbstractContextManager[None]:
    """TreeState.exporting of the tree that `module` belongs to; nothing for a module that is no part of one."""
    return module.state.exporting() if isinstance(module, Phased) else nullcontext()
