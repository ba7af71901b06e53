# SPDX-License-Identifier: Apache-2.0
"""Which grid each float value of the graph must have, read backward from the fake_quantize nodes in one pass.

A value has a grid when every use of it, through any moves, ends in a fake_quantize on that grid. What operators do
with grids is context.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from pyquant.errors import ExportError
from pyquant.exporter.fold import Folded, schema_args, site_of
from pyquant.exporter.grid import quant_of
from pyquant.exporter.plan import Quant
from pyquant.exporter.registry import Kind, is_fake_quantize, kind_of
from pyquant.exporter.tracing import location_of


@dataclass(frozen=True)
class Grids:
    """`of[node]`: the grid that a fake_quantize node names. `wanted[node]`: the grid that all uses of a value share."""

    of: dict[Node, Quant] = field(default_factory=dict)
    wanted: dict[Node, Quant] = field(default_factory=dict)
    notes: dict[Node, str] = field(default_factory=dict)


def propagate(nodes: list[Node], folded: Folded) -> Grids:
    """Grids of all nodes. Raises ExportError when an activation is quantized per channel."""
    grids = Grids()
    for node in nodes:
        if is_fake_quantize(node) and node not in folded:
            grids.of[node] = _grid(node, folded)
    live: set[Node] = set()
    for node in reversed(nodes):
        if node.op != "output" and not any(user in live for user in node.users):
            continue
        live.add(node)
        if not _is_float(node) or node in grids.of:
            continue
        users = [user for user in node.users if user in live]
        demands = {_demand(node, user, grids) for user in users}
        only = next(iter(demands)) if len(demands) == 1 else None
        if only is not None:
            grids.wanted[node] = only
        else:
            grids.notes[node] = _note(users, demands)
    return grids


def _grid(node: Node, folded: Folded) -> Quant:
    _, scale, zero_point, axis, group, qmin, qmax = schema_args(node)
    for source in (scale, zero_point):
        if source not in folded:
            raise ExportError(
                f"{site_of(scale, node, folded)} has a scale or zero_point that is computed from the graph's inputs "
                f"(node '{node.name}', {location_of(node)}); "
                "Circle qparams are constants: convert() the model before export"
            )
    site = site_of(scale, node, folded)
    quant = quant_of(folded[scale].value(), folded[zero_point].value(), axis, group, qmin, qmax, node, site)
    if quant.axis is not None:
        raise ExportError(
            f"{site} quantizes an activation per channel (axis {quant.axis}) at {location_of(node)} "
            f"(node '{node.name}'); activations have one scale: give this site PerTensor() in the policy"
        )
    return quant


def _demand(node: Node, user: Node, grids: Grids) -> Quant | None:
    if user in grids.of:
        return grids.of[user] if user.args[0] is node else None
    return grids.wanted.get(user) if kind_of(user) is not Kind.COMPUTE else None


def _note(users: list[Node], demands: set[Quant | None]) -> str:
    if demands == {None} or not demands:
        names = ", ".join(f"'{user.name}'" for user in users[:3])
        return f"no fake_quantize follows it; it goes to {names} as it is"
    given = [demand for demand in demands if demand is not None]
    if len(given) > 1:
        return "it is fake-quantized on different grids: " + " and ".join(sorted(str(demand) for demand in given))
    raw = [f"'{user.name}'" for user in users if not is_fake_quantize(user)]
    return f"it is fake-quantized ({given[0]}), but also used as it is by {', '.join(raw[:3])}"


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return any(isinstance(part, Tensor) and part.dtype.is_floating_point for part in value)
    return isinstance(value, Tensor) and value.dtype.is_floating_point
