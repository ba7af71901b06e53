# SPDX-License-Identifier: Apache-2.0
"""Equal blocks of a graph are recorded once, and graph and file are those of a trace in full."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import pyquant
from pyquant.decoder.graphs import TextProfile
from pyquant.errors import ExportError
from pyquant.exporter.pipeline import build
from pyquant.exporter.tracing import Templates, Traced
from pyquant.models.qwen3_vl import VisionProfile
from pyquant.role import Role
from pyquant.spec import INT16
from tests.models import gemma4_bundle_tiny, gemma4_text_tiny, llama_tiny, qwen_bundle_tiny

W8A8 = pyquant.Policy.preset("w8a8")


def converted(fp: Any, policy: pyquant.Policy = W8A8, vocabulary: int = 40) -> Any:
    q = pyquant.prepare(fp, policy)
    ids = torch.randint(3, vocabulary, (1, 12), generator=torch.Generator().manual_seed(0))
    pyquant.calibrate(q, [{"input_ids": ids}], progress=False)
    pyquant.convert(q)
    return q


@cache
def llama(layers: int = 3, policy: pyquant.Policy = W8A8) -> Any:
    """The stack of a Llama."""
    return converted(llama_tiny.model(num_hidden_layers=layers), policy).model


@cache
def gemma() -> Any:
    """Seven layers: three of four with a window, the last three read the keys of others, all have per-layer inputs."""
    return converted(gemma4_text_tiny.text_model())


def same(part: Any, profile: Any, templates: Templates | None = None) -> Traced:
    """What is exported by templates, after comparing it with a trace in full."""
    full = build(part, profile, in_full=True)
    once = build(part, profile, templates=templates)
    assert full.traced.copied == 0
    assert nodes(once.traced) == nodes(full.traced)
    assert once.to_bytes() == full.to_bytes()
    assert {key: path for key, (path, _) in once.traced.lifted.items()} == {
        key: path for key, (path, _) in full.traced.lifted.items()
    }
    for key, (_, tensor) in once.traced.lifted.items():
        assert torch.equal(tensor, full.traced.lifted[key][1])
    return once.traced


def nodes(traced: Traced) -> list[tuple[Any, ...]]:
    """All that lowering, messages and comparisons read of a graph."""
    return [
        (
            node.op,
            node.name,
            str(node.target),
            str(node.args),
            str(node.kwargs),
            list((node.meta.get("nn_module_stack") or {}).items()),
            str(node.meta.get("val")),
        )
        for node in traced.nodes
    ]


@pytest.mark.parametrize(
    ("profile", "calls"),
    [
        pytest.param(TextProfile(1, 4), 1, id="prefill"),
        pytest.param(TextProfile(2, 3, 5, attention="per_head"), 2, id="append_per_head", marks=pytest.mark.slow),
    ],
)
def test_equal_layers_of_a_stack_are_recorded_once(profile: TextProfile, calls: int) -> None:
    """With a past there are two calls a layer: the cached keys and values pass its sites before the first layer."""
    traced = same(llama(), profile)
    assert (traced.recorded, traced.copied) == (calls, 2 * calls)


def test_the_exported_program_is_made_of_the_templates() -> None:
    program = build(llama(), TextProfile(1, 4))
    full = build(llama(), TextProfile(1, 4), in_full=True)
    inputs = [torch.randn(t.shape) for t in program.inputs]
    for one, other in zip(program.exported.module()(*inputs), full.exported.module()(*inputs), strict=True):
        assert torch.equal(one, other)
    assert str(program.exported.graph_signature) == str(full.exported.graph_signature)
    assert program.exported.state_dict.keys() == full.exported.state_dict.keys()


@pytest.mark.parametrize(
    ("wide", "float_site", "recorded"),
    [
        pytest.param((), "layers.1.mlp:gated", 2, id="float_site"),
        pytest.param(("layers.1.mlp:gated",), None, 2, id="int16"),
    ],
)
def test_a_layer_of_another_format_is_recorded_itself(
    wide: tuple[str, ...], float_site: str | None, recorded: int
) -> None:
    spec = pyquant.QuantSpec(INT16, symmetric=True)
    rules = [pyquant.Rule(f"model.{path}", role=Role.ACTIVATION, spec=spec) for path in wide]
    rules += [pyquant.Rule(f"model.{float_site}")] if float_site else []
    traced = same(llama(3, pyquant.Policy([*W8A8.rules, *rules])), TextProfile(1, 4))
    assert (traced.recorded, traced.copied) == (recorded, 3 - recorded)


def test_each_kind_of_layer_is_recorded_once() -> None:
    """Gemma4: sliding and full layers, each with keys of their own or those of another layer."""
    traced = same(gemma(), TextProfile(1, 6))
    assert (traced.recorded, traced.copied) == (4, 3)


def test_graphs_of_single_layers_share_what_they_recorded() -> None:
    known = Templates(shared=True)
    counts = []
    for layer in range(3):
        traced = same(llama(), TextProfile(1, 4, layer=layer), known)
        counts.append((traced.recorded, traced.copied))
        full = build(llama(), TextProfile(1, 4, layer=layer), in_full=True)
        inputs = [torch.randn(t.shape) for t in full.inputs]
        for one, other in zip(traced.program.module()(*inputs), full.exported.module()(*inputs), strict=True):
            assert torch.equal(one, other)
    assert counts == [(1, 0), (0, 1), (0, 1)]


def test_blocks_of_a_vision_tower_are_recorded_once() -> None:
    _, q = qwen_bundle_tiny.tree()
    traced = same(q.model.visual, VisionProfile(((1, 4, 4), (1, 2, 2))))
    assert (traced.recorded, traced.copied) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["batched", "per_head"])
@pytest.mark.parametrize("layers", ["stack", "per_layer", "whole"])
@pytest.mark.parametrize("tiny", [qwen_bundle_tiny, gemma4_bundle_tiny], ids=["qwen", "gemma"])
def test_every_graph_of_a_bundle_is_that_of_a_full_trace(tiny: Any, layers: str, attention: str) -> None:
    _, q = tiny.tree()
    settings: dict[str, Any] = {"layers": layers, "attention": attention}
    settings |= {"prefill_lengths": ()} if layers == "whole" else {}
    known = Templates(shared=True)
    copied = 0
    for part, profile in tiny.profile(**settings).graphs(q).values():
        copied += same(part, profile, known).copied
    assert copied


def test_an_error_names_the_layer_that_differs() -> None:
    """A tap may do anything, so its layer equals no other, and is recorded itself."""
    q = llama()
    site = q.layers[1].mlp.site("gated")
    with (
        site.tap(lambda site, x, out, **_: torch.erfinv(out)),
        pytest.raises(ExportError, match=r"erfinv.*layers\.1\.mlp"),
    ):
        build(q, TextProfile(1, 4))
