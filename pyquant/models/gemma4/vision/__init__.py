# SPDX-License-Identifier: Apache-2.0
"""Gemma4's vision tower: every module of it as a wrapper, static tables of patch positions, export profiles, batches.

It owns what only the tower has; importing pyquant.models.gemma4 registers the wrappers.
"""
