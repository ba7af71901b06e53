# SPDX-License-Identifier: Apache-2.0
"""What an eager quantized tree keeps of its weights between calls, beside their values: memory for time, equal bits.

It owns the choice. What each choice does to a weight is site.py and block_site.py.
"""

from __future__ import annotations

from pyquant.errors import InputError
from pyquant.site import KEPT
from pyquant.wrap import QModule

__all__ = ["keep_weights"]


def keep_weights(q: QModule, what: str) -> None:
    """Choose what the tree `q` keeps of each weight from the first call on; results have equal bits whatever it is.

    "values": the weight on its grid, in its own type (the default: the fastest). Where the values are on the grid
        already (a loaded model, weights that GPTQ decided) these serve, and nothing is kept.
    "integers": the integers on the grid, an eighth (4 bit) or a quarter (8 bit) of float32; each call makes floats of
        them, for one weight at a time.
    "nothing": each call rounds the weight anew (the default of a streamed tree).

    What is kept now is let go. Raises InputError for another word.
    """
    if what not in KEPT:
        raise InputError(f"keep_weights takes one of {', '.join(KEPT)}, got {what!r}")
    q.state.kept = what
    for site in q.all_sites():
        site.let_go()
