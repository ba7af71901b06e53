# SPDX-License-Identifier: Apache-2.0
"""One table of shared wrappers: a float module, its input, and how exactly the wrapper must follow it.

It owns the cases and the small helpers around them; what holds for all of them is test_wrap_primitives.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

import pyquant
import pyquant.lifecycle
from pyquant import ExportProfile
from pyquant.exporter.profile import TensorSpec
from pyquant.wrap import QModule

torch.set_num_threads(1)


@dataclass(frozen=True)
class Case:
    """`sites` is the number of sites, `min_sqnr` the quality (dB) that w8a16 must reach."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: int
    min_sqnr: float = 50.0
    ids: int = 0  # > 0: the input is token ids below it


def norm(module: nn.Module) -> nn.Module:
    """Gains and biases that are not ones and zeros, which would hide that they are left out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(parameter) < 0.3, -1.0, 1.0))
    return module


CASES = {
    "linear": Case(lambda: nn.Linear(12, 7), (2, 5, 12), 3, 40.0),
    "linear_without_bias": Case(lambda: nn.Linear(12, 7, bias=False), (4, 12), 3, 40.0),
    "embedding": Case(lambda: nn.Embedding(9, 6), (2, 5), 2, 35.0, ids=9),
    "rms_norm": Case(lambda: norm(nn.RMSNorm(16, eps=1e-6)), (2, 5, 16), 3),
    "rms_norm_default_eps": Case(lambda: norm(nn.RMSNorm(16)), (2, 5, 16), 3),
    "rms_norm_without_gain": Case(lambda: nn.RMSNorm(16, elementwise_affine=False), (2, 5, 16), 2),
    "layer_norm": Case(lambda: norm(nn.LayerNorm(16)), (2, 5, 16), 12),
    "layer_norm_without_bias": Case(lambda: norm(nn.LayerNorm(16, bias=False)), (2, 5, 16), 10),
    "layer_norm_without_affine": Case(lambda: nn.LayerNorm(16, elementwise_affine=False), (2, 5, 16), 8),
    "gelu": Case(nn.GELU, (3, 8), 2),
    "gelu_tanh": Case(lambda: nn.GELU(approximate="tanh"), (3, 8), 2),
    "silu": Case(nn.SiLU, (3, 8), 3),
    "relu": Case(nn.ReLU, (3, 8), 2),
    "sigmoid": Case(nn.Sigmoid, (3, 8), 2),
    "tanh": Case(nn.Tanh, (3, 8), 2),
    "softmax": Case(lambda: nn.Softmax(dim=-1), (3, 8), 2),
    "glu": Case(nn.GLU, (3, 8), 3),
    "glu_of_channels": Case(lambda: nn.GLU(1), (2, 4, 3), 3),
    "conv2d": Case(lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 8, 7), 3, 40.0),
    "conv2d_without_bias": Case(lambda: nn.Conv2d(1, 5, (2, 3), bias=False), (2, 1, 6, 7), 3, 40.0),
    "conv2d_same": Case(lambda: nn.Conv2d(3, 5, (5, 3), dilation=(1, 2), padding="same"), (2, 3, 6, 7), 3, 40.0),
    "conv2d_depthwise": Case(lambda: nn.Conv2d(4, 8, 3, groups=4, padding=(0, 2)), (2, 4, 6, 7), 3, 40.0),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2), (2, 4, 9), 3, 40.0),
    "conv1d_depthwise": Case(lambda: nn.Conv1d(6, 6, 5, groups=6, dilation=2, padding="valid"), (2, 6, 12), 3, 40.0),
    "hf_gelu": Case(lambda: ACT2FN["gelu"], (3, 8), 2),
    "hf_gelu_pytorch_tanh": Case(lambda: ACT2FN["gelu_pytorch_tanh"], (3, 8), 2),
    "hf_gelu_new": Case(lambda: ACT2FN["gelu_new"], (3, 8), 2),
    "hf_silu": Case(lambda: ACT2FN["silu"], (3, 8), 3),
    "hf_swish": Case(lambda: ACT2FN["swish"], (3, 8), 3),
}
# No arithmetic, so no site, and nothing to export alone.
PASSTHROUGH = {
    "identity": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5),
    "flatten": lambda: nn.Flatten(1),
    "hf_linear": lambda: ACT2FN["linear"],
}


def seeded(case: Case) -> tuple[nn.Module, list[Tensor]]:
    """The float module, and three inputs for it."""
    torch.manual_seed(0)
    module = case.build().eval()
    if case.ids:
        return module, [torch.randint(0, case.ids, case.shape) for _ in range(3)]
    return module, [torch.randn(case.shape) * 2 for _ in range(3)]


def quantized(fp: nn.Module, batches: list, preset: str = "w8a16") -> QModule:
    """prepare, calibrate, convert."""
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    return q


def set_qparams(piece: QModule) -> None:
    """convert() for a piece of a tree, which has a path."""
    for site in piece.all_sites():
        found = site.compute_qparams()
        assert not isinstance(found, str), f"{site.path}: {found}"
        site.set_qparams(found)
    pyquant.lifecycle.finalize(piece)


def profile_of(x: Tensor, name: str = "x") -> ExportProfile:
    return ExportProfile({name: TensorSpec(tuple(x.shape), x.dtype)}, ("y",))


def nodes_per_site(program: torch.export.ExportedProgram) -> Counter[str]:
    """How many fake_quantize nodes use the scale of each site, by the path of the site in the adapter."""
    buffers = program.graph_signature.inputs_to_buffers
    found: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) == "pyquant.fake_quantize.default":
            found[buffers[node.args[1].name].removeprefix("module.").removesuffix(".scale")] += 1
    return found


def site_names(q: QModule) -> set[str]:
    """The paths of all sites of a tree as module names: `encoder.layers.0.sites.act_in`."""
    return {name for name, module in q.named_modules() if isinstance(module, pyquant.wrap.Site)}
