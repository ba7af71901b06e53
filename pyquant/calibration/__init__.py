# SPDX-License-Identifier: Apache-2.0
"""Calibration data from files: prompts with images through a checkpoint's own processor, or batches made elsewhere.

It owns reading and checking them. Running a model on them is lifecycle.calibrate; choosing them is up to the user.
"""

from __future__ import annotations

from pyquant.calibration.data import CalibrationData, read
from pyquant.calibration.fingerprint import Fingerprint, fingerprint
from pyquant.calibration.lines import Line, read_lines
from pyquant.calibration.load import load_reader
from pyquant.calibration.processor import Reader

__all__ = ["CalibrationData", "Fingerprint", "Line", "Reader", "fingerprint", "load_reader", "read", "read_lines"]
