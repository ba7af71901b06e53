# SPDX-License-Identifier: Apache-2.0
"""export_bundle(): every graph of a model in one folder, with a manifest that describes each.

It owns the folder and the manifest. Exporting one graph is pipeline.py.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyquant import __version__, circle, files
from pyquant import progress as shown
from pyquant.circle.files import Target
from pyquant.errors import CircleError, ExportError, ProfileError
from pyquant.exporter.absent import Absent
from pyquant.exporter.pipeline import build
from pyquant.exporter.plan import Tensor
from pyquant.exporter.precision import warn_low_precision
from pyquant.exporter.program import CircleProgram
from pyquant.exporter.tracing import Templates

MANIFEST = "manifest.json"
ONE_FILE = "model.circle"
SUFFIX, TENSORS = ".circle", ".safetensors"
_LONGEST = 200  # bytes of a file name: file systems allow 255, and the writer's temporary file has a longer name
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\<>:"|?*\ud800-\udfff]')


def export_bundle(
    q: nn.Module,
    out_dir: str | os.PathLike[str],
    profiles: Any,
    *,
    target: Target = "circle",
    one_file: bool | None = None,
    step: Callable[[str], AbstractContextManager[None]] | None = None,
    absent: Absent | None = None,
    progress: bool | None = None,
) -> dict[str, CircleProgram]:
    """Write `<name>.circle` for each profile, and `manifest.json`. Returns the programs by name.

    `profiles` is one profile, a sequence of them (named by `profile.name`), a mapping name -> profile, or a model
    family's own bundle profile such as qwen3_vl.Profile: an object with `graphs(q)`, name -> (part of `q`, profile),
    and `manifest(q)`, entries for the manifest; where it has `for_target(target)`, that makes the profile for one
    target, and where it has `files(q)`, name -> a function that writes a file of that name to a path, these are
    written too. Every graph is exported, checked and written to a temporary folder before the first file is moved to
    its place, the manifest last: a failure leaves the folder as it was. Files of a former bundle that the new manifest
    does not name are removed. `one_file` (None: as the profile says, else no) puts all graphs into `model.circle`, each
    under a signature of its name, so that they share constants of equal bytes; TICO's runtime refuses such a file,
    and onert runs its first graph. `progress`: None shows a bar on a terminal, True lines elsewhere too, False
    nothing. Constants of the programs are mapped from the files. `absent` is as of export(). `step`, if given, is
    entered with the name of each graph while that is exported and written (to measure it). Warns once with
    LowPrecisionWarning when the model computes in bfloat16 or float16.

    Raises ProfileError for names that cannot be files, CircleError for a folder that cannot be written.
    """
    parts, entries, beside = _parts(q, profiles, target)
    together = bool(getattr(profiles, "one_file", False) if one_file is None else one_file)
    if together and target == "onert":
        raise ProfileError("one_file=True: onert runs the first graph of a file only; leave it out for this target")
    folder = Path(out_dir)
    _require_folder(folder, [*([ONE_FILE] if together else map(_file, parts)), *beside])
    known = Templates(shared=True)
    make = partial(_exported, parts=parts, target=target, absent=absent, templates=known)
    head = {**_provenance(q), "target": target, **entries}
    programs = _write(folder, head, list(parts), make, beside, step or _unmeasured, together, progress)
    warn_low_precision((program.graph, program.traced) for program in programs.values())
    return programs


def _unmeasured(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def _exported(
    name: str,
    parts: Mapping[str, tuple[nn.Module, Any]],
    target: Target,
    absent: Absent | None,
    templates: Templates,
) -> CircleProgram:
    part, profile = parts[name]
    program = build(part, profile, name=name, target=target, absent=absent, templates=templates)
    if faults := program.check(target):
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise ExportError(
            f"graph '{name}' breaks {len(faults)} rule(s) of target '{target}', nothing was written:\n{listed}"
        )
    return program


def _parts(
    q: nn.Module, profiles: Any, target: Target
) -> tuple[dict[str, tuple[nn.Module, Any]], dict[str, Any], Mapping[str, Callable[[Path], None]]]:
    """Graph name -> (module, its profile), what a family adds to the manifest, and the files beside the graphs."""
    if callable(getattr(profiles, "for_target", None)):
        profiles = profiles.for_target(target)
    if callable(getattr(profiles, "graphs", None)) and callable(getattr(profiles, "manifest", None)):
        parts = _named(profiles.graphs(q))
        beside = profiles.files(q) if callable(getattr(profiles, "files", None)) else {}
        return parts, profiles.manifest(q), beside
    return {name: (q, profile) for name, profile in _named(profiles).items()}, {}, {}


def _require_folder(folder: Path, new: Iterable[str]) -> None:
    """Raise CircleError before the export for a folder or file that could not be written after it."""
    if not folder.parent.is_dir():
        raise CircleError(
            f"cannot write a bundle to '{folder}': the folder '{folder.parent}' does not exist; create it first"
        )
    if folder.exists() and not folder.is_dir():
        raise CircleError(f"cannot write a bundle to '{folder}': it is a file, and a bundle is a folder; name another")
    for path in [folder / MANIFEST, *(folder / file for file in new)]:
        if path.is_dir():
            raise CircleError(f"cannot write '{path}': it is a folder; remove it, or name another")


def _write(
    folder: Path,
    head: dict[str, Any],
    names: Sequence[str],
    export: Callable[[str], CircleProgram],
    beside: Mapping[str, Callable[[Path], None]],
    step: Callable[[str], AbstractContextManager[None]],
    together: bool,
    progress: bool | None,
) -> dict[str, CircleProgram]:
    """Write all files into a temporary folder, each as soon as it is exported, then move them to their places; then
    remove files of the old bundle that the new one does not have."""
    fresh, first = not folder.exists(), not (folder / MANIFEST).exists()
    own = [ONE_FILE] if together else list(map(_file, names))
    old, new, placed = _files_of(folder / MANIFEST), [*own, *beside], list[Path]()
    programs: dict[str, CircleProgram] = {}
    graphs: dict[str, Any] = {}
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bundle.", dir=folder) as draft:
            temporary = Path(draft)
            entries, parts = head.get("graphs", {}), temporary / "parts" if together else temporary
            parts.mkdir(exist_ok=True)
            for name in shown.bar(names, desc="export", unit="graph", show=progress):
                with step(name):
                    programs[name] = export(name)
                    graphs[name] = _save(programs[name], parts / _file(name), entries.get(name, {}))
            if together:
                _join(parts, temporary / ONE_FILE, graphs)
            for file, write in beside.items():
                with step(file):
                    write(temporary / file)
            written = {"files": {file: _checksum(temporary / file) for file in beside}} if beside else {}
            _write_manifest(temporary / MANIFEST, {**head, **written, "graphs": graphs})
            for file in [*new, MANIFEST]:
                placed.append((temporary / file).replace(folder / file))
    except OSError as error:
        raise CircleError(
            f"cannot write a bundle to '{folder}': {error.strerror or error}; free the disk or name another folder"
        ) from error
    finally:
        if first and len(placed) <= len(new):  # incomplete, and no manifest names the files
            for path in placed:
                path.unlink(missing_ok=True)
            if fresh and folder.is_dir():
                folder.rmdir()
    kept = {file.casefold() for file in new}
    for file in old:
        if file.casefold() not in kept:
            (folder / file).unlink(missing_ok=True)
    models = {file: circle.read(folder / file) for file in own}
    return {name: program.mapped(models[graphs[name]["file"]]) for name, program in programs.items()}


def _save(program: CircleProgram, path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Write one graph, and return its manifest entry, with the family's descriptions of the graph and its tensors."""
    meaning, ranges = entry.get("meaning", {}), entry.get("range", {})
    return {
        **{key: value for key, value in entry.items() if key not in ("meaning", "range")},
        "file": path.name,
        "bytes": program.save(path),
        "sha256": files.sha256(path),
        "operators": len(program.graph.operators),
        "inputs": [_describe(tensor, meaning, ranges) for tensor in program.inputs],
        "outputs": [_describe(tensor, meaning, ranges) for tensor in program.outputs],
    }


