# SPDX-License-Identifier: Apache-2.0
"""Loading the binary: a missing or stale one is an ImportError with the build command. Which backends have kernels."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from ops_cases import DTYPES, GRANULARITIES, ISAS, assert_same_bits, calls, other_calls

from pyquant.ops import _native
from pyquant.ops.backends import BACKENDS, OPERATORS


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else done.stdout.strip()


def test_missing_binary() -> None:
    last = in_a_new_process("import sys; sys.modules['pyquant._C'] = None; import pyquant.ops")
    assert last.startswith("ImportError: pyquant's native operators (pyquant/_C.abi3.so) are missing")
    assert "pip install --no-build-isolation -e ." in last


def test_stale_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "ABI", 10**6)
    with pytest.raises(
        ImportError, match=r"stale: pyquant/_C.abi3.so has version \d+, .* expects 1000000; build it with"
    ):
        _native._load()


def test_binary_without_an_operator() -> None:
    with pytest.raises(ImportError, match=r"stale: it has no operator 'not_there'; build it with `pip install"):
        _native.native("not_there")


def test_other_errors_stay_what_they_are() -> None:
    error = RuntimeError("out of memory")
    assert _native.op_error(error) is error


def test_best_instruction_set_is_the_default() -> None:
    best = int(in_a_new_process("import torch, pyquant.ops; print(torch.ops.pyquant._isa(-1))"))
    assert ISAS[best] in ISAS[1:]
    before = torch.ops.pyquant._isa(-1)
    assert torch.ops.pyquant._isa(99) == before


def test_one_thread_starts_no_other_and_gives_the_same() -> None:
    """Tasks of a process are its threads; nothing in this program but the operator asks torch for any."""
    code = (
        "import os, threading, time, torch\nfrom pyquant import ops\ntorch.set_num_threads(3)\n"
        "x = torch.frombuffer(bytearray(range(256)) * (1 << 12), dtype=torch.bfloat16)\n"
        "scale, zero = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)\n"
        "def run(): results.append(ops.quantize(x, scale, zero, None, 0, -127, 127, torch.int8))\n"
        "def tasks(): return len(os.listdir('/proc/self/task'))\n"
        "results, seen, before = [], [], tasks()\n"
        "with ops.one_thread():\n"
        "    with ops.one_thread(): run()\n"
        "    run()\n"
        "    assert tasks() == before, tasks()\n"
        "    other = threading.Thread(target=lambda: (run(), seen.append(tasks()))); other.start(); other.join()\n"
        "    assert seen[0] > before + 1, 'the operators of another thread have helpers'\n"
        "try:\n"
        "    with ops.one_thread(): raise KeyError\n"
        "except KeyError: pass\n"
        "while tasks() > before: time.sleep(0.01)  # the other thread's helpers end\n"
        "run()\n"
        "assert tasks() > before, 'and those of this one have them again'\n"
        "assert all(torch.equal(results[0], other) for other in results) and len(results) == 4\n"
        "print('done')"
    )
    assert in_a_new_process(code).strip() == "done"


def has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"pyquant::{name}", key)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_backend_has_a_kernel(name: str) -> None:
    assert all(has_kernel(name, key) for key in ("CPU", "Meta", *BACKENDS))
    assert not has_kernel(name, "CompositeExplicitAutograd")  # which would stand in for a missing CPU kernel


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu() -> None:
    every = [c for d in DTYPES for g in GRANULARITIES for c in calls(d, g)] + other_calls()
    for call in every:
        here = [a.clone() if isinstance(a, torch.Tensor) else a for a in call.args]
        there = [a.cuda() if isinstance(a, torch.Tensor) else a for a in call.args]
        actual, expected = call.op(*there), call.op(*here)
        for a, e in zip(there, here, strict=True):
            if isinstance(a, torch.Tensor):
                assert_same_bits(a.cpu(), e)
        if expected is not None:
            cpu = tuple(t.cpu() for t in actual) if isinstance(actual, tuple) else actual.cpu()
            assert_same_bits(cpu, expected)
