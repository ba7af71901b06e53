# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels without a GPU: their results in Triton's interpreter, their PTX, and which backend has them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ops_cases import ordinary

from pyquant.ops import backends, cuda
from pyquant.ops.reference_search import Bins

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="needs Triton: pip install 'triton>=3.7.1,<3.8'")
ROOT = Path(__file__).parents[3]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )


@pytest.mark.slow  # half a minute
@needs_triton
def test_the_bits_of_the_cpu_in_the_interpreter() -> None:
    """In a process of its own: the interpreter is chosen before Triton is imported."""
    path = str(Path(__file__).with_name("triton_equals_cpu.py"))
    done = python("-m", "pytest", "-p", "no:cacheprovider", path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\b1\d\d passed", done.stdout), done.stdout


def launches(dtype: torch.dtype, aligned: bool = True) -> dict[str, cuda.Launch]:
    """Every kernel with each of its forms; `aligned`: x begins at a multiple of 16 bytes."""
    x = ordinary((64 * 96 + 8,), dtype)[0 if aligned else 1 :][: 64 * 96].reshape(64, 96)
    zero = torch.tensor(0, dtype=torch.int32)
    one, rows = (torch.tensor(0.5), zero), (torch.ones(64), zero.expand(64))
    groups = (torch.ones(64, 3), zero.expand(64, 3))
    found = {"blocks of 4 bits": cuda.simulating_blocks(x, x, 4), "blocks of 8 bits": cuda.simulating_blocks(x, x, 8)}
    for name, scales, axis, group in (("tensor", one, None, 0), ("channel", rows, 0, 0), ("group", groups, 1, 32)):
        args = (x, *scales, axis, group, -8, 7)
        found[f"fake_quantize, {name}"] = cuda.rounding("fake_quantize", (x, x), *args)
        found[f"gradient, {name}"] = cuda.rounding("fake_quantize_backward", (x, x, x), *args)
        found[f"quantize, {name}"] = cuda.rounding("quantize", (x, x.to(torch.int8)), *args)
        found[f"extent, {name}"] = cuda.reducing(x, axis, group)[0]
    found["extent, last channel"] = cuda.reducing(x, 1, 0)[0]
    found["histogram"] = cuda.counting(x, Bins(-3, -40), 64)[0]
    few = x[:1, :1].contiguous()  # whose numbers are all 1
    found["quantize, one element"] = cuda.rounding("quantize", (few, few.to(torch.int8)), few, *one, 0, 0, 0, 1)
    found["extent, one element"] = cuda.reducing(few, 0, 0)[0]
    found["extent, one of each"] = cuda.reducing(x[None, :1], 0, 1)[0]
    found["histogram, one element"] = cuda.counting(few, Bins(-3, 0), 64)[0]
    found["block, one"] = cuda.simulating_blocks(x[:1, :32], x[:1, :32], 8)
    for name in ("fake_quantize, group", "extent, group", "extent, last channel", "histogram", "blocks of 4 bits"):
        found[f"{name}, many"] = replace(found[name], compiled=found[name].compiled | {"wide": True})
    return found


class NoGpu:
    """What Triton asks a driver for before it compiles a launch."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def instructions(text: str) -> set[str]:
    return set(re.findall(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*(?:\.\w+)+)", text, re.MULTILINE))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """compiler(launch, capability): the assembler code that a run on such a GPU makes; NVIDIA's assembler took it.

    By all that happens before a launch: binding of arguments, what numbers and pointers are known to be, options.
    """
    import triton

    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set, so nothing is compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    used = []

    def ptx(launch: cuda.Launch, capability: int, **options: Any) -> str:
        monkeypatch.setattr(triton.runtime.driver, "_active", NoGpu(capability))
        function = launch.function()
        function.device_caches.clear()
        used.append(function)
        options = {**cuda.OPTIONS, **options}
        found = function.warmup(*launch.arguments, **launch.compiled, **options, grid=launch.programs)
        assert f".target sm_{capability}" in found.asm["ptx"]
        assert len(found.asm["cubin"]) > 0
        return str(found.asm["ptx"])

    yield ptx
    for function in used:
        function.device_caches.clear()


@needs_triton
@pytest.mark.parametrize(
    ("capability", "dtype", "aligned"),
    [
        (75, torch.float32, True),
        (80, torch.float32, False),
        (80, torch.bfloat16, True),
        (90, torch.float16, True),
        (120, torch.float32, True),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_assembler_code_rounds_as_the_cpu(
    capability: int, dtype: torch.dtype, aligned: bool, compiler: Callable[..., str]
) -> None:
    for name, launch in launches(dtype, aligned).items():
        text = compiler(launch, capability)
        used = {i.replace("f32x2", "f32").replace("f16x2", "f16") for i in instructions(text)}  # two at a time
        where = f"{name}: {sorted(used)}"
        # Nothing fused, approximate or flushed to zero; each sum, product and quotient says that it rounds to nearest.
        assert not [i for i in used if re.search(r"fma|approx|full|ftz|rcp|ex2|bf16|f64", i)], where
        computes = {i for i in used if re.match(r"(add|sub|mul|div|mad)\..*f\d\d", i)}
        assert computes <= {"add.rn.f32", "mul.rn.f32", "div.rn.f32"}, where
        assert {i for i in used if "f16" in i} <= {"cvt.f32.f16", "cvt.rn.f16.f32"}, where
        assert "call" not in re.findall(r"^\s*(\w+)", text, re.MULTILINE), where  # no function of libdevice
        if launch.kernel not in ("extent", "count_values"):
            assert "div.rn.f32" in used, where
        if launch.kernel == "fake_quantize":
            assert "cvt.rzi.f32.f32" not in used, where  # which makes -0 of -0.3
        if launch.kernel in ("fake_quantize", "fake_quantize_blocks", "extent"):
            # + 0.0, which makes +0 of -0, is there (two at a time it has no such form)
            assert re.search(r"add\.rn\.f32 .*, 0f00000000;", text) or "add.rn.f32x2" in text, where


@needs_triton
def test_the_options_of_a_launch_are_needed(compiler: Callable[..., str]) -> None:
    """With Triton's defaults the compiler fuses `v * inverse + 8.5`, and the search above would find it."""
    launch = cuda.simulating_blocks(ordinary((64, 96)), ordinary((64, 96)), 4)
    assert any(i.startswith("fma") for i in instructions(compiler(launch, 80, enable_fp_fusion=True)))


def test_which_backend_has_which_kernels() -> None:
    assert set(cuda.OPERATORS) <= set(backends.OPERATORS)
    for backend in backends.BACKENDS:
        found = backends.kernels(backend, triton=True, rocm=False)
        assert set(found) == set(backends.OPERATORS)
        for name, function in found.items():
            own = backend == "CUDA" and name in cuda.OPERATORS
            assert function is (cuda.OPERATORS if own else backends.OPERATORS)[name]
        assert backends.kernels(backend, triton=False, rocm=False) is backends.OPERATORS
        assert backends.kernels(backend, triton=True, rocm=True) is backends.OPERATORS


def test_the_summary_says_which() -> None:
    assert backends.summary(torch.device("cpu")) == "native kernels"
    assert backends.summary(torch.device("mps")) == "torch operations"
    words = "Triton kernels for rounding" if TRITON else "torch operations (no triton here"
    assert backends.summary(torch.device("cuda")).startswith(words)


def test_without_triton_operators_are_torch_operations() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, pyquant.ops.backends as b\n"
        "assert b.KERNELS['CUDA'] is b.OPERATORS\n"
        "print(b.summary(torch.device('cuda')))"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "torch operations (no triton here; `pip install triton` brings faster kernels)", done


def test_triton_is_imported_by_the_first_launch_only() -> None:
    done = python("-c", "import sys, pyquant.ops; print([m for m in sys.modules if m.split('.')[0] == 'triton'])")
    assert done.stdout.strip() == "[]", done
