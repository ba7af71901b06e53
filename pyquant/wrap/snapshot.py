# SPDX-License-Identifier: Apache-2.0
"""Snapshot: the float model's tensors that a wrapper computed its own ones from, as they were when it was built.

It owns noticing that one of them changed. What is computed is the wrappers', QModule.require_unedited is who asks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyquant.site import TensorStamp

__all__ = ["Snapshot"]


class Snapshot:
    """Tensors by reference: in no state dict, no checkpoint, and moved by nothing.

    A copy or a pickle has none, only the paths of what had changed by then: the tree that it belongs to shares no
    tensor with the float model.
    """

    def __init__(self, marks: Sequence[_Mark] = (), changed: Sequence[str] = ()) -> None:
        self._marks, self._changed = tuple(marks), tuple(changed)

    @classmethod
    def of(cls, fp: nn.Module, path: str, *tensors: Tensor | None) -> Snapshot:
        """These parameters and buffers of `fp`, the module `path` of the float model; None and others are left out."""
        found, owner = _tensors(fp), weakref.ref(fp)
        wanted = {id(t) for t in tensors if t is not None}
        return cls([_Mark.of(path, owner, name, t) for name, t in found.items() if id(t) in wanted])

    def changed(self) -> tuple[str, ...]:
        """Paths of the tensors that were edited, moved or replaced. An in-place edit through `.data` leaves no trace in
        torch and is not among them."""
        return self._changed + tuple(f"{m.path}.{m.name}".lstrip(".") for m in self._marks if m.changed())

    def again(self) -> Snapshot:
        """The same tensors of the float model, as they are now."""
        return Snapshot([_Mark.of(m.path, m.owner, m.name, t) for m in self._marks if (t := m.now()) is not None])

    def after(self, fn: Callable[[Tensor], Tensor]) -> Snapshot:
        """What is left when the tree goes through `fn` (`.to`): itself, or no tensors where that parts it from them."""
        return self if all(fn(m.tensor) is m.tensor for m in self._marks) else Snapshot((), self.changed())

    def __reduce__(self) -> tuple[type[Snapshot], tuple[tuple[()], tuple[str, ...]]]:
        return Snapshot, ((), self.changed())


@dataclass(frozen=True)
class _Mark:
    """The tensor `name` of the module at `path`. `values`: of an inference tensor, whose edits torch does not count."""

    path: str
    owner: weakref.ref[nn.Module]
    name: str
    tensor: Tensor
    stamp: TensorStamp
    values: Tensor | None

    @classmethod
    def of(cls, path: str, owner: weakref.ref[nn.Module], name: str, tensor: Tensor) -> _Mark:
        values = tensor.detach().clone() if tensor.is_inference() else None
        return cls(path, owner, name, tensor, TensorStamp(tensor), values)

    def now(self) -> Tensor | None:
        """The tensor of that name; where the float model is gone, the one that it had."""
        fp = self.owner()
        return self.tensor if fp is None else _tensors(fp).get(self.name)

    def changed(self) -> bool:
        if self.now() is not self.tensor:
            return True
        return not (self.stamp.is_of(self.tensor) if self.values is None else _same_bytes(self.tensor, self.values))


def _tensors(fp: nn.Module) -> dict[str, Tensor]:
    return {**dict(fp.named_parameters(remove_duplicate=False)), **dict(fp.named_buffers(remove_duplicate=False))}


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values, NaN too."""
    return a.shape == b.shape and torch.equal(*(t.detach().reshape(-1).view(torch.uint8) for t in (a, b)))
