# SPDX-License-Identifier: Apache-2.0
"""Which weights of a tree an algorithm is to decide.

It owns matching, and the errors for a choice that is empty or a tree that is not ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from pyquant.errors import CalibrationError, PhaseError, PolicyError
from pyquant.spec import PerAxis, PerGroup
from pyquant.weight import Weight, weights
from pyquant.wrap import Phase, QModule

__all__ = ["chosen_weights"]


def chosen_weights(q: QModule, match: str | Sequence[str], max_bits: int) -> list[Weight]:
    """The linears whose weights nobody decided, of at most `max_bits`, whose path one of the globs of `match` fits.

    Weights that the policy leaves float or gives blocks are left out, and so are formats with scales along another
    axis than the rows. Raises PolicyError where none is left, PhaseError for a tree that is not in the CALIBRATE phase
    or was calibrated, CalibrationError for NaN or Inf in a weight.
    """
    if not isinstance(q, QModule):
        raise PhaseError(f"an algorithm takes the tree that pyquant.prepare returned, got {type(q).__name__}")
    q.require(Phase.CALIBRATE, "an algorithm")
    if seen := next((site for site in q.all_sites() if not site.role.is_constant and site.last_seen), None):
        raise PhaseError(
            f"the site {seen.path!r} was calibrated with weights that are not decided yet; decide weights after "
            "prepare and before pyquant.calibrate"
        )
    globs = (match,) if isinstance(match, str) else tuple(match)
    linears = [weight for weight in weights(q) if weight.is_linear]
    found = [w for w in linears if any(fnmatchcase(w.path, glob) for glob in globs)]
    chosen = [w for w in found if w.open and w.spec is not None and w.spec.dtype.bits <= max_bits and _by_rows(w)]
    if not chosen:
        decided = sorted({weight.how for weight in found if weight.how})
        count = f"{len(linears)} weights of linears, {len(found)} match {', '.join(map(repr, globs))}"
        raise PolicyError(
            f"no weight to decide: the tree has {count}, and none of these has integers of at most {max_bits} bits by "
            f"its policy and is undecided{f' (decided already: {decided})' if decided else ''}; see q.policy.explain(q)"
        )
    for weight in chosen:
        if not bool(weight.value.isfinite().all()):
            raise CalibrationError(
                f"the weight {weight.path!r} has NaN or infinite values; repair the checkpoint, and start again from "
                "pyquant.prepare"
            )
    return chosen


def _by_rows(weight: Weight) -> bool:
    granularity = None if weight.spec is None else weight.spec.granularity
    rank = weight.value.dim()
    if isinstance(granularity, PerAxis):
        return granularity.axis % rank == 0
    return not isinstance(granularity, PerGroup) or granularity.axis % rank == rank - 1
