# SPDX-License-Identifier: Apache-2.0
"""Files of 2 GiB and more, and the memory that writing takes: constants are streamed from where they lie."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from circle_schema.v0_10.circle.Model import Model

import pyquant.circle
from tests.golden.build import PlanBuilder

GIB = 1 << 30


def tables(count: int, rows: int) -> PlanBuilder:
    """`count` embedding tables of `rows` KiB each, a row gathered from each; constants are views of one memory."""
    b = PlanBuilder("tables")
    b.tensor("ids", "int32", [1])
    memory = torch.zeros(rows + count, 1024, dtype=torch.uint8)
    for i in range(count):
        memory[i] = i + 1
        b.tensor(f"table{i}", "uint8", [rows, 1024], scale=1.0, data=memory[i : i + rows])
        b.tensor(f"row{i}", "uint8", [1, 1024], scale=1.0)
        b.op("GATHER", [f"table{i}", "ids"], [f"row{i}"])
    return b.graph(["ids"], [f"row{i}" for i in range(count)])


MEMORY = """
import resource, sys
from tests.unit.circle.test_circle_large import tables
import pyquant.circle
b = tables(4, 64 * 1024)
text = b.text()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = pyquant.circle.write(text, b.constants, sys.argv[1])
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_writing_takes_no_memory_of_the_order_of_the_file(tmp_path: Path) -> None:
    """256 MiB of constants on 64 MiB of memory: the file never stands in memory, nor does a copy of a constant."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "x.circle")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, extra = map(int, done.stdout.split())
    assert size > 256 << 20
    assert extra < 8 << 20


@pytest.mark.slow
def test_more_than_2_gib(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 4 * GIB:
        pytest.skip("needs 4 GiB of disk")
    path = tmp_path / "x.circle"
    builder = tables(3, 800 * 1024)
    size = pyquant.circle.write(builder.text(), builder.constants, path)
    assert size == os.path.getsize(path) > 2 * GIB
    model = pyquant.circle.read(path)
    assert model.external
    assert pyquant.circle.check(model) == []
    assert [fault.code for fault in pyquant.circle.check(model, "onert")] == ["E_ONERT_EXTERNAL"]
    for i in range(3):
        data = model.tensors[1 + 2 * i].data
        assert data is not None
        assert (data.nbytes, data[0], data[-1]) == (800 << 20, i + 1, 0)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        root = Model.GetRootAs(memory, 0)
        for i in range(3):
            buffer = root.Buffers(i + 1)
            assert buffer.Size() == 800 << 20
            assert buffer.Offset() % 16 == 0
            assert memory[buffer.Offset()] == i + 1
        del root, buffer
