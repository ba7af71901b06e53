# SPDX-License-Identifier: Apache-2.0
"""Runtimes that execute .circle files, one a file. Each is an optional dependency, whose error has the install command.

Comparing what they compute is fidelity.py.
"""
