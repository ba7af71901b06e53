# SPDX-License-Identifier: Apache-2.0
"""export_bundle(): every graph of a model in one folder, with a manifest that says what each is.

It owns the folder and the manifest. One graph is export.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyquant import __version__
from pyquant.circle.files import Target
from pyquant.errors import CircleError, ProfileError
from pyquant.exporter.pipeline import export
from pyquant.exporter.program import CircleProgram

MANIFEST = "manifest.json"


def export_bundle(
    q: nn.Module, out_dir: str | os.PathLike[str], profiles: Any, *, target: Target = "circle"
) -> dict[str, CircleProgram]:
    """Write `<name>.circle` for each profile, then `manifest.json`. Returns the programs by name.

    `profiles` is one profile, a sequence of them (named by `profile.name`), or a mapping name -> profile. Each file
    appears whole or not at all, the manifest last, so that a manifest never names a file that is not there.
    """
    named = _named(profiles)
    folder = Path(out_dir)
    if not folder.parent.is_dir():
        raise CircleError(
            f"cannot write a bundle to '{folder}': the folder '{folder.parent}' does not exist; create it first"
        )
    folder.mkdir(exist_ok=True)
    programs: dict[str, CircleProgram] = {}
    graphs: dict[str, Any] = {}
    for name, profile in named.items():
        programs[name] = program = export(q, profile, name=name, target=target)
        path = folder / f"{name}.circle"
        size = program.save(path)
        graphs[name] = {
            "file": path.name,
            "bytes": size,
            "sha256": _sha256(path),
            "operators": len(program.graph.operators),
            "inputs": [tensor.describe() for tensor in program.inputs],
            "outputs": [tensor.describe() for tensor in program.outputs],
        }
    _write_manifest(folder / MANIFEST, {**_provenance(q), "target": target, "graphs": graphs})
    return programs


def _named(profiles: Any) -> dict[str, Any]:
    if isinstance(profiles, Mapping):
        named = {str(name): profile for name, profile in profiles.items()}
    else:
        several = list(profiles) if isinstance(profiles, Sequence) else [profiles]
        names = [str(getattr(profile, "name", None) or f"graph{index}") for index, profile in enumerate(several)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ProfileError(
                f"each graph of a bundle has a name of its own, but {twice} is used twice; pass a mapping"
            )
        named = dict(zip(names, several, strict=True))
    if not named:
        raise ProfileError("a bundle needs at least one profile")
    for name in named:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ProfileError(f"the graph name {name!r} becomes a file name; use letters, digits, '_', '-' and '.'")
    return named


def _provenance(q: nn.Module) -> dict[str, Any]:
    """What made the bundle; no date, so that the same input gives the same manifest."""
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
    recipe = getattr(q, "recipe", None)
    if recipe is not None:
        out["recipe"] = str(recipe)
    return out


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
