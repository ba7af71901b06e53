# SPDX-License-Identifier: Apache-2.0
"""Orthogonal matrices that spread a vector over all of its channels: Hadamard where one is known, else random.

It owns the matrices, in float64. What they are folded into is rotate.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant import ops
from pyquant.errors import InputError

__all__ = ["Rotation", "core", "rotation"]


def core(n: int) -> Tensor | None:
    """What ops.hadamard_ doubles to a Hadamard matrix of order n: (c, c) float64 of 1 and -1 with rows at right angles.

    None where no construction below gives one. n is a power of two times 1 or the order of a matrix of Paley's (1933):
    q + 1 for a prime q = 3 mod 4, 2 (q + 1) for a prime q = 1 mod 4; so 12, 20, 28, 36 and most multiples of 4.
    """
    twos = (n & -n).bit_length() - 1 if n > 0 else -1
    for doublings in range(twos, -1, -1):
        order = n >> doublings
        found = torch.ones(1, 1, dtype=torch.float64, device="cpu") if order == 1 else _paley(order)
        if found is not None:
            return found
    return None


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix R (n, n), R R^T = 1, as what rows are multiplied by.

    Either `dense`, R itself in float64, or a Hadamard matrix over sqrt(n) with rows of random sign: its `core`, and
    `signs` (n,). The second takes n log n operations a row.
    """

    dense: Tensor | None = None
    core: Tensor | None = None
    signs: Tensor | None = None

    @property
    def n(self) -> int:
        """How many channels it turns."""
        whole = self.signs if self.dense is None else self.dense
        assert whole is not None, "a rotation is dense or has a core and signs"
        return len(whole)

    def __call__(self, rows: Tensor) -> Tensor:
        """`x R` for each part x of n channels: rows (..., k * n) in float64 -> the same shape, a new tensor."""
        parts = rows.contiguous().view(-1, self.n)
        if self.dense is not None:
            return (parts @ self.dense.to(rows.device)).view(rows.shape)
        assert self.core is not None
        assert self.signs is not None
        out = parts * self.signs.to(rows.device)
        ops.hadamard_(out, self.core.to(rows.device))
        return out.div_(math.sqrt(self.n)).view(rows.shape)


def rotation(n: int, seed: int, *, keep_mean: bool = False) -> Rotation:
    """An orthogonal matrix R (n, n), the same for the same arguments.

    A Hadamard matrix with random signs where one of that order is known, else a random one. keep_mean: R also leaves
    the vector of ones, and with it every mean over channels, as it is: R 1 = 1 and 1^T R = 1^T. Raises InputError for
    n < 1.
    """
    if n < 1:
        raise InputError(f"a rotation has at least one channel, got {n}")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"a seed is an integer from 0 to 2^63 - 1, got {seed}")
    generator = torch.Generator().manual_seed(seed)
    if keep_mean:
        return Rotation(dense=_keeping_ones(n, generator))
    signs = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int64, device="cpu").double() * 2 - 1
    known = core(n)
    return Rotation(dense=_random(n, generator)) if known is None else Rotation(core=known, signs=signs)


def _keeping_ones(n: int, generator: torch.Generator) -> Tensor:
    """Any rotation of the space at right angles to the ones: in a basis whose first vector is the ones, (1, random).

    The basis is the reflection (Householder) that swaps the first unit vector and the ones over sqrt(n).
    """
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64, device="cpu")
    v = torch.full((n,), -1 / math.sqrt(n), dtype=torch.float64, device="cpu")
    v[0] += 1
    reflection = torch.eye(n, dtype=torch.float64, device="cpu") - 2 * torch.outer(v, v) / v.dot(v)
    inner = torch.eye(n, dtype=torch.float64, device="cpu")
    inner[1:, 1:] = _random(n - 1, generator)
    return reflection @ inner @ reflection


def _random(n: int, generator: torch.Generator) -> Tensor:
    """Uniform over all orthogonal matrices: Q of a Gaussian matrix, with the signs that make R's diagonal positive
    (Mezzadri, arXiv math-ph/0609050)."""
    gaussian = torch.randn(n, n, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(gaussian)
    signs: Tensor = torch.where(r.diagonal() < 0, -1.0, 1.0)
    found: Tensor = signs * q
    return found


def _paley(n: int) -> Tensor | None:
    """The Hadamard matrix of order `n` of Paley's constructions I and II over a prime, or None."""
    if n % 4 == 0 and _is_prime(n - 1):  # n - 1 = 3 mod 4
        return torch.eye(n, dtype=torch.float64, device="cpu") + _jacobsthal(n - 1, -1.0)
    q = n // 2 - 1
    if n % 4 == 0 and q % 4 == 1 and _is_prime(q):
        one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64, device="cpu")
        other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64, device="cpu")
        unit = torch.eye(q + 1, dtype=torch.float64, device="cpu")
        return torch.kron(_jacobsthal(q, 1.0), one) + torch.kron(unit, other)
    return None


def _jacobsthal(q: int, corner: float) -> Tensor:
    """(q + 1, q + 1): 1 if i - j is a square modulo q, -1 if not, 0 for i = j, with a border of 1 and `corner`."""
    character = torch.full((q,), -1.0, dtype=torch.float64, device="cpu")
    numbers = torch.arange(q, dtype=torch.int64, device="cpu")
    character[numbers * numbers % q] = 1.0
    character[0] = 0.0
    out = torch.zeros(q + 1, q + 1, dtype=torch.float64, device="cpu")
    out[1:, 1:] = character[(numbers[:, None] - numbers[None, :]) % q]
    out[0, 1:], out[1:, 0] = 1.0, corner
    return out


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))
