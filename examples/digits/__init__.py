# SPDX-License-Identifier: Apache-2.0
"""Owns the digits example: real handwritten digits read by a small trained Gemma4 vision tower.
Leaves quantization and export to pyquant.
"""
