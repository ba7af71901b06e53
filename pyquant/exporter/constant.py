# SPDX-License-Identifier: Apache-2.0
"""Constant: one constant of a file whose type and size are known, and whose bytes are made when they are asked for.

It owns when bytes exist, and how two constants are compared without making both. What the bytes are of a value is
values.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

_KEEP = 1 << 16  # bytes up to which a constant is kept once it is made
LEAD = 1 << 12  # bytes that `lead` gives at least


@dataclass(frozen=True, eq=False)
class Constant:
    """The bytes of one constant as the file has them: 4-bit integers packed and ggml's blocks as uint8.

    `make` computes them; nothing larger than 64 KiB is kept, so whoever asks decides how long a large one lives. `key`:
    constants of equal keys have equal bytes (None: not known). `lead` computes the first LEAD bytes or more without the
    rest, in any shape (None: only `make` can tell). `file`: its bytes, where they lie in a Circle file that was read
    (circle.Tensor.data); they are copied from there.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    key: Hashable = None
    lead: Callable[[], Tensor] | None = None
    file: memoryview | None = None
    _kept: list[Tensor] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, tensor: Tensor) -> Constant:
        """A constant that exists already."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The bytes, contiguous on the CPU."""
        if self._kept:
            return self._kept[0]
        made = self.make().detach().cpu().contiguous()
        assert (made.dtype, tuple(made.shape)) == (self.dtype, self.shape), (
            f"a constant was made as {made.dtype} {tuple(made.shape)}, expected {self.dtype} {self.shape}"
        )
        if self.nbytes <= _KEEP:
            self._kept.append(made)
        return made

    def map(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> Constant:
        """What `change` makes of it, of this type and shape; made when asked for, too."""
        return Constant(dtype, shape, lambda: change(self.tensor()))

    def digest(self) -> bytes:
        """A checksum of all bytes; makes the constant."""
        return hashlib.blake2b(_flat(self.tensor()).numpy().data, digest_size=16).digest()

    def beginning(self) -> bytes:
        """The first LEAD bytes, or all of fewer; makes the constant where `lead` is not known."""
        made = self.tensor() if self.lead is None or self.nbytes <= _KEEP else self.lead()
        return _flat(made.detach().cpu())[:LEAD].numpy().tobytes()


def _flat(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
