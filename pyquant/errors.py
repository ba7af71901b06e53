# SPDX-License-Identifier: Apache-2.0
"""The exceptions that a user of pyquant can cause.

Each also derives from the built-in that fits (ValueError, TypeError, KeyError), so callers may catch either.
Errors of pyquant itself are assertions, never one of these.
"""

from __future__ import annotations


class PyquantError(Exception):
    """Base of every error that a user mistake raises: what was seen, what was expected, where, and the next step."""

    def __str__(self) -> str:  # KeyError would print its repr
        return str(self.args[0]) if self.args else ""


class SpecError(PyquantError, ValueError):
    """A number format, QParams, policy or profile that cannot exist."""


class PolicyError(PyquantError, ValueError):
    """A policy whose rules do not fit the model (such as a rule that matches nothing)."""


class UnknownModuleError(PyquantError, KeyError):
    """A module type that has no wrapper."""


class CompatibilityError(PyquantError, RuntimeError):
    """A release of transformers whose classes are not those that the wrappers were written for."""


class PhaseError(PyquantError, ValueError):
    """A step out of order: convert before calibrate, convert twice, export before convert."""


class CalibrationError(PyquantError, ValueError):
    """Calibration data that cannot give qparams: none, NaN or Inf, or degenerate."""


class InputError(PyquantError, ValueError):
    """A tensor given to a model's forward that contradicts the model or the other inputs."""


class ProfileError(PyquantError, ValueError):
    """An export profile that contradicts the model."""


class ExportError(PyquantError, ValueError):
    """A graph that cannot be lowered: unknown operator, tensor without qparams."""


class CircleError(PyquantError, ValueError):
    """A .circle file, plan or weights file that is not valid, or cannot be written."""


class VerifyError(PyquantError, RuntimeError):
    """A runtime that rejects a file, crashes on it, or returns results of another shape than the file declares."""


class ModelError(PyquantError, ValueError):
    """A float model or checkpoint that cannot be loaded, or whose weights are no plain float tensors."""


class CheckpointError(PyquantError, ValueError):
    """A quantized checkpoint that is incomplete, corrupt, or of another model."""


class EvaluationError(PyquantError, ValueError):
    """An evaluation that cannot be done: a text or question that cannot be read, a task that is not there, models that
    cannot be compared."""


class OpArgumentError(PyquantError, ValueError):
    """An argument of a native operator: dtype, rank, scale, axis or group."""


class UsageError(PyquantError, ValueError):
    """A command line whose options contradict each other, or name something that does not exist."""


class RankError(PyquantError, RuntimeError):
    """A process of a group that failed, ended or disagrees: `rank` is its number, `gone` whether it is not there any
    more. Every process of the group raises it, with the same message."""

    def __init__(self, rank: int, text: str, *, gone: bool = False) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.rank, self.gone = rank, gone
