# SPDX-License-Identifier: Apache-2.0
"""Roles and phases: what kind of tensor a quantization site has, and which of three phases a tree is in.

It owns these two enums and the ranges that are known without data. Sites are site.py; rules that pick roles are
policy.py.
"""

from __future__ import annotations

import enum

from pyquant.spec import QuantSpec


class Phase(enum.Enum):
    """FLOAT: sites pass values through. CALIBRATE: they observe them. QUANTIZED: they put them on their grid."""

    FLOAT = "float"
    CALIBRATE = "calibrate"
    QUANTIZED = "quantized"


class Role(str, enum.Enum):
    """What the tensor at a site is. A rule for `activation` also covers the roles whose range is known."""

    ACTIVATION = "activation"
    WEIGHT = "weight"  # the kernel of a linear or convolution
    EMBEDDING = "embedding"  # a table that is looked up
    CONSTANT = "constant"  # norm gammas, rope and position tables, masks
    SOFTMAX = "softmax"  # [0, 1]
    SIGMOID = "sigmoid"  # [0, 1]
    TANH = "tanh"  # [-1, 1]
    UNIT = "unit"  # [-1, 1]: cos and sin

    @property
    def is_constant(self) -> bool:
        """True for values that do not depend on the model's inputs: observed once, when the tree is prepared."""
        return self in (Role.WEIGHT, Role.EMBEDDING, Role.CONSTANT)

    @property
    def is_kernel(self) -> bool:
        """True for tensors that are stored row by row and read completely: the roles that block formats are for."""
        return self in (Role.WEIGHT, Role.EMBEDDING)

    @property
    def known_range(self) -> tuple[float, float] | None:
        """The range of a role that needs no data, or None."""
        return _RANGES.get(self)

    def covers(self, role: Role) -> bool:
        """True when a rule written for this role applies to a site of `role`."""
        return self is role or (self is Role.ACTIVATION and role.known_range is not None)

    @classmethod
    def parse(cls, name: str) -> Role:
        """`"weight"` -> Role.WEIGHT. Raises ValueError that lists the names."""
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"role {name!r} does not exist; choose one of {', '.join(r.value for r in cls)}") from None


_RANGES = {
    Role.SOFTMAX: (0.0, 1.0),
    Role.SIGMOID: (0.0, 1.0),
    Role.TANH: (-1.0, 1.0),
    Role.UNIT: (-1.0, 1.0),
}

# (role, type, symmetric) -> (scale, zero point) that the runtimes fix for these operators' outputs.
_FIXED = {
    (Role.SOFTMAX, "uint8", False): (1 / 255, 0),
    (Role.SOFTMAX, "int8", False): (1 / 255, -128),
    (Role.SOFTMAX, "int16", True): (1 / 32767, 0),
    (Role.SIGMOID, "uint8", False): (1 / 256, 0),
    (Role.SIGMOID, "int8", False): (1 / 256, -128),
    (Role.SIGMOID, "int16", True): (1 / 32768, 0),
    (Role.TANH, "uint8", False): (2 / 256, 128),
    (Role.TANH, "int8", False): (2 / 256, 0),
    (Role.TANH, "int16", True): (1 / 32768, 0),
}


def fixed_grid(role: Role, spec: QuantSpec) -> tuple[float, int] | None:
    """(scale, zero_point) that the runtimes prescribe for `role` in this format; None: derive it from the range."""
    return _FIXED.get((role, spec.dtype.name, spec.symmetric))
