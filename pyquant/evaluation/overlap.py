# SPDX-License-Identifier: Apache-2.0
"""Which samples of an evaluation a model saw in calibration.

It owns when a sample counts as seen. Checksums of samples are calibration/fingerprint.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from pyquant.calibration.fingerprint import Fingerprint, prints
from pyquant.evaluation.result import Overlap

SEEN = 0.2  # of the runs of a text: a fifth


def overlap(known: Fingerprint, batches: Iterable[Mapping[str, Tensor]]) -> Overlap:
    """How many samples of `batches` (a model's arguments; each row is one) are in the calibration data `known`.

    A sample is seen when it is equal, when one of its images or clips was there, or when a fifth of its text was (by
    runs of 16 tokens, so that other cuts of the same text are found).
    """
    units = equal = images = runs = seen_runs = of = 0
    for batch in batches:
        for sample in prints(batch):
            of += 1
            same = sample.digest in known.digests
            image = any(digest in known.media for digest in sample.media)
            common = len(sample.runs & known.runs)
            runs, seen_runs = runs + len(sample.runs), seen_runs + common
            equal, images = equal + same, images + image
            units += same or image or (common > 0 and common >= SEEN * len(sample.runs))
    return Overlap(units, of, equal, images, seen_runs / runs if runs else 0.0)