def _join(parts: Path, path: Path, graphs: dict[str, Any]) -> None:
    """Put the files of the graphs in `parts` into one at `path`; their entries are those of that file."""
    circle.join({name: parts / _file(name) for name in graphs}, path)
    same = {"file": path.name, **_checksum(path)}
    for name, entry in graphs.items():
        graphs[name] = {**entry, **same, "signature": name}
        (parts / _file(name)).unlink()
    parts.rmdir()


def _checksum(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def _describe(tensor: Tensor, meaning: Mapping[str, str], ranges: Mapping[str, Any]) -> dict[str, Any]:
    """Name, form and grid of a graph's input or output; `meaning` is keyed by name, or by a glob for several."""
    out = tensor.describe()
    if tensor.name in ranges:
        out["range"] = ranges[tensor.name]
    words = [text for pattern, text in meaning.items() if fnmatchcase(tensor.name, pattern)]
    return out | ({"meaning": words[0]} if words else {})


def _files_of(manifest: Path) -> list[str]:
    """The files that a manifest names; none when it is not the manifest of a bundle."""
    try:
        old = json.loads(manifest.read_text(encoding="utf-8"))
        if old["format"] != "pyquant-bundle":
            return []
        files = [*(str(entry["file"]) for entry in old["graphs"].values()), *map(str, old.get("files", {}))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [file for file in files if Path(file).name == file and file.endswith((SUFFIX, TENSORS))]


def _named(profiles: Any) -> dict[str, Any]:
    if isinstance(profiles, Mapping):
        pairs = [(str(name), profile) for name, profile in profiles.items()]
    else:
        several = list(profiles) if isinstance(profiles, Sequence) else [profiles]
        pairs = [(str(getattr(p, "name", None) or f"graph{index}"), p) for index, p in enumerate(several)]
    if not pairs:
        raise ProfileError("a bundle needs at least one profile")
    seen: dict[str, str] = {}
    for name, _ in pairs:
        if _UNFIT.search(name) or not name.strip(" .") or name != name.strip() or name.startswith("."):
            raise ProfileError(f"the graph name {name!r} becomes a file name; use letters, digits, '_', '-' and '.'")
        if len(_file(name).encode()) > _LONGEST:
            raise ProfileError(
                f"the graph name {name[:20]!r}... becomes a file name and has {len(name)} characters; shorten it"
            )
        if (other := seen.setdefault(name.casefold(), name)) != name or [n for n, _ in pairs].count(name) > 1:
            both = f"{[name]} is used twice" if other == name else f"{other!r} and {name!r} differ only in case"
            raise ProfileError(
                f"each graph of a bundle needs its own name, but {both}; pass a mapping with one string for each"
            )
    return dict(pairs)


def _file(name: str) -> str:
    return name + SUFFIX


def _provenance(q: nn.Module) -> dict[str, Any]:
    """The versions and the policy that the bundle was made with; no date, so that the same input gives the same
    manifest."""
    out: dict[str, Any] = {
        "format": "pyquant-bundle",
        "version": 1,
        "pyquant": __version__,
        "torch": torch.__version__,
        "model": getattr(getattr(q, "fp_type", None), "__name__", type(q).__name__),
    }
    policy = getattr(q, "policy", None)
    if policy is not None and hasattr(policy, "to_dict"):
        out["policy"] = policy.to_dict()
    return out


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    files.whole_text(path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
