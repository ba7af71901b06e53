# SPDX-License-Identifier: Apache-2.0
"""Gemma4's audio tower: every module of it as a wrapper, chunked local attention as a static graph, profiles, clips.

It owns what only the tower has; importing pyquant.models.gemma4 registers the wrappers.
"""
