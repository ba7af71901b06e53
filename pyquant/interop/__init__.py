# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that other tools quantized: what their folders hold beyond what transformers loads, one file a format.

It owns reading those folders. The layers that transformers makes of them have wrappers in wrap/stored.py.
"""
