# SPDX-License-Identifier: Apache-2.0
"""From a converted model to Circle graphs, and bundles of them.

It reads the graph that torch.export traces; it imports neither wrappers nor models.
"""

from __future__ import annotations

from pyquant.exporter.bundle import export_bundle
from pyquant.exporter.pipeline import export
from pyquant.exporter.precision import LowPrecisionWarning
from pyquant.exporter.profile import ExportProfile, TensorSpec
from pyquant.exporter.program import CircleProgram

__all__ = ["CircleProgram", "ExportProfile", "LowPrecisionWarning", "TensorSpec", "export", "export_bundle"]
