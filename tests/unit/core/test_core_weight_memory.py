# SPDX-License-Identifier: Apache-2.0
"""What a tree keeps of its weights changes memory and time, and no bit of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import pyquant
from pyquant.errors import InputError

WIDTH, ROWS = 64, 48


def converted(policy: pyquant.Policy, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    fp = nn.Linear(WIDTH, ROWS).to(dtype)
    with torch.no_grad():
        fp.weight[0, :5] = torch.tensor([0.0, -0.0, 1e-9, -1e-9, -1e-30], dtype=dtype)
    q = pyquant.prepare(fp, policy)
    pyquant.calibrate(q, [torch.randn(9, WIDTH, dtype=dtype)], progress=False)
    pyquant.convert(q)
    return q


def bits(x: Tensor) -> Tensor:
    return x.detach().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def kept_bytes(q: Any) -> int:
    """Bytes that sites hold beside the weights' own."""
    own = {value.data_ptr() for value in q.parameters()}
    values = [site._cache._value for site in q.all_sites() if site.role.is_kernel]
    return sum(value.nbytes for value in values if value is not None and value.data_ptr() not in own)


FORMATS = ["w8a8-fast", "w4a16-fast", "w8a16-fast", "q8_onert", "w4_onert"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("preset", FORMATS)
def test_equal_bits_and_less_memory(preset: str, dtype: torch.dtype) -> None:
    q = converted(pyquant.Policy.preset(preset), dtype)
    x = torch.randn(3, WIDTH, dtype=dtype)
    weight = q.site("weight")
    results, held, values = {}, {}, {}
    for what in ("values", "integers", "nothing", "values"):
        pyquant.keep_weights(q, what)
        assert kept_bytes(q) == 0
        results[what] = q(x)
        assert torch.equal(bits(results[what]), bits(q(x))), "the second call differs"
        values[what], held[what] = weight.constant(q.weight), kept_bytes(q)
    for what in ("integers", "nothing"):
        assert torch.equal(bits(values[what]), bits(values["values"])), what
        assert torch.equal(bits(results[what]), bits(results["values"])), what
    number = ROWS * WIDTH
    blocks = {"q8_onert": number * 34 // 32, "w4_onert": number * 18 // 32}
    four = number // 2 if preset.startswith("w4") else number
    assert held == {"values": number * dtype.itemsize, "integers": blocks.get(preset, four), "nothing": 0}


def test_values_on_the_grid_are_not_kept_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    q = converted(pyquant.Policy.preset("w8a8-fast"))
    x = torch.randn(3, WIDTH)
    expected = q(x)
    assert kept_bytes(q) == ROWS * WIDTH * 4
    pyquant.save_quantized(q, tmp_path / "saved")
    loaded = pyquant.load_quantized(tmp_path / "saved", nn.Linear(WIDTH, ROWS))
    assert torch.equal(bits(loaded(x)), bits(expected))
    assert kept_bytes(loaded) == 0
    with torch.no_grad():
        loaded.weight.mul_(1.01)
    assert not torch.equal(loaded(x), expected), "an edit is followed"
    assert kept_bytes(loaded) == ROWS * WIDTH * 4


def test_another_word_is_refused() -> None:
    q = converted(pyquant.Policy.preset("w8a8-fast"))
    with pytest.raises(InputError, match="takes one of values, integers, nothing, got 'half'"):
        pyquant.keep_weights(q, "half")


@pytest.mark.parametrize("what", ["values", "integers", "nothing"])
def test_a_tree_without_numbers_gives_shapes(what: str) -> None:
    q = converted(pyquant.Policy.preset("w8a8-fast"))
    pyquant.keep_weights(q, what)
    with FakeTensorMode(allow_non_fake_inputs=True):
        out = q(torch.empty(3, WIDTH))
    assert (tuple(out.shape), out.dtype) == ((3, ROWS), torch.float32)
