# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that were tampered with, with checksums that fit again: a CheckpointError that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import ToyModel
from safetensors.torch import load_file, save_file

import pyquant
from pyquant import Policy, files
from pyquant.checkpoint_index import plausible_stride
from pyquant.errors import CheckpointError

IDS = torch.arange(10)
UP, UP_SITE = "layers.0.up.weight", "layers.0.up:weight"
Index = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(params=["w8a8", "w4a8"])
def saved(request: pytest.FixtureRequest, model: ToyModel, tmp_path: Path) -> Path:
    q = pyquant.prepare(model, Policy.preset(request.param))
    pyquant.calibrate(q, [IDS], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    return tmp_path / "q"


def tamper(
    path: Path, index: Callable[[Index], Any] | None = None, tensors: Callable[[Tensors], Any] | None = None
) -> None:
    data, file = json.loads((path / "quantization.json").read_text()), path / "quantized.safetensors"
    if tensors is not None:
        values = {k: v.clone() for k, v in load_file(file).items()}
        tensors(values)
        save_file(values, file)
    data["sha256"] = {name: files.sha256(path / name) for name in data["sha256"]}
    if index is not None:
        index(data)
    (path / "quantization.json").write_text(json.dumps(data))


def entry(**changes: Any) -> Callable[[Index], None]:
    return lambda index: index["tensors"][UP].update(changes)


def site(path: str = UP_SITE, **changes: Any) -> Callable[[Index], None]:
    return lambda index: index["sites"][path].update(changes)


def sha(**changes: Any) -> Callable[[Index], None]:
    return lambda index: index["sha256"].update(changes)


def replace(key: str, value: Any) -> Callable[[Index], None]:
    return lambda index: index.update({key: value})


INDEX: dict[str, tuple[Callable[[Index], Any], str]] = {
    "site-not-quantized": (
        site(quantized=False),
        rf"tensor '{UP}' is on the grid of site '{UP_SITE}', which is not quantized here",
    ),
    "activation-not-quantized": (
        site("layers.0.up:act_in", quantized=False),
        r"quantized.safetensors: tensor 'layers.0.up:act_in.scale' is in no list of quantization.json \(2 such\)",
    ),
    "quantized-is-text": (site(quantized="no"), rf"'quantized' of site '{UP_SITE}' is a str, expected true or false"),
    "quantized-float": (site(spec=None), rf"site '{UP_SITE}' is quantized, but has no spec"),
    "site-is-list": (replace("sites", {UP_SITE: []}), rf"site '{UP_SITE}' is a list, expected an object"),
    "decided-without-format": (
        site("layers.0.up:act_in", decided="x", spec=None, quantized=False),
        r"spec of site 'layers.0.up:act_in' cannot be \(a QuantSpec has the keys",
    ),
    "decided-blocks": (
        site(decided="x", spec={"dtype": "q4_0"}),
        r"cannot be \(a grid that was decided is none of q4_0",
    ),
    "axis-outside": (
        site(decided="x", spec={"dtype": "int8", "symmetric": True, "granularity": {"per_axis": 2}}),
        rf"spec of site '{UP_SITE}' has axis 2 of shape \(12, 8\)",
    ),
    "sites-is-list": (replace("sites", []), r"'sites' is a list, expected an object"),
    "tensors-is-list": (replace("tensors", []), r"'tensors' is a list, expected an object"),
    "policy-nonsense": (replace("policy", {"rules": 3}), r"'policy' cannot be \("),
    "policy-unknown-preset": (
        lambda index: index["policy"].update(extends="w1a1"),
        r"'policy' cannot be \(",
    ),
    "config-is-text": (replace("configs", {"": "x"}), r"configuration of '' is a str, expected an object"),
    "site-of-another": (
        entry(site="layers.1.up:weight"),
        rf"tensor '{UP}' is on the grid of site 'layers.1.up:weight', but passes through \['{UP_SITE}'\]",
    ),
    "site-of-activation": (entry(site="layers.1.up:act_in"), r"but passes through"),
    "site-unknown": (entry(site="nope"), rf"tensor '{UP}' is on the grid of site 'nope', which is not quantized"),
    "site-absent": (lambda index: index["tensors"][UP].pop("site"), r"is on the grid of site None"),
    "kind-unknown": (entry(kind="pickle"), rf"tensor '{UP}' has kind 'pickle', expected float, integer or alias"),
    "kind-list": (entry(kind=[]), r"has kind \[\], expected"),
    "kind-float": (
        entry(kind="float"),
        rf"quantized.safetensors: tensor '{UP}' is torch.u?int8 .*expected torch.float32",
    ),
    "alias-of-nothing": (entry(kind="alias", of="nope"), r"is an alias of 'nope', which is no stored tensor"),
    "alias-of-itself": (entry(kind="alias", of=UP), rf"is an alias of '{UP}', which is no stored tensor"),
    "alias-of-another-shape": (
        entry(kind="alias", of="layers.0.down.weight"),
        rf"tensor '{UP}' has shape \(8, 12\) in the checkpoint and \(12, 8\)",
    ),
    "stride-zero": (entry(stride=[0, 0]), rf"tensor '{UP}' has stride \[0, 0\], which is no layout of shape \[12, 8\]"),
    "stride-huge": (entry(stride=[2**40, 1]), r"has stride \[1099511627776, 1\], which is no layout"),
    "stride-overlap": (entry(stride=[1, 1]), r"has stride \[1, 1\], which is no layout"),
    "stride-negative": (entry(stride=[-8, 1]), r"has stride \[-8, 1\], which is no layout"),
    "stride-short": (entry(stride=[1]), r"has stride \[1\], which is no layout"),
    "stride-text": (entry(stride="ab"), r"has stride 'ab', which is no layout"),
    "dtype-unknown": (entry(dtype="nope"), rf"tensor '{UP}' has dtype 'nope', expected a type such as float32"),
    "dtype-function": (entry(dtype="load"), r"has dtype 'load', expected a type"),
    "dtype-integer": (entry(dtype="int8"), rf"tensor '{UP}' has values of int8, expected a floating point type"),
    "dtype-of-float": (
        lambda index: index["tensors"]["layers.0.up.bias"].update(dtype="float16"),
        r"tensor 'layers.0.up.bias' is torch.float32 \(12,\), expected torch.float16 \(12,\)",
    ),
    "shape-other": (entry(shape=[8, 12]), rf"tensor '{UP}' has shape \(8, 12\) in the checkpoint and \(12, 8\) in the"),
    "shape-negative": (entry(shape=[-12, 8]), r"has shape \[-12, 8\], expected a list of sizes"),
    "shape-bool": (entry(shape=[True, 8]), r"has shape \[True, 8\], expected a list of sizes"),
    "sha-number": (
        sha(**{"quantized.safetensors": 3}),
        r"sha256 of 'quantized.safetensors' is 3, expected 64 hexadecimal digits",
    ),
    "sha-null": (sha(**{"quantized.safetensors": None}), r"is None, expected 64 hexadecimal digits"),
    "sha-absent": (lambda index: index["sha256"].clear(), r"'sha256' has no checksum of 'quantized.safetensors'"),
    "sha-list": (replace("sha256", []), r"'sha256' is a list, expected an object"),
    "sha-path": (
        sha(**{"../../x": "0" * 64}),
        r"sha256 of '../../x' is of no file that save_quantized writes \(quantized.safe",
    ),
    "sha-absolute": (
        sha(**{"/etc/passwd": "0" * 64}),
        r"sha256 of '/etc/passwd' is of no file that save_quantized writes",
    ),
}


@pytest.mark.parametrize("case", INDEX)
def test_an_index_that_was_tampered_with(saved: Path, case: str) -> None:
    change, message = INDEX[case]
    tamper(saved, change)
    with pytest.raises(CheckpointError, match=message):
        pyquant.load_quantized(saved, ToyModel())


SCALE = f"{UP_SITE}.scale"
TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "float-for-integers": (
        lambda t: t.update({UP: torch.zeros(12, 8)}),
        rf"tensor '{UP}' is torch.float32 \(12, 8\)",
    ),
    "short": (
        lambda t: t.update({UP: t[UP].flatten()[:5].clone()}),
        rf"tensor '{UP}' is torch.u?int8 \(5,\), exp",
    ),
    "extra": (lambda t: t.update(evil=torch.zeros(3)), r"tensor 'evil' is in no list of quantization.json \(1 such\)"),
    "scale-short": (
        lambda t: t.update({SCALE: torch.ones(5)}),
        rf"tensor '{SCALE}' is torch.float32 \(5,\), expected torch.float32 \(12,\)",
    ),
    "scale-double": (
        lambda t: t.update({SCALE: t[SCALE].double()}),
        rf"tensor '{SCALE}' is torch.float64 \(12,\), ",
    ),
    "scale-of-activation": (
        lambda t: t.update({"layers.0.up:act_in.scale": torch.ones(2)}),
        r"'layers.0.up:act_in.scale' is torch.float32 \(2,\), expected torch.float32 \(\)",
    ),
    "zero-point-long": (
        lambda t: t.update({f"{UP_SITE}.zero_point": torch.zeros(12, dtype=torch.int64)}),
        rf"tensor '{UP_SITE}.zero_point' is torch.int64 \(12,\), expected torch.int32 \(12,\)",
    ),
    "zero-point-off": (
        lambda t: t[f"{UP_SITE}.zero_point"].fill_(300),
        rf"grid of site '{UP_SITE}' cannot be: a zero_point of",
    ),
    "bias-short": (
        lambda t: t.update({"layers.0.up.bias": torch.zeros(3)}),
        r"tensor 'layers.0.up.bias' is .*\(3,\), ",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_weights_file_that_was_tampered_with(saved: Path, case: str) -> None:
    change, message = TENSORS[case]
    tamper(saved, tensors=change)
    with pytest.raises(CheckpointError, match=message):
        pyquant.load_quantized(saved, ToyModel())


def test_tampering_with_nothing_loads(saved: Path) -> None:
    tamper(saved, lambda index: None, lambda tensors: None)
    pyquant.load_quantized(saved, ToyModel())


@pytest.mark.parametrize(
    ("shape", "stride", "fits"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 3), (8, 2), True),
        ((2, 1, 3), (3, 1, 1), True),
        ((), (), True),
        ((2, 3), (2, 1), False),
        ((2, 3), (0, 1), False),
        ((2, 3), (10**6, 1), False),
        ((2, 3), (1,), False),
    ],
    ids=str,
)
def test_strides_that_can_be(shape: tuple[int, ...], stride: tuple[int, ...], fits: bool) -> None:
    assert plausible_stride(shape, stride) is fits
