# SPDX-License-Identifier: Apache-2.0
"""Loads the native module `pyquant._circle`; the error says how to build it.

Nothing else imports that module by name.
"""

from __future__ import annotations

try:
    from pyquant import _circle as native
except ImportError as error:
    raise ImportError(
        f"pyquant's native Circle reader (pyquant/_circle) is missing: {error}; "
        "build it with `pip install -r requirements-dev.txt && pip install --no-build-isolation -e .` in the sources"
    ) from error

__all__ = ["native"]
