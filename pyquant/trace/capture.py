# SPDX-License-Identifier: Apache-2.0
"""Recording a trace: one global forward hook that records each call of a model's modules, and is always removed.

It owns the hook. Describing values is values.py, the trace itself record.py.
"""

from __future__ import annotations

import difflib
import fnmatch
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pyquant.batch import call
from pyquant.trace.errors import TraceError
from pyquant.trace.record import Call, Trace, refuse_existing
from pyquant.trace.store import DiskStore, MemoryStore, TensorStore
from pyquant.trace.values import TensorValue, Tree, describe, describe_tensor

Patterns = str | Iterable[str]


@contextmanager
def capture(
    model: nn.Module,
    inputs: object = None,
    modules: Patterns | None = None,
    *,
    tensors: Patterns = (),
    folder: str | Path | None = None,
) -> Iterator[Trace]:
    """Records the calls of `model` and of all modules below it while the `with` block runs.

        with capture(model, {"input_ids": ids}, tensors="*.mlp") as trace:
            ...

    inputs: a mapping (keyword arguments), a tuple or list (positional) or one tensor: the model is called with them
        once, without gradients, before the block runs. None: only the block calls the model.
    modules: globs of module names; only their calls are recorded. None: all.
    tensors: globs of module names; the full tensors of their calls are kept, of all others only statistics.
    folder: where kept tensors go instead of RAM, and `trace.json` when the block ends without an error.

    A call is recorded when it returns, so children come before parents, and a call that raises is not recorded.
    Modules outside of `model` are not, nor is anything while torch.export or torch.compile traces (there are no
    values then). Raises TraceError for a glob that matches no module and for a folder that has a trace already,
    InputError for inputs of another type.
    """
    # A module that has two paths is recorded under the first: a call does not record the path that it was made by.
    names = {id(module): name for name, module in model.named_modules()}
    recorded = set(names.values()) if modules is None else select(names.values(), modules, "modules")
    kept = select(names.values(), tensors, "tensors")
    if folder is not None:
        refuse_existing(Path(folder))
    store: TensorStore = MemoryStore() if folder is None else DiskStore(Path(folder) / "tensors")
    trace = Trace(type(model).__name__, store=store)
    describer = _Describer(store)
    repeats: Counter[str] = Counter()
    # Computed once, because the hook runs for each call of each module in the process.
    watched = {
        id(module): (name, type(module).__name__, describer.keep if name in kept else describer.summarize)
        for module, name in ((module, names[id(module)]) for module in model.modules())
        if name in recorded
    }

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found = watched.get(id(module))
        if found is None or torch.compiler.is_compiling():
            return
        name, kind, keep = found
        positional, named = describe(args, keep), describe(kwargs, keep)
        assert isinstance(positional, Tree), f"positional arguments are a tuple: {args = }"
        assert isinstance(named, Tree), f"keyword arguments are a dict: {kwargs = }"
        trace.calls.append(Call(name, kind, repeats[name], positional, named, describe(output, keep)))
        repeats[name] += 1

    handle = torch_module.register_module_forward_hook(hook, with_kwargs=True)
    try:
        if inputs is not None:
            with torch.no_grad():
                call(model, inputs)
        yield trace
    finally:
        handle.remove()
        # torch 2.13 keeps the entry of "takes keyword arguments" after `remove`, and treats it as a global hook
        marks = getattr(torch_module, "_global_forward_hooks_with_kwargs", None)
        if isinstance(marks, dict):
            marks.pop(handle.id, None)
    if folder is not None:
        trace.save_calls(Path(folder))


def select(names: Iterable[str], patterns: Patterns, argument: str) -> set[str]:
    """The names that match at least one glob; TraceError for a glob that matches none."""
    names = list(names)
    known = set(names)
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = [pattern] if pattern in known else fnmatch.filter(names, pattern)
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise TraceError(
                f"{argument}={pattern!r} matches none of the {len(names)} modules; names look like "
                f"{', '.join(map(repr, near))}"
            )
        chosen.update(matched)
    return chosen


class _Describer:
    """Describes each tensor once: the output of one module is the input of the next.

    A tensor is identified by id and version, so that one that was changed in place is described again.
    """

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self._known: dict[int, tuple[weakref.ref[Tensor], int, TensorValue]] = {}

    def summarize(self, x: Tensor) -> TensorValue:
        """Type, dtype, shape and statistics."""
        value = self._describe(x)
        return value if value.key is None else replace(value, key=None)

    def keep(self, x: Tensor) -> TensorValue:
        """The same, and the tensor itself goes to the store, if it is not there already."""
        value = self._describe(x)
        if value.key is None and x.device.type != "meta":
            value = replace(value, key=self._store.put(x))
            self._remember(x, value)
        return value

    def _describe(self, x: Tensor) -> TensorValue:
        if x.is_inference():  # has no version, so it cannot be identified
            return describe_tensor(x)
        known = self._known.get(id(x))
        if known is not None and known[0]() is x and known[1] == x._version:
            return known[2]
        value = describe_tensor(x)
        self._known[id(x)] = (weakref.ref(x), x._version, value)
        return value

    def _remember(self, x: Tensor, value: TensorValue) -> None:
        if not x.is_inference():
            self._known[id(x)] = (weakref.ref(x), x._version, value)
