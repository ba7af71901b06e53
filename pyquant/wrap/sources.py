# SPDX-License-Identifier: Apache-2.0
"""Sources: the float model's tensors that a wrapper made its own ones of, to notice when they change.

It owns holding them beside the wrapper's state. When they are looked at, and what is made of them, is the wrappers'.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyquant.site import TensorStamp

__all__ = ["Sources"]


class Sources:
    """Tensors by reference: in no state dict, no checkpoint, and moved by nothing.

    A copy or a pickle has none, since the tree that it belongs to no longer shares any tensor with the float model.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors
        self._stamp = TensorStamp(*tensors)

    def stale(self) -> bool:
        """True when they changed since the last `changed` that returned True (or since this was made)."""
        return bool(self.tensors) and not self._stamp.is_of(*self.tensors)

    def changed(self) -> bool:
        """True once for every change since the last call that returned True (or since this was made)."""
        if not self.stale():
            return False
        self._stamp = TensorStamp(*self.tensors)
        return True

    def after(self, fn: Callable[[Tensor], Tensor]) -> Sources:
        """What is left when the tree goes through `fn` (`.to`): itself, or nothing where that parts it from these."""
        return self if all(fn(t) is t for t in self.tensors) else Sources()

    def __reduce__(self) -> tuple[type[Sources], tuple[()]]:
        return Sources, ()
