# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint of another tool to the sites of a tree: each weight gets its integers, each activation its grid.

It owns what fits which site and the errors about what does not. The formats are the files beside this one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyquant.errors import ModelError
from pyquant.interop.gemma_qat import follow_owner
from pyquant.interop.places import Places
from pyquant.interop.reader import Reader
from pyquant.interop.stored_weight import StoredWeight
from pyquant.qparams import QParams
from pyquant.role import Role
from pyquant.spec import BlockSpec
from pyquant.weight import Weight, weights
from pyquant.wrap.base import QModule

__all__ = ["decide", "how"]

#: what a reader calls an activation -> the site of the module
_SITES = {"input": "act_in", "output": "act_out", "key": "key", "value": "value"}


def how(tool: str) -> str:
    """What Site.decided says of such a grid."""
    return f"stored, in the {tool} checkpoint"


def decide(q: QModule, reader: Reader, *, requantize: bool = False) -> None:
    """Give every weight of `q` that `reader` has its integers, and every activation its grid, of whatever width.

    A site that the policy leaves float stays float. requantize: weights whose grid no file can hold (groups, columns in
    another order, a table with a scale per row) are quantized anew as the policy says, instead of an error.

    Raises ModelError for these, for a tensor of the folder that is missing or does not fit, and for a weight that is
    not the folder's. Warns of what belongs to no layer of the tree, and of grids that are not taken.
    """
    places, used, reasons = Places(reader.weights), dict[str, str](), Counter[str]()
    for weight in weights(q):
        path = weight.path.partition(":")[0]
        stored = _stored(weight, places.fits(path), reader)
        if stored is None:
            continue
        used[path] = stored.name
        if weight.site.spec is None:
            continue
        if (why := _unfit(weight, stored)) is None:
            _give(weight, stored, reader)
        elif requantize:
            reasons[why] += 1
        else:
            step = reader.advice.symmetric if why.endswith("zero points") else reader.advice.per_channel
            raise ModelError(
                f"the weight of {stored.name!r} in {str(reader.folder.path)!r} {why}. Write the checkpoint with "
                f"{step}; or let pyquant quantize such weights anew from their values: "
                "prepare(..., requantize=True), or --requantize"
            )
    if reader.weights and not used:
        raise ModelError(
            f"checkpoint={str(reader.folder.path)!r} has none of the weights of this model (the first of its "
            f"{len(reader.weights)} is {min(reader.weights)!r}); give the folder that the model was loaded from"
        )
    _decide_activations(q, reader, used)
    _warn(q, reader, set(used.values()), reasons)


def _stored(weight: Weight, names: Sequence[str], reader: Reader) -> StoredWeight | None:
    """What the folder has for a weight: of several that could be meant (the layers, where the tree is a part of one),
    the one with its values. None where the folder has none."""
    stored = None
    for name in names:
        stored = reader.weight(name)
        same = stored.integers.shape == weight.value.shape
        if same and torch.equal(weight.value.cpu(), stored.value().to(weight.value.dtype)):
            return stored
    if stored is None:
        return None
    raise ModelError(
        f"the weight of {weight.path!r} is not that of {stored.name!r} in {str(reader.folder.path)!r}: it was changed "
        "after pyquant.interop.load, or is of another checkpoint; prepare it without checkpoint=, to quantize it anew"
    )


def _give(weight: Weight, stored: StoredWeight, reader: Reader) -> None:
    """Its integers and scales, on a grid or in blocks."""
    if isinstance(weight.site.spec, BlockSpec):
        blocks = stored.blocks()
        assert isinstance(blocks, Tensor), blocks
        weight.decide_blocks(stored.block_spec(), blocks, how(reader.tool))
        return
    stored = stored.positive()
    weight.decide(stored.qparams(), how(reader.tool), stored.integers)
    if not torch.equal(weight.integers.cpu(), stored.integers):
        form = str(weight.value.dtype).removeprefix("torch.")
        raise ModelError(
            f"a model in {form} cannot hold the {stored.bits}-bit integers of {stored.name!r} with their zero points; "
            "load it in float32: pyquant.interop.load(folder), or --dtype float32"
        )


def _unfit(weight: Weight, stored: StoredWeight) -> str | None:
    """Why the site cannot have this grid; None where it can."""
    if isinstance(weight.site.spec, BlockSpec):
        if weight.site.role is Role.EMBEDDING:
            return "is a lookup table, which the policy gives blocks of scales of their own"
        why = stored.blocks()
        return f"does not fit into {stored.block_spec()}: {why}" if isinstance(why, str) else None
    if stored.order is not None:
        return "has groups of columns in another order (act-order: desc_act=True), which no file format has"
    if stored.groups > 1:
        return (
            f"has a scale for every {stored.size} columns, and a Circle tensor has one scale per channel; only onert's "
            "blocks (--recipe w4_onert or q8_onert) have more"
        )
    if weight.site.role is Role.EMBEDDING and stored.scale.dim():
        return "is a lookup table with a scale per row, and a gathered row has one scale for all rows in a Circle file"
    return None


def _decide_activations(q: QModule, reader: Reader, used: Mapping[str, str]) -> None:
    grids = reader.activations()
    by_path: dict[str, dict[str, QParams]] = {}
    for name, qparams in grids.items():
        path, _, kind = name.rpartition(":")
        by_path.setdefault(path, {})[_SITES[kind]] = qparams
    places = Places(by_path)
    modules = {module.path: module for module in q.all_qmodules()}
    for path, module in modules.items():
        place = used[path] if used.get(path) in by_path else places.find(path)
        for name, qparams in {} if place is None else by_path[place].items():
            if name in module.sites and module.site(name).takes_grid and not module.site(name).decided:
                module.site(name).decide(qparams, how(reader.tool))
    for module in modules.values():
        follow_owner(module, modules)


def _warn(q: QModule, reader: Reader, used: set[str], reasons: Mapping[str, int]) -> None:
    said = [f"{count} weights are quantized anew: each {why}" for why, count in reasons.items()]
    trees = Places(module.path for module in q.all_qmodules() if module.path)
    inner = [path for path in sorted(reader.weights - used) if trees.find(path.rpartition(".")[0]) is not None]
    if inner:
        said.append(
            f"{len(inner)} weights belong to no layer of the tree by themselves (experts that the model holds as one "
            f"tensor), such as {inner[0]!r}, and are quantized anew"
        )
    for line in [*said, *reader.remarks()]:
        warnings.warn(f"{str(reader.folder.path)!r}: {line}", UserWarning, stacklevel=4)
