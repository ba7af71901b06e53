# SPDX-License-Identifier: Apache-2.0
"""Gemma4's text model: pyquant.decoder with two kinds of layers, shared keys, per-layer inputs and a soft-capped head.

It owns what only this text model has; importing pyquant.models.gemma4 registers the wrappers.
"""
