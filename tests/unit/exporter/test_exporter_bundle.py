# SPDX-License-Identifier: Apache-2.0
"""export_bundle and a folder that holds something already: all of the new bundle or all of the old one."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exporter_cases import Graph, Grid, channels, weight
from torch import nn

from pyquant.errors import CircleError, ExportError, ProfileError
from pyquant.exporter import CircleProgram, ExportProfile, TensorSpec, export, export_bundle
from pyquant.verify import fidelity
from pyquant.verify.runtimes import tico


class Model(nn.Module):
    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.grid, self.factor = Grid("uint8", -3, 3), factor

    def as_export_module(self, profile: ExportProfile) -> nn.Module:
        if "bad" in profile.inputs:
            raise ProfileError("this profile does not fit")
        return Graph(lambda m, x: m.a(m.a(x) * self.factor), *profile.inputs.values(), a=self.grid)


def rows(count: int, name: str = "x") -> ExportProfile:
    return ExportProfile({name: TensorSpec((count, 4))}, ("y",))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    export_bundle(Model(), tmp_path / "out", {"prefill": rows(8), "decode": rows(1)})
    return tmp_path / "out"


def break_something(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "check":
        faults = lambda self, target="circle": ["E1: a fault"] if self.name == "decode" else []  # noqa: E731
        monkeypatch.setattr(CircleProgram, "check", faults)
    if what == "disk":
        save = CircleProgram.save

        def full(self: CircleProgram, path: Path) -> int:
            if self.name == "decode":
                raise CircleError(f"cannot write '{path}': no space left on device")
            return save(self, path)

        monkeypatch.setattr(CircleProgram, "save", full)
    if what == "manifest":

        def dump(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("pyquant.exporter.bundle.files.whole_text", dump)
    if what == "rename":
        replace = Path.replace

        def rename(self: Path, target: Path) -> Path:
            if target.name == "manifest.json":
                raise OSError(errno.EACCES, "Permission denied")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", rename)


FAILURES: dict[str, tuple[type[Exception], str]] = {
    "profile": (ProfileError, "this profile does not fit"),
    "check": (
        ExportError,
        r"graph 'decode' breaks 1 rule\(s\) of target 'circle', nothing was written:\n  E1: a fault",
    ),
    "disk": (CircleError, "no space left on device"),
    "manifest": (CircleError, "cannot write a bundle to '.*out': No space left on device; free the disk"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_leaves_the_old_bundle_untouched(bundle: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(bundle)
    break_something(monkeypatch, what)
    kind, message = FAILURES[what]
    with pytest.raises(kind, match=message):
        export_bundle(Model(0.25), bundle, {"prefill": rows(8), "decode": rows(1, "bad" if what == "profile" else "x")})
    assert contents(bundle) == before


@pytest.mark.parametrize("there", [False, True], ids=["new_folder", "empty_folder"])
@pytest.mark.parametrize("what", [*FAILURES, "rename"])
def test_a_first_failure_leaves_nothing(
    tmp_path: Path, what: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_something(monkeypatch, what)
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    kind, message = FAILURES.get(what, (CircleError, "cannot write a bundle to '.*out': Permission denied"))
    with pytest.raises(kind, match=message):
        export_bundle(Model(), folder, {"prefill": rows(8), "decode": rows(1, "bad" if what == "profile" else "x")})
    assert folder.exists() == there
    assert not there or contents(folder) == {}


def test_files_that_the_new_bundle_does_not_name_go(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    (bundle / "other.circle").write_bytes(b"not of the bundle")
    export_bundle(Model(), bundle, {"decode": rows(2), "encode": rows(3)})
    assert sorted(contents(bundle)) == ["decode.circle", "encode.circle", "manifest.json", "notes.txt", "other.circle"]
    assert list(json.loads((bundle / "manifest.json").read_text())["graphs"]) == ["decode", "encode"]
    assert tico.Runtime(bundle / "decode.circle").input_names == ["x"]


@pytest.mark.parametrize(
    "manifest",
    [
        "no json",
        "[1]",
        '{"format": "pyquant-bundle"}',
        '{"format": "other", "graphs": {"a": {"file": "kept.circle"}}}',
        '{"format": "pyquant-bundle", "graphs": {"a": {"file": "../kept.circle"}, "b": {"file": "kept.txt"}}}',
    ],
    ids=["text", "list", "no_graphs", "foreign", "outside"],
)
def test_a_strange_manifest_removes_nothing(bundle: Path, manifest: str) -> None:
    for path in (bundle / "kept.circle", bundle.parent / "kept.circle", bundle / "kept.txt"):
        path.write_text("mine")
    (bundle / "manifest.json").write_text(manifest)
    export_bundle(Model(), bundle, {"decode": rows(2)})
    assert {"kept.circle", "kept.txt", "prefill.circle"} <= set(contents(bundle))
    assert (bundle.parent / "kept.circle").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([1, "1"], "['1'] is used twice; pass a mapping with one string for each"),
        (["Decode", "decode"], "'Decode' and 'decode' differ only in case"),
        (["a/b"], "'a/b' becomes a file name; use letters, digits, '_', '-' and '.'"),
        (["a\\b"], "becomes a file name; use letters"),
        (["a\0b"], "becomes a file name; use letters"),
        (["a\nb"], "becomes a file name; use letters"),
        (["con:1"], "becomes a file name; use letters"),
        (["\udc80"], "becomes a file name; use letters"),
        ([""], "the graph name '' becomes a file name"),
        ([".."], "the graph name '..' becomes a file name"),
        ([".hidden"], "the graph name '.hidden' becomes a file name"),
        ([" x "], "the graph name ' x ' becomes a file name"),
        (["x" * 300], "'xxxxxxxxxxxxxxxxxxxx'... becomes a file name and has 300 characters; shorten it"),
    ],
    ids=str,
)
def test_names_that_cannot_be_files(tmp_path: Path, names: list[Any], message: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(message)):
        export_bundle(Model(), tmp_path / "out", {name: rows(index + 1) for index, name in enumerate(names)})
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_and_a_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CircleError, match=r"bundle to '.*file': it is a file, and a bundle is a folder; name another"):
        export_bundle(Model(), tmp_path / "file", rows(2))
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "decode.circle").mkdir()
    with pytest.raises(CircleError, match=r"cannot write '.*decode.circle': it is a folder; remove it"):
        export_bundle(Model(), tmp_path, {"decode": rows(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode.circle", "file"]


class Wide(nn.Module):
    """A linear whose weight is large enough to stay in its file."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(300, 256)

    def as_export_module(self, profile: ExportProfile) -> nn.Module:
        grids = {"a": Grid("int16", -9, 9), "q": channels(self.w, "sym8")}
        specs = profile.inputs.values()
        return Graph(lambda m, x: m.a(F.linear(m.a(x), m.q(m.w))), *specs, outputs=("y",), w=self.w, **grids)


