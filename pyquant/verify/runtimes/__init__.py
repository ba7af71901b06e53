# SPDX-License-Identifier: Apache-2.0
"""Runtimes that execute .circle files, one a file. Each is an optional dependency that says how to install it.

Judging what they compute is fidelity.py.
"""
