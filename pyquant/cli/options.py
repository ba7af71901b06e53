# SPDX-License-Identifier: Apache-2.0
"""What options of several verbs mean: a count, and the policy that --recipe and --policy name.

It owns turning their text into values. Which verb has which option is the verb's file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pyquant.errors import PolicyError
from pyquant.recipes import names as recipes

if TYPE_CHECKING:
    from pyquant.policy import Policy


def count(text: str, least: int = 1) -> int:
    """The `type=` of an option that takes a whole number of at least `least`."""
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of {least} or more")
    return int(text)


def policy_of(recipe: str | None, file: Path | None) -> Policy:
    """The preset `recipe`, and after its rules those of `file`. Raises PolicyError when neither is given."""
    from pyquant.cli.result_folder import read_policy
    from pyquant.policy import Policy

    if file is None:
        if recipe is None:
            raise PolicyError(f"give --recipe (one of {', '.join(recipes())}), --policy FILE, or both")
        return Policy.preset(recipe)
    own = read_policy(file)
    return own if recipe is None else Policy((*Policy.preset(recipe).rules, *own.rules), f"{recipe}+{own.name}")
