# SPDX-License-Identifier: Apache-2.0
"""Models that accelerate offloads: the same tree as of the whole model, and the float model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant import models, offloaded, pages
from pyquant import stream as room
from pyquant.errors import CalibrationError
from pyquant.models.gemma4 import whole_example
from pyquant.stream import Stream

accelerate = pytest.importorskip("accelerate")


def whole(family: str) -> tuple[nn.Module, Any]:
    example: Any = whole_example if family == "gemma4" else models.by_name(family).example
    model = example.tiny_model()
    return model, [example.example_inputs(model)]


def off(model: nn.Module, kind: str, place: Path) -> nn.Module:
    if kind == "disk map":  # as a user does: from_pretrained leaves most of it in the checkpoint
        model.save_pretrained(place / "model", max_shard_size="40KB")  # type: ignore[operator]
        parts: dict[str, Any] = {name: "disk" for name, _ in model.named_children()}
        first = next(iter(parts))
        below = {f"{first}.{name}": "disk" for name, _ in model.get_submodule(first).named_children()}
        below[next(iter(below))] = "cpu"
        parts = below | {name: "disk" for name in parts if name != first}
        cls: Any = type(model)
        return cls.from_pretrained(  # type: ignore[no-any-return]
            place / "model", device_map=parts, offload_folder=place / "off", attn_implementation="eager"
        )
    if kind == "disk":
        accelerate.disk_offload(model, place / "off", execution_device="cpu")
    else:
        accelerate.cpu_offload(model, execution_device="cpu")
    return model


def grids(q: Any) -> dict[str, list[Tensor]]:
    return {s.path: [s.scale, s.zero_point] for s in q.all_sites() if s.scale is not None}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "disk"),
        ("llama", "cpu"),
        ("qwen3_vl", "disk map"),
        *(
            pytest.param(family, kind, marks=pytest.mark.slow)
            for family, kind in (
                ("llama", "disk map"),
                ("qwen3_vl", "disk"),
                ("qwen3_vl", "cpu"),
                ("gemma4", "disk map"),
                ("gemma4", "disk"),
                ("gemma4", "cpu"),
            )
        ),
    ],
)
def test_the_tree_is_that_of_the_whole_model(
    family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SMALL", 0)
    model, batches = whole(family)
    wanted = pyquant.quantize(model, batches, "w8a8-fast")
    with torch.no_grad():
        before = model(**batches[0]).logits
    fp = off(model, kind, tmp_path)
    assert offloaded.is_offloaded(fp)
    absent = [name for name, value in fp.named_parameters() if value.is_meta]
    assert len(absent) > 20
    q = pyquant.quantize(fp, batches, "w8a8-fast")
    assert q.state.stream is not None
    got, want = grids(q), grids(wanted)
    assert got.keys() == want.keys()
    assert [path for path in want if not all(map(torch.equal, got[path], want[path]))] == []
    state, other = q.state_dict(), wanted.state_dict()
    assert state.keys() == other.keys()
    assert [
        name for name in state if isinstance(other[name], Tensor) and not torch.equal(state[name], other[name])
    ] == []
    ties = [{id(value) for name, value in tree.named_parameters(remove_duplicate=False)} for tree in (q, wanted)]
    assert len(ties[0]) == len(ties[1])
    if kind != "cpu":
        held = [name for name, value in q.named_parameters() if name in absent and not pages.is_mapped(value)]
        assert [name for name in held if "patch_embed" not in name] == []
    assert [name for name, value in fp.named_parameters() if value.is_meta] == absent  # as it was, and it still runs
    # accelerate finds no tied head on the disk, and Gemma4 reads its table outside of the module that has it
    if kind != "disk map" and family != "gemma4":
        with torch.no_grad():
            assert torch.equal(fp(**batches[0]).logits, before)


def test_weights_that_are_nowhere_are_still_an_error() -> None:
    model, batches = whole("llama")
    accelerate.cpu_offload(model, execution_device="cpu")
    module: Any = model.get_submodule("model.layers.1.mlp.up_proj")
    module._hf_hook.weights_map = {}
    with pytest.raises(CalibrationError, match=r"1 weights .* no data \(device meta\).*up_proj.weight.*never loaded"):
        pyquant.quantize(model, batches, "w8a8-fast")


def test_a_stream_of_ones_own_is_used(tmp_path: Path) -> None:
    model, _ = whole("llama")
    accelerate.disk_offload(model, tmp_path / "off", execution_device="cpu")
    stream = Stream(tmp_path)
    assert pyquant.prepare(model, pyquant.Policy.preset("w8a8"), stream=stream).state.stream is stream
