# SPDX-License-Identifier: Apache-2.0
"""Trees under torch.compile and a user's own torch.export: the numbers of eager, or a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant import Policy, wrap
from pyquant.errors import InputError, PhaseError
from pyquant.models import by_name
from pyquant.models.gemma4.vision.profiles import VisionProfile
from pyquant.wrap import Phase, QModule, WrapContext
from pyquant.wrap.attention import AdditiveMask, AttentionCore
from pyquant.wrap.rotary import Rotary, RotaryTables

W8A8 = Policy.preset("w8a8")


class _Block(nn.Module):
    """What a Llama layer is made of; `dim` 16, two heads."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, dim)
        self.norm, self.last = nn.RMSNorm(dim, eps=1e-6), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim, bias=False)
        self.up, self.act, self.down = nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)


class _QuantBlock(QModule):
    CHILDREN = ("embed", "norm", "last", "qkv", "out", "up", "act", "down")
    SITES = {"stream": pyquant.wrap.Role.ACTIVATION, "act_out": pyquant.wrap.Role.ACTIVATION}

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.core = AttentionCore(ctx.child("core"), scaling=0.25)
        self.rotary = Rotary(ctx.child("rotary"))

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        batch, length, dim = x.shape
        angle = torch.arange(length, dtype=torch.float32, device=x.device)[None, :, None].expand(1, length, dim // 2)
        tables = RotaryTables.of((angle.cos(), angle.sin()), parts=1)
        query, key, value = self.qkv(self.norm(x)).view(batch, length, 3, 2, dim // 2).unbind(2)
        query, key = self.rotary(query, tables).transpose(1, 2), self.rotary(key, tables).transpose(1, 2)
        mask = AdditiveMask.of(attention_mask, x.dtype, keep=self.state.explicit)
        found, _ = self.core(query, key, value.transpose(1, 2), mask)
        x = self.q("stream", x + self.out(found.transpose(1, 2).reshape(batch, length, dim)))
        return self.last(self.q("act_out", x + self.down(self.act(self.up(x)))))


IDS = torch.arange(10, dtype=torch.int64).reshape(2, 5)
MASKS = {
    "none": None,
    "ones": torch.ones(2, 5, dtype=torch.int64),
    "padded": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.int64),
}


@pytest.fixture
def block() -> Iterator[QModule]:
    wrap.register(_Block)(_QuantBlock)
    torch.manual_seed(0)
    q = pyquant.prepare(_Block(), W8A8)
    pyquant.calibrate(q, [{"ids": IDS, "attention_mask": MASKS["padded"]}], progress=False)
    pyquant.convert(q)
    yield q
    wrap.registry.unregister(_Block)
    torch.compiler.reset()


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("phase", [Phase.FLOAT, Phase.QUANTIZED], ids=lambda p: p.name)
def test_a_llama_like_block_compiles_to_the_same(block: QModule, phase: Phase, warm: bool) -> None:
    """`ones` fails on old main: traced, a mask that masks nothing was added, and rounded once more."""
    compiled = torch.compile(block, backend="eager")
    with torch.no_grad(), wrap.phase(block, phase):
        want = {name: block(IDS, mask) for name, mask in MASKS.items()} if warm else {}
        got = {name: compiled(IDS, mask) for name, mask in MASKS.items()}
        want = want or {name: block(IDS, mask) for name, mask in MASKS.items()}
    assert torch.equal(want["none"], want["ones"])
    for name in MASKS:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("mask", ["none", "kept"])
def test_an_own_export_gives_the_same(block: QModule, mask: str) -> None:
    given = () if mask == "none" else (AdditiveMask.of(MASKS["padded"], torch.float32),)
    with torch.no_grad():
        want = block(IDS, *given)
        graph = torch.export.export(_Call(block, given), (IDS,), strict=False).module()
        assert torch.equal(graph(IDS), want)
        assert torch.equal(block(IDS, *given), want)  # nothing of the tracing is left in a cache


class _Call(nn.Module):
    def __init__(self, q: QModule, rest: Any) -> None:
        super().__init__()
        self.q, self.rest = q, rest

    def forward(self, ids: Tensor) -> Tensor:
        return self.q(ids, *self.rest)


def test_an_own_export_with_a_mask_whose_values_decide_is_refused(block: QModule) -> None:
    """On old main the graph rounded the logits once more than eager did, without a word."""
    with torch.no_grad(), pytest.raises(InputError, match=r"attention_mask \(2, 5\) in torch.export: whether it masks"):
        torch.export.export(block, (IDS, MASKS["ones"]), strict=False)


def test_an_adapter_asks_for_the_mask(block: QModule) -> None:
    from pyquant.exporter.profile import ExportProfile, TensorSpec

    profile = ExportProfile(
        inputs={"ids": TensorSpec((2, 5), torch.int64), "attention_mask": TensorSpec((2, 5), torch.int64)},
        outputs=("out",),
    )
    adapter = block.as_export_module(profile)
    with torch.no_grad():
        graph = torch.export.export(adapter, (IDS, MASKS["ones"]), strict=False).module()
        for name in ("ones", "padded"):
            assert torch.equal(graph(IDS, MASKS[name]), adapter(IDS, MASKS[name])), name
        assert torch.equal(adapter(IDS, MASKS["padded"]), block(IDS, MASKS["padded"]))
    assert not block.state.explicit


def test_an_edit_of_the_float_model_is_an_error_of_export() -> None:
    """A float graph is exported before convert looks; it would have the folded kernel from before the edit."""
    part = by_name("gemma4").example.tiny_model().patch_embedder
    q = pyquant.prepare(part, Policy.preset("float"))
    with torch.no_grad():
        part.input_proj.weight.mul_(3)
    said = r"export: 'input_proj.weight' of the float model changed after prepare"
    with wrap.phase(q, Phase.FLOAT), pytest.raises(PhaseError, match=said):
        q.as_export_module(VisionProfile(grid=(3, 3)))
