# SPDX-License-Identifier: Apache-2.0
"""Number formats: integer types, granularity, a QuantSpec of both and symmetry, and ggml's blocks.

It owns what a format is and which combinations exist. How a range is found is observe/, where a format applies is
policy.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyquant.errors import SpecError


@dataclass(frozen=True)
class IntType:
    """An integer storage type of `bits` bits. `IntType(8, signed=True)` prints as int8."""

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if (self.bits, self.signed) not in _SUPPORTED:
            names = ", ".join(_name(b, s) for b, s in sorted(_SUPPORTED))
            raise SpecError(f"IntType({self.bits}, signed={self.signed}) does not exist here; choose one of {names}")

    @property
    def name(self) -> str:
        return _name(self.bits, self.signed)

    @property
    def qmin(self) -> int:
        """Smallest value of an asymmetric grid."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @classmethod
    def parse(cls, name: str) -> IntType:
        """`"uint8"` -> UINT8. Raises SpecError that lists the names."""
        for bits, signed in _SUPPORTED:
            if _name(bits, signed) == name:
                return cls(bits, signed)
        names = ", ".join(_name(b, s) for b, s in sorted(_SUPPORTED))
        raise SpecError(f"type {name!r} does not exist here; choose one of {names}, {', '.join(BLOCKS)}")

    def __str__(self) -> str:
        return self.name


def _name(bits: int, signed: bool) -> str:
    return f"{'int' if signed else 'uint'}{bits}"


_SUPPORTED = {(4, True), (4, False), (8, True), (8, False), (16, True)}

INT4, UINT4 = IntType(4, True), IntType(4, False)
INT8, UINT8 = IntType(8, True), IntType(8, False)
INT16 = IntType(16, True)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def __str__(self) -> str:
        return "per-tensor"


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of `axis` (per-channel). Negative axes count from the end."""

    axis: int

    def __str__(self) -> str:
        return f"per-channel(axis={self.axis})"


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of `size` elements along `axis`; `size` must divide that dimension."""

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SpecError(f"PerGroup size must be at least 1, got {self.size}")

    def __str__(self) -> str:
        return f"per-group(axis={self.axis}, size={self.size})"


Granularity = PerTensor | PerAxis | PerGroup


@dataclass(frozen=True)
class QuantSpec:
    """A number format: `QuantSpec(INT8, symmetric=True, granularity=PerAxis(0))`.

    Symmetric grids have zero_point 0 and a scale that puts the range on [-qmax, qmax]; an unsigned type cannot be
    symmetric, and 16-bit formats must be (the runtimes have no 16-bit zero point).
    """

    dtype: IntType
    symmetric: bool = False
    granularity: Granularity = PerTensor()

    def __post_init__(self) -> None:
        if self.symmetric and not self.dtype.signed:
            raise SpecError(f"{self.dtype} cannot be symmetric: it has no negative values; use a signed type")
        if self.dtype.bits == 16 and not self.symmetric:
            raise SpecError(f"{self.dtype} must be symmetric: no runtime of Circle has a 16-bit zero point")

    @property
    def qmin(self) -> int:
        """Smallest integer that this format uses (-qmax when symmetric)."""
        return -self.dtype.qmax if self.symmetric else self.dtype.qmin

    @property
    def qmax(self) -> int:
        return self.dtype.qmax

    def __str__(self) -> str:
        return f"{self.dtype} {'symmetric' if self.symmetric else 'asymmetric'} {self.granularity}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; `from_dict` reads it back."""
        out: dict[str, Any] = {"dtype": self.dtype.name, "symmetric": self.symmetric}
        match self.granularity:
            case PerAxis(axis):
                out["granularity"] = {"per_axis": axis}
            case PerGroup(axis, size):
                out["granularity"] = {"per_group": [axis, size]}
            case _:
                out["granularity"] = "per_tensor"
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantSpec:
        """Inverse of `to_dict`. Raises SpecError that names the key that does not fit."""
        if data.get("dtype") in BLOCKS:
            if set(data) != {"dtype"}:
                raise SpecError(f"{data['dtype']} is a whole format and takes no other key, got {sorted(data)}")
            return BlockSpec(data["dtype"])
        unknown = set(data) - {"dtype", "symmetric", "granularity"}
        if unknown or "dtype" not in data:
            raise SpecError(f"a QuantSpec has the keys dtype, symmetric, granularity; got {sorted(data)}")
        return cls(
            IntType.parse(data["dtype"]), bool(data.get("symmetric", False)), _granularity(data.get("granularity"))
        )


#: ggml's block formats, and the type of the integers in them
BLOCKS = {"q4_0": INT4, "q8_0": INT8}


@dataclass(frozen=True)
class BlockSpec(QuantSpec):
    """A block format of ggml, for weights and lookup tables: `BlockSpec("q4_0")`.

    32 consecutive values of a row share a half-precision scale stored in the data, computed by ggml's rule from these
    32 values (`pyquant.ops.quantize_blocks`): there is nothing to observe, and no QParams.
    """

    dtype: IntType = field(init=False)
    symmetric: bool = field(init=False, default=True)
    granularity: Granularity = field(init=False, default=PerGroup(-1, 32))
    name: str = "q4_0"

    def __post_init__(self) -> None:
        if self.name not in BLOCKS:
            raise SpecError(f"block format {self.name!r} does not exist here; choose one of {', '.join(BLOCKS)}")
        object.__setattr__(self, "dtype", BLOCKS[self.name])

    @property
    def bits(self) -> int:
        """4 or 8, as the native operators take it."""
        return self.dtype.bits

    def __str__(self) -> str:
        return f"{self.name} blocks"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; `QuantSpec.from_dict` reads it back."""
        return {"dtype": self.name}


def _granularity(data: Any) -> Granularity:
    match data:
        case None | "per_tensor":
            return PerTensor()
        case {"per_axis": int(axis)}:
            return PerAxis(axis)
        case {"per_group": [int(axis), int(size)]}:
            return PerGroup(axis, size)
    raise SpecError(
        f"granularity {data!r} is not known; expected 'per_tensor', {{'per_axis': AXIS}} or "
        f"{{'per_group': [AXIS, SIZE]}}"
    )
