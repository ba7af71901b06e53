# SPDX-License-Identifier: Apache-2.0
"""Small edits of a finished graph, one a file. None changes a value, a calibrated grid, or a graph input or output.

It owns their order; each pass is described in its file.
"""

from __future__ import annotations

from pyquant.exporter.passes.dead import remove_dead
from pyquant.exporter.passes.identity import remove_identities
from pyquant.exporter.passes.matmul import fold_matmul_transposes
from pyquant.exporter.passes.reshape import merge_reshapes
from pyquant.exporter.passes.share import share_constants
from pyquant.exporter.passes.transpose import merge_transposes
from pyquant.exporter.plan import Graph

PASSES = (
    fold_matmul_transposes,  # before merging, which would hide a swap inside another permutation
    merge_transposes,
    merge_reshapes,
    remove_identities,
    remove_dead,
    share_constants,
)


def run_passes(graph: Graph) -> Graph:
    """Every pass once, each in time linear in the graph."""
    for edit in PASSES:
        graph = edit(graph)
    return graph
