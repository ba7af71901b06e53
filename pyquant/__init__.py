# SPDX-License-Identifier: Apache-2.0
"""pyquant: quantize Hugging Face vision-language models after training and write .circle files that run as simulated.

It owns the public names. Each is loaded on first use, so that `import pyquant` and the command line start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "quantize": "pyquant.oneshot",
    "prepare": "pyquant.lifecycle",
    "calibrate": "pyquant.lifecycle",
    "convert": "pyquant.lifecycle",
    "save_quantized": "pyquant.checkpoint",
    "load_quantized": "pyquant.checkpoint",
    "keep_weights": "pyquant.weight_memory",
    "export": "pyquant.exporter",
    "export_bundle": "pyquant.exporter",
    "ExportProfile": "pyquant.exporter",
    "CircleProgram": "pyquant.exporter",
    "CalibrationWarning": "pyquant.lifecycle",
    "LowPrecisionWarning": "pyquant.exporter",
    "Policy": "pyquant.policy",
    "Rule": "pyquant.policy",
    "Recipe": "pyquant.recipe",
    "Step": "pyquant.recipe",
    "ObserverSpec": "pyquant.policy",
    "QuantSpec": "pyquant.spec",
    "BlockSpec": "pyquant.spec",
    "IntType": "pyquant.spec",
    "PerTensor": "pyquant.spec",
    "PerAxis": "pyquant.spec",
    "PerGroup": "pyquant.spec",
    "QParams": "pyquant.qparams",
    "PyquantError": "pyquant.errors",
    "Stream": "pyquant.stream",
    "register": "pyquant.wrap",
    "report": "pyquant.reporter",
    "evaluate": "pyquant.evaluation",
}
_ROOMS = (
    "algorithms",
    "calibration",
    "evaluation",
    "verify",
    "circle",
    "distributed",
    "interop",
    "trace",
    "ops",
    "wrap",
)

__all__ = [*_HOME, *_ROOMS, "__version__"]

if TYPE_CHECKING:
    from pyquant import algorithms as algorithms
    from pyquant import calibration as calibration
    from pyquant import circle as circle
    from pyquant import distributed as distributed
    from pyquant import evaluation as evaluation
    from pyquant import interop as interop
    from pyquant import ops as ops
    from pyquant import trace as trace
    from pyquant import verify as verify
    from pyquant import wrap as wrap
    from pyquant.checkpoint import load_quantized as load_quantized
    from pyquant.checkpoint import save_quantized as save_quantized
    from pyquant.errors import PyquantError as PyquantError
    from pyquant.evaluation import evaluate as evaluate
    from pyquant.exporter import CircleProgram as CircleProgram
    from pyquant.exporter import ExportProfile as ExportProfile
    from pyquant.exporter import LowPrecisionWarning as LowPrecisionWarning
    from pyquant.exporter import export as export
    from pyquant.exporter import export_bundle as export_bundle
    from pyquant.lifecycle import CalibrationWarning as CalibrationWarning
    from pyquant.lifecycle import calibrate as calibrate
    from pyquant.lifecycle import convert as convert
    from pyquant.lifecycle import prepare as prepare
    from pyquant.oneshot import quantize as quantize
    from pyquant.policy import ObserverSpec as ObserverSpec
    from pyquant.policy import Policy as Policy
    from pyquant.policy import Rule as Rule
    from pyquant.qparams import QParams as QParams
    from pyquant.recipe import Recipe as Recipe
    from pyquant.recipe import Step as Step
    from pyquant.reporter import report as report
    from pyquant.spec import BlockSpec as BlockSpec
    from pyquant.spec import IntType as IntType
    from pyquant.spec import PerAxis as PerAxis
    from pyquant.spec import PerGroup as PerGroup
    from pyquant.spec import PerTensor as PerTensor
    from pyquant.spec import QuantSpec as QuantSpec
    from pyquant.stream import Stream as Stream
    from pyquant.weight_memory import keep_weights as keep_weights
    from pyquant.wrap import register as register


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"pyquant.{name}")
    else:
        raise AttributeError(f"module 'pyquant' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