def test_large_constants_stay_in_their_files(tmp_path: Path) -> None:
    profiles = {f"rows{n}": ExportProfile({"x": TensorSpec((n, 256))}, ("y",)) for n in (2, 3)}
    programs = export_bundle(Wide(), tmp_path / "out", profiles)
    for name, program in programs.items():
        written = (tmp_path / "out" / f"{name}.circle").read_bytes()
        assert program.to_bytes() == written
        (tmp_path / "out" / f"{name}.circle").unlink()  # what is mapped stays
        assert program.to_bytes() == written
        fidelity(program, None, [torch.rand(program.inputs[0].shape)])
        assert [c.nbytes for c in program.graph.constants if c.nbytes > 1 << 16] == [300 * 256]
    again = export(Wide(), profiles["rows2"])
    assert again.graph.constants[0].tensor().equal(programs["rows2"].graph.constants[0].tensor())


class Family:
    """A model family's own profile."""

    def graphs(self, q: nn.Module) -> dict[str, Any]:
        return {"first": (q, rows(2)), "second": (q, rows(3))}

    def manifest(self, q: nn.Module) -> dict[str, Any]:
        of_first = {"kind": "head", "meaning": {"x": "what goes in", "*": "anything"}, "range": {"x": [0, 9]}}
        return {"family": "none", "graphs": {"first": of_first}}


def test_a_family_says_its_graphs_and_what_they_mean(tmp_path: Path) -> None:
    programs = export_bundle(Model(), tmp_path / "out", Family())
    assert list(programs) == ["first", "second"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["family"] == "none"
    first, second = manifest["graphs"]["first"], manifest["graphs"]["second"]
    assert first["kind"] == "head"
    assert (first["inputs"][0]["meaning"], first["inputs"][0]["range"]) == ("what goes in", [0, 9])
    assert first["outputs"][0]["meaning"] == "anything"
    assert "meaning" not in second["inputs"][0]
    assert second["sha256"]
