# SPDX-License-Identifier: Apache-2.0
"""No tensor of pyquant takes its type or device from torch's defaults, which are the caller's to change."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "pyquant"
FACTORIES = {
    *("tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "logspace", "eye", "scalar_tensor"),
    *("rand", "randn", "randint", "randperm", "normal", "as_tensor", "asarray", "empty_strided"),
    *("tril_indices", "triu_indices"),
}
NO_DTYPE = {"as_tensor", "asarray"}  # they keep the type of their data, which are arrays, tensors and integers


def missing(source: str) -> Iterator[str]:
    """`line: call (what it lacks)` for each factory call."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            continue
        wanted = {"device"} if node.func.attr in NO_DTYPE else {"device", "dtype"}
        if lacks := wanted - {keyword.arg for keyword in node.keywords}:
            yield f"{node.lineno}: {ast.unparse(node)} (lacks {', '.join(sorted(lacks))})"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_factory_says_dtype_and_device(path: Path) -> None:
    assert list(missing(path.read_text(encoding="utf-8"))) == []


def test_what_it_finds() -> None:
    found = list(
        missing("a = torch.zeros(2)\ntorch.arange(3, dtype=d, device=x.device)\ntorch.as_tensor(b)\nx.zeros(1)")
    )
    assert found == ["1: torch.zeros(2) (lacks device, dtype)", "3: torch.as_tensor(b) (lacks device)"]
