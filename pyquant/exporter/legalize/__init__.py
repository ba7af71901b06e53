# SPDX-License-Identifier: Apache-2.0
"""Rewrites of a finished graph into forms that a target's runtime computes correctly, one idea a file.

It owns which target needs which rewrite. None changes what a graph computes; a form that no rewrite covers stays, and
the checker of the target (csrc/circle/check) reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyquant.circle.files import Target
from pyquant.exporter.legalize.blocks import decode_tables
from pyquant.exporter.legalize.conv import add_biases
from pyquant.exporter.legalize.fully_connected import flatten_rows
from pyquant.exporter.legalize.integer_forms import rewrite_integers
from pyquant.exporter.legalize.integer_types import route_integers
from pyquant.exporter.legalize.matmul import simplify_matmuls
from pyquant.exporter.passes import run_passes
from pyquant.exporter.plan import Graph

_REWRITES: Mapping[Target, tuple[Callable[[Graph], Graph], ...]] = {
    "onert": (decode_tables, add_biases, flatten_rows, simplify_matmuls, route_integers, rewrite_integers),
}


def legalize(graph: Graph, target: Target) -> Graph:
    """The graph in forms that `target` runs; the same graph for a target that runs all forms."""
    rewrites = _REWRITES.get(target, ())
    for rewrite in rewrites:
        graph = rewrite(graph)
    return run_passes(graph) if rewrites else graph
