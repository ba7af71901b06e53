# SPDX-License-Identifier: Apache-2.0
"""Imports flow one way: each room of pyquant may know the rooms listed here, and no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "pyquant"

# room -> rooms that it may import. A room is a folder or file of pyquant/; exporter.profile is one of its own.
BASE = {"errors", "spec"}
VALUES = BASE | {"qparams", "role"}
RUNS = {"metrics", "batch"}  # calling a model on a batch, and the metrics of what it returns
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "spec": {"errors"},
    "role": BASE,
    "qparams": BASE,
    "decision": {"errors"},
    "recipes": set(),
    "recipe_file": {"errors", "files", "recipes"},
    "policy": VALUES | {"recipes", "recipe_file"},
    "recipe": VALUES | {"recipes", "recipe_file", "policy"},
    "ops": {"errors"},
    "observe": VALUES | {"ops"},
    "autocast": {"tree_state"},  # for its type only
    "likeness": set(),
    "pages": set(),
    "offloaded": {"pages", "stream"},
    "stream": {"errors", "ops", "pages"},
    "distributed": {"errors"},
    "progress": set(),
    "lockstep": {"errors", "autocast", "batch", "observe", "stream", "wrap"},
    "tree_statistics": {"errors", "distributed", "observe", "site", "wrap"},
    "tree_state": {"errors", "role", "decision", "recipe", "stream"},
    "site": VALUES | {"ops", "observe", "autocast", "tree_state"},
    "block_site": VALUES | {"ops", "site"},
    "wrap": VALUES | {"ops", "site", "block_site", "policy", "tree_state", "autocast", "likeness"},
    "weight": VALUES | {"ops", "site", "block_site", "wrap"},
    "algorithms": VALUES
    | {"ops", "site", "policy", "observe", "wrap", "weight", "batch", "files", "tensor_file", "autocast", "decision"}
    | {"stream", "distributed", "tree_statistics", "progress"},
    "interop": VALUES | {"wrap", "decoder", "weight", "models", "files", "companions", "ops", "pages", "stream"},
    "lifecycle": VALUES
    | {"interop", "models", "policy", "site", "wrap", "batch", "autocast", "tree_state", "stream"}
    | {"distributed", "tree_statistics", "offloaded", "calibrated", "lockstep", "progress"},
    "calibrated": {"errors", "files", "tensor_file", "tree_statistics", "algorithms", "wrap"},
    "steps": {"errors", "recipe", "algorithms", "wrap", "lifecycle", "distributed"},
    "oneshot": VALUES
    | {"recipe", "policy", "steps", "wrap", "lifecycle", "stream", "distributed", "tree_statistics"}
    | {"progress"},
    "files": set(),
    "metrics": {"errors"},
    "batch": {"errors"},
    "companions": {"errors", "files"},
    "model_card": VALUES | {"block_site", "wrap"},
    "checkpoint_index": VALUES | {"decision", "wrap", "files", "companions"},
    "tensor_file": {"ops"},
    "checkpoint_tensors": VALUES | {"stream", "ops", "tensor_file", "site", "block_site", "wrap", "checkpoint_index"},
    "checkpoint": VALUES
    | {"models", "tensor_file", "policy", "site", "block_site", "wrap", "lifecycle", "files"}
    | {"recipe", "decision", "checkpoint_index", "checkpoint_tensors", "companions", "model_card"},
    "exporter.profile": {"errors"},
    "circle": {"errors", "ops", "files"},  # ops for the writer's constants only, on first use
    "exporter": VALUES | {"ops", "circle", "exporter.profile", "files", "autocast", "likeness"} | {"progress"},
    "decoder": VALUES | {"ops", "site", "wrap", "exporter.profile", "tensor_file"},
    "models": VALUES | {"ops", "site", "policy", "wrap", "decoder", "exporter.profile", "autocast", "likeness"},
    "verify": VALUES | {"models", "decoder", "ops", "circle", "exporter", "exporter.profile", "files"} | RUNS,
    "trace": RUNS | {"errors", "ops", "site", "wrap", "files"},  # wrap for sites only
    "weight_memory": {"errors", "site", "wrap"},
    "undecided": {"errors", "site", "weight", "wrap"},
    "sensitivity": VALUES | {"undecided", "policy", "site", "wrap", "files"} | RUNS,
    "smoke": VALUES
    | RUNS
    | {"policy", "wrap", "lifecycle", "models", "exporter", "circle", "verify", "trace", "sensitivity"},
    "reporter": VALUES | RUNS | {"undecided", "ops", "site", "wrap", "circle", "trace", "sensitivity", "files"},
    "calibration": {"errors", "files"},
    "evaluation": {"errors", "files", "calibration", "decoder", "verify", "wrap"},
    "_launch": set(),
}
# the command line knows all, __main__ is its door; the front door knows names and loads rooms on first use
ANY = {"cli", "__init__", "__main__"}
NATIVE = {"_C", "_circle"}  # the binaries: each has one door, ops/_native.py and circle/_native.py

# rooms that must not need a heavy package
WITHOUT = {
    "torch": {
        "errors",
        "spec",
        "role",
        "recipes",
        "recipe_file",
        "recipe",
        "policy",
        "files",
        "circle",
        "cli",
        "_launch",
        "distributed",
        "__main__",
    },
    "transformers": {
        "ops",
        "observe",
        "site",
        "policy",
        "interop",
        "lifecycle",
        "checkpoint",
        "checkpoint_tensors",
        "exporter",
        "circle",
        "verify",
        "trace",
        "sensitivity",
        "reporter",
        "calibration",
        "evaluation",
    },
}


def room_of(parts: tuple[str, ...]) -> str:
    return "exporter.profile" if parts[:2] == ("exporter", "profile") else parts[0]


def files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py"))


def module_parts(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def imported(path: Path, *, at_start: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, at any depth, TYPE_CHECKING included.

    `at_start`: only what importing the file itself loads.
    """
    package = ("pyquant", *path.relative_to(ROOT).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_start else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_is_below_it(path: Path) -> None:
    room = room_of(module_parts(path))
    if room in ANY:
        return
    assert room in ALLOWED, f"{room!r} is a new room: add it to ALLOWED, and to ARCHITECTURE.md"
    faults = []
    for line, name in imported(path):
        parts = tuple(name.split("."))
        if parts[0] != "pyquant" or len(parts) == 1 or parts[1] in NATIVE:
            continue
        target = room_of(parts[1:])
        if target == "__version__" or target == room or target in ALLOWED[room]:
            continue
        faults.append(f"{path.relative_to(ROOT)}:{line} imports {name}, which is not below {room!r}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_light_rooms_stay_light(path: Path) -> None:
    room = room_of(module_parts(path))
    tops = {name.split(".")[0] for _, name in imported(path, at_start=True)}
    for package, rooms in WITHOUT.items():
        assert not (room in rooms and package in tops), f"{path.relative_to(ROOT)} imports {package}"


def test_the_list_has_no_cycle_and_no_ghost() -> None:
    order: list[str] = []
    left = {room: set(below) for room, below in ALLOWED.items()}
    while left:
        ready = sorted(room for room, below in left.items() if below <= set(order))
        assert ready, f"a cycle among {sorted(left)}"
        order += ready
        for room in ready:
            del left[room]
    present = {room_of(module_parts(path)) for path in files()}
    assert set(ALLOWED) - present <= {"verify", "circle", "exporter.profile"}, set(ALLOWED) - present


def test_architecture_names_every_room_and_no_other() -> None:
    text = (ROOT.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named: set[str] = set()
    for cell in table:
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            folder = name.rpartition("/")[0] if "/" in name else folder
            path = name if "/" in name or not folder else f"{folder}/{name}"
            base = ROOT.parent if path.startswith("csrc") else ROOT
            assert list(base.glob(path.rstrip("/"))), f"ARCHITECTURE.md names {path}, which does not exist"
            named.add(path.partition("/")[0].removesuffix(".py"))
    rooms = {room_of(module_parts(path)) for path in files()} - {"exporter.profile", "__init__"}
    assert rooms <= named, f"ARCHITECTURE.md does not name {sorted(rooms - named)}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_opens_with_a_licence_and_a_docstring(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it owns and what it leaves to others"
