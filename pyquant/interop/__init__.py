# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that other tools quantized: what their folders hold beyond what transformers loads, one file a format.

It owns reading those folders. The layers that transformers itself makes of one (Gemma's) have wrappers in
wrap/stored.py; other formats become a float model (load.py) whose tree gets their integers (decide.py).
"""

from pyquant.interop.load import load, model_class

__all__ = ["load", "model_class"]
