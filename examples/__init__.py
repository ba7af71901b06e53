# SPDX-License-Identifier: Apache-2.0
"""Owns nothing: it makes `examples.digits` importable from the repository root.
Leaves every example to its own folder.
"""
