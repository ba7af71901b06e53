# SPDX-License-Identifier: Apache-2.0
"""The error of traces: one class, below the modules that raise it."""

from __future__ import annotations

from pyquant.errors import PyquantError


class TraceError(PyquantError, ValueError):
    """A trace that cannot be recorded, read or compared as requested."""
