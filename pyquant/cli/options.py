# SPDX-License-Identifier: Apache-2.0
"""What options of several verbs mean: a count, and the recipe that --recipe and --policy name.

It owns turning their text into values. Which verb has which option is the verb's file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyquant.errors import PolicyError
from pyquant.recipes import names as recipes

if TYPE_CHECKING:
    from pyquant.recipe import Recipe


def count(text: str, least: int = 1) -> int:
    """The `type=` of an option that takes a whole number of at least `least`."""
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of {least} or more")
    return int(text)


def recipe_name(text: str) -> str:
    """The `type=` of --recipe: the name of a recipe that comes with pyquant, or a file."""
    if text in recipes() or Path(text).suffix in (".yaml", ".yml", ".json") or Path(text).is_file():
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(recipes())}, and no file")


def recipe_of(recipe: str | None, file: Path | None, note: Callable[[str], None]) -> Recipe:
    """The recipe by its name or file, and after its rules those of `file`, a policy.

    Raises PolicyError when neither is given. A recipe file given as `file` is noted: its steps are not run.
    """
    from pyquant.policy import Policy
    from pyquant.recipe import Recipe

    if file is None:
        if recipe is None:
            raise PolicyError(f"give --recipe (one of {', '.join(recipes())}, or a file), --policy FILE, or both")
        return Recipe.of(recipe)
    own = Policy.load(file)
    if steps := Recipe.load(file).steps:
        note(
            f"--policy {file}: its rules are used, its steps ({', '.join(map(str, steps))}) are not; --recipe runs them"
        )
    return Recipe.of(own) if recipe is None else Recipe.of(recipe).with_rules(own)
