# SPDX-License-Identifier: Apache-2.0
"""How much memory the vision tower holds at its peak while calibrating, next to transformers' own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from qwen_vision_tiny import Grid, patches, pixels, vision
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyquant
from pyquant import Policy
from pyquant.models.qwen3_vl.grids import Segments


class Peak(TorchDispatchMode):
    """Counts the bytes of the storages that operators made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        out = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and (storage := leaf.untyped_storage()).data_ptr() not in given:
                self.alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


def peak(run: Callable[[], Any]) -> int:
    with torch.no_grad(), Peak() as counter:
        run()
    return counter.most


def inputs(grids: tuple[Grid, ...]) -> dict[str, torch.Tensor]:
    return {"hidden_states": pixels(grids), "grid_thw": torch.tensor(grids)}


IMAGE: tuple[Grid, ...] = ((1, 32, 32),)
LOGITS = 4 * 4 * 1024 * 1024  # bytes of the logits of one block: 4 heads, float32


def test_calibrating_1024_patches_holds_what_transformers_holds() -> None:
    fp = vision()
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    given = inputs(IMAGE)
    theirs = peak(lambda: fp(**given))
    mine = peak(lambda: pyquant.calibrate(q, [given], progress=False))
    assert theirs > 2 * LOGITS  # it counts what it should
    assert mine < 1.05 * theirs


def test_blocks_do_not_add_up() -> None:
    given = inputs(IMAGE)
    one, three = (
        peak(lambda q=q: pyquant.calibrate(q, [given], progress=False))
        for q in (pyquant.prepare(vision(depth=n, deepstack_visual_indexes=[]), Policy.preset("w8a8")) for n in (1, 3))
    )
    assert three < one + 0.05 * LOGITS


def test_quantized_holds_one_logit_tensor_more() -> None:
    fp = vision(depth=1, deepstack_visual_indexes=[0])
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    given = inputs(IMAGE)
    pyquant.calibrate(q, [given], progress=False)
    pyquant.convert(q)
    theirs = peak(lambda: fp(**given))
    assert peak(lambda: q(**given)) < theirs + 1.1 * LOGITS
    assert sum(b.numel() * b.element_size() for b in q.buffers()) < LOGITS / 100


def test_segments_need_no_mask_of_all_patches_by_all_patches() -> None:
    """64 frames of 16 patches: logits are 1/64 of what one segment of as many patches takes."""
    fp = vision(depth=1, deepstack_visual_indexes=[0])
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    video = inputs(((64, 4, 4),))
    assert patches(((64, 4, 4),)) == patches(IMAGE)
    assert Segments.of_grids([(64, 4, 4)]).folds(4)[0].count == 64
    assert peak(lambda: pyquant.calibrate(q, [video], progress=False)) < LOGITS / 4
