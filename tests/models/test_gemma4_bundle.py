# SPDX-License-Identifier: Apache-2.0
"""Bundles of Gemma4 on disk: every graph Circle = eager, the manifest, and Session's tokens = those of the tree."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant import circle
from pyquant.exporter import CircleProgram
from pyquant.models import gemma4
from pyquant.verify import Session, compare
from pyquant.verify.tolerance import deep_faults, op_faults
from tests.models.gemma4_bundle_tiny import FRAME, A, B, for_release, given, profile, tree

#: Each export takes its time; the one of w8a16 has all kinds of graphs.
POLICIES = ("w8a8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("w8a16", "w4a16")))
LEAN: dict[str, Any] = {
    "image_shapes": (A,),
    "audio_lengths": (),
    "prefill_lengths": (8,),
    "append_lengths": (),
    "max_seq_len": 14,
}
FULL: dict[str, Any] = {
    "image_shapes": (A, B, FRAME),
    "audio_lengths": (12,),
    "prefill_lengths": (20,),
    "append_lengths": (4,),
    "max_seq_len": 34,
}
SAID = {"w8a16": ("all", "image_last"), "w8a8": ("image_first",), "w4a16": ("image_first",)}
NEW = 6
OPTIONS: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "repetition_penalty": 3.0}


@dataclass
class Bundle:
    """What export_bundle wrote and returned, and the inputs that a session gave each graph last."""

    policy: str
    q: Any
    folder: Path
    profile: gemma4.Profile
    programs: dict[str, CircleProgram]
    seen: dict[str, dict[str, Tensor]]

    def tokens(self, session: Session, inputs: dict[str, Any]) -> Tensor:
        def run(name: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
            self.seen[name] = given
            return session.run(name, given)

        found: Tensor = session.host.generate(run, **inputs, max_new_tokens=NEW, **OPTIONS)
        return found


@pytest.fixture(scope="module", params=POLICIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    _, q = tree(request.param)
    folder, own = tmp_path_factory.mktemp(request.param), profile(**(FULL if request.param == "w8a16" else LEAN))
    return Bundle(request.param, q, folder, own, pyquant.export_bundle(q, folder, own), {})


def test_every_tensor_has_a_grid(bundle: Bundle) -> None:
    for name, program in bundle.programs.items():
        assert program.missing_qparams() == [], name
        for tensor in circle.read(bundle.folder / f"{name}.circle").tensors:
            if tensor.quantized:
                assert all(math.isfinite(scale) and scale > 0 for scale in tensor.scale), (name, tensor.name)
            else:
                assert tensor.dtype.lower() in ("int32", "int64", "bool"), (name, tensor.name, tensor.dtype)


def test_tokens_and_graphs(bundle: Bundle) -> None:
    """Session gives the tokens of the tree; and every graph, on its inputs, computes what its eager adapter does."""
    with Session(bundle.folder, runtime="tico") as session:
        for name in SAID[bundle.policy]:
            inputs = given(name, seed=3)
            theirs = bundle.q.generate(**for_release(inputs), max_new_tokens=NEW, **OPTIONS)
            assert torch.equal(bundle.tokens(session, inputs), theirs), name
        if bundle.profile.append_lengths:
            long = given("long", seed=3)["input_ids"]
            long = torch.cat([long, long[:, :5]], dim=1)
            theirs = bundle.q.generate(long, max_new_tokens=NEW, **OPTIONS)
            assert torch.equal(bundle.tokens(session, {"input_ids": long}), theirs)
    bundle.seen["token_embedding"] = {"input_ids": torch.tensor([[1, 5, 6]], dtype=torch.int32)}
    bundle.seen["per_layer_embedding"] = bundle.seen["token_embedding"]
    unused = {"fusion_s4"}  # of a part of a prompt without images
    assert set(bundle.programs) - unused == set(bundle.seen)
    parts = bundle.profile.graphs(bundle.q)
    for name, inputs in bundle.seen.items():
        part, _ = parts[name]
        report = compare(bundle.programs[name], part, inputs)
        assert op_faults(report) == [], f"{name}\n{report}"
        with pyquant.wrap.phase(bundle.q, pyquant.wrap.Phase.FLOAT), torch.no_grad():
            adapter = bundle.programs[name].adapter
            out = adapter(*(inputs[key] for key in adapter.input_specs))
        reference = dict(zip(adapter.output_names, out if isinstance(out, tuple) else (out,), strict=True))
        assert deep_faults(bundle.programs[name], part, inputs, reference, report) == [], f"{name}\n{report}"


def test_manifest(bundle: Bundle) -> None:
    if bundle.policy != "w8a16":
        pytest.skip("one of them has all kinds of graphs")
    written = json.loads((bundle.folder / "manifest.json").read_text())
    assert written["family"] == "gemma4"
    assert written["images"]["shapes"] == [[4, 4], [2, 6], [2, 4]]
    assert written["audio"] == {"lengths": [12], "frames_per_token": 4}
    assert written["per_layer_inputs"] == {"layers": 4, "width": 6}
    assert written["positions"]["image_token_id"] == 30
    assert written["positions"]["pad_token_id"] == 0
    layers = written["cache"]["layers"]
    assert [layer.get("capacity") for layer in layers] == [4, None, None, None], "a ring of window - 1"
    assert [layer.get("shares") for layer in layers] == [None, None, 0, 1]
    assert [layer["head_dim"] for layer in layers] == [8, 16, 8, 16]
    graphs = written["graphs"]
    decode = {each["name"]: each["shape"] for each in graphs["decode"]["inputs"]}
    assert decode["past_key_0"] == [1, 2, 4, 8]
    assert decode["past_key_1"] == [1, 2, 33, 16]
    assert "past_key_2" not in decode
    assert decode["attention_mask_sliding"] == [1, 1, 1, 5]
    assert decode["attention_mask_full"] == [1, 1, 1, 34]
    for name, entry in graphs.items():
        for each in (*entry["inputs"], *entry["outputs"]):
            assert each.get("meaning"), f"{name}: nobody says what {each['name']} is"


def test_several_profiles_disturb_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """Other graphs of the same tree, and then the first ones again: the same bytes."""
    if bundle.policy != "w8a8":
        pytest.skip("the format does not matter")
    small = {**LEAN, "prefill_lengths": (3,), "max_seq_len": 6, "batch_size": 2}
    graphs = profile(**small, layers="per_layer").graphs(bundle.q)
    for name in ("prefill_s3_layer0", "decode_layer3", "fusion_s3"):
        pyquant.export(*graphs[name])
    for name in ("prefill_s8", "vision_h4_w4", "lm_head"):
        part, own = bundle.profile.graphs(bundle.q)[name]
        again = tmp_path / f"{name}.circle"
        pyquant.export(part, own, name=name).save(again)
        assert again.read_bytes() == (bundle.folder / f"{name}.circle").read_bytes(), name
