# SPDX-License-Identifier: Apache-2.0
"""A caller's torch.set_default_dtype, set_default_device and autocast around the work: same numbers, or a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyquant
from pyquant import Policy
from pyquant.models import by_name
from pyquant.models.gemma4 import VisionProfile


@contextmanager
def defaults(name: str) -> Iterator[None]:
    """torch's defaults set by `name`, and back."""
    if name == "meta":
        torch.set_default_device("meta")
    elif name != "none":
        torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def _inputs(family: str, model: Any) -> dict[str, Tensor]:
    image = (np.arange(48 * 48 * 3) % 251).reshape(48, 48, 3).astype(np.uint8)
    return by_name(family).example.example_inputs(model, [image], None)


def work(family: str, folder: Path, around: str) -> dict[str, Any]:
    """Everything from prepare to generated tokens, with torch's defaults set by `around`."""
    model = by_name(family).example.tiny_model()
    batch = _inputs(family, model)
    with defaults(around):
        q = pyquant.prepare(model, Policy.preset("w8a8"))
        pyquant.calibrate(q, [batch], progress=False)
        pyquant.convert(q, unused=[site.path for site in q.uncalibrated_sites()])
        with torch.no_grad():
            out = q(**batch)
        pyquant.save_quantized(q, folder / around)
        loaded = pyquant.load_quantized(folder / around)
        with torch.no_grad():
            again = loaded(**batch)
    found = {
        "scales": {site.path: site.scale for site in q.all_sites() if site.scale is not None},
        "out": out[0],
        "loaded": again[0],
        "file": (folder / around / "quantized.safetensors").read_bytes(),
    }
    if family == "gemma4":
        with defaults(around):
            found["circle"] = pyquant.export(q, VisionProfile(grid=(4, 4))).to_bytes()
    else:
        with defaults(around), torch.no_grad():
            found["tokens"] = q.generate(**batch, max_new_tokens=3, do_sample=False)
    return found


@pytest.fixture(scope="module", params=["gemma4", "qwen3_vl"])
def expected(request: Any, tmp_path_factory: Any) -> tuple[str, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, work(request.param, folder, "none")


@pytest.mark.parametrize("around", ["bfloat16", "float16", "float64", "meta"])
def test_defaults_of_torch_change_nothing(expected: Any, around: str) -> None:
    """On old main observers were born in the default type, or on the meta device, and calibrate failed."""
    family, folder, want = expected
    got = work(family, folder, around)
    assert got.keys() == want.keys()
    assert all(torch.equal(got["scales"][path], scale) for path, scale in want["scales"].items())
    for name in want.keys() - {"scales"}:
        same = torch.equal(got[name], want[name]) if isinstance(want[name], Tensor) else got[name] == want[name]
        assert same, name


@pytest.mark.parametrize("family", ["gemma4", "qwen3_vl"])
def test_autocast(family: str) -> None:
    """Calibration is as without; a forward of the tree warns, once."""
    model = by_name(family).example.tiny_model()
    batch = _inputs(family, model)
    trees = []
    for enabled in (False, True):
        q = pyquant.prepare(model, Policy.preset("w8a8"))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            pyquant.calibrate(q, [batch], progress=False)
            pyquant.convert(q, unused=[site.path for site in q.uncalibrated_sites()])
        trees.append(q)
    plain, inside = ({site.path: site.scale for site in q.all_sites() if site.scale is not None} for q in trees)
    assert all(torch.equal(inside[path], scale) for path, scale in plain.items())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(UserWarning, match=r"torch.autocast\('cpu', torch.bfloat16\) is active: .* numbers differ"):
            trees[1](**batch)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trees[1](**batch)
