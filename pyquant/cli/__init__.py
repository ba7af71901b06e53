# SPDX-License-Identifier: Apache-2.0
"""The command line `pyquant`: one file a verb, each with `add_arguments(parser)` and `run(args) -> exit code`.

It owns finding verbs, printing errors and the exit codes (main.py); a verb's work is done in its room.
"""
