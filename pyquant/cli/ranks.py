# SPDX-License-Identifier: Apache-2.0
"""A command that torchrun started several times: one of the processes speaks, and an error of one is said once.

It owns who prints. What the processes tell each other is pyquant/distributed.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from pyquant.cli.main import FAILED
from pyquant.errors import CalibrationError, RankError

if TYPE_CHECKING:
    from pyquant.calibration import CalibrationData
    from pyquant.distributed import Group


def together(work: Callable[[Group | None], int]) -> int:
    """The exit code of `work`, called with the group of torchrun's processes; with None where there is one process.

    Only rank 0 prints meanwhile. An error of any rank ends all of them, and the first process of each host raises it.
    """
    from pyquant.distributed import Group

    group = Group.of_torchrun()
    if group is None:
        return work(None)
    try:
        with _silent(not group.first), group.guard():
            code = work(group)
            group.gather("the end", None)
        return code
    except RankError as error:
        if _speaks(group, error):
            raise
        group.wait_for_end()
        return FAILED


def share(data: CalibrationData, group: Group | None) -> CalibrationData:
    """The part of a rank: rank r of n has the samples from r / n to (r + 1) / n of them, in the order of the file.

    Raises CalibrationError for fewer samples than ranks.
    """
    if group is None:
        return data
    count, size = len(data), group.size
    if count < size:
        raise CalibrationError(
            f"{count} samples are too few for {size} processes, each of which calibrates on its own; start at most "
            f"{count}, or give more data"
        )
    return data[group.rank * count // size : (group.rank + 1) * count // size]


def _speaks(group: Group, error: RankError) -> bool:
    """Whether this is the first process of its host that is still there."""
    local = int(os.environ.get("LOCAL_RANK", group.rank))
    return local == 0 or (local == 1 and error.gone and error.rank == group.rank - 1)


@contextmanager
def _silent(silent: bool) -> Iterator[None]:
    if not silent:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
