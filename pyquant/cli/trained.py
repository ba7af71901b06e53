# SPDX-License-Identifier: Apache-2.0
"""Grids that a model was trained with: finding the folder that has them all, and a line that counts them.

It owns these words. What is read from the folder is pyquant.interop's.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from pyquant.wrap import QModule


def folder_of(name: str, fp: nn.Module) -> Path | None:
    """`name`, a folder or a hub name that was loaded, as prepare's `checkpoint`; None where its
    checkpoint has no grids."""
    from pyquant import companions
    from pyquant.interop.reader import METHODS, require_read
    from pyquant.wrap.foreign import READ_MODULES

    folder = companions.local_folder(name)
    layers = any(type(module).__module__ in READ_MODULES for module in fp.modules())
    return folder if layers or (folder is not None and require_read(folder) in METHODS) else None


def summary(q: QModule) -> str:
    """`trained grids: 12 weights, 2 tables, 20 activations, 4 cached keys and values; the rest is calibrated`; empty
    where no grid came with the checkpoint."""
    counts: Counter[str] = Counter()
    for site in q.all_sites():
        if site.decided.endswith(" checkpoint"):
            counts[_kind(site.path.rpartition(":")[2], site.role.value)] += 1
    if not counts:
        return ""
    kinds = ("weights", "tables", "activations", "cached keys and values")
    listed = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
    tools = {
        site.decided.removeprefix("stored, in the ") for site in q.all_sites() if site.decided.startswith("stored")
    }
    what = f"grids of the {min(tools)}" if tools else "trained grids"
    return f"{what}: {listed}; the rest is calibrated"


def _kind(name: str, role: str) -> str:
    if name in ("key", "value"):
        return "cached keys and values"
    return {"weight": "weights", "embedding": "tables", "constant": "scales of tables"}.get(role, "activations")
