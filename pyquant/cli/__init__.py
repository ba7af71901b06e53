# SPDX-License-Identifier: Apache-2.0
"""The command line `pyquant`: one file a verb, each with `add_arguments(parser)` and `run(args) -> exit code`.

It owns how verbs are found, how errors are said and what exit codes mean (main.py); what a verb does is a room's.
"""
