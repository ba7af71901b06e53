# SPDX-License-Identifier: Apache-2.0
"""What Python's host gives each graph, recorded, and the native host made to give the same, bit for bit.

It owns the recording and its files. The graphs are eager adapters, so that nothing is exported: `pyquant-circle
generate --replay` runs no graph either.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pyquant._launch import program
from tests.models.eager_bundle import Eager

MEDIA = (
    "pixel_values",
    "image_grid_thw",
    "image_position_ids",
    "pixel_values_videos",
    "video_grid_thw",
    "video_position_ids",
    "input_features",
    "input_features_mask",
)


class Recorder:
    """`run` of an Eager bundle that keeps every call."""

    def __init__(self, eager: Eager) -> None:
        self.eager = eager
        self.tensors: dict[str, Tensor] = {}
        self.shapes: dict[str, dict[str, Tensor]] = {}
        self.calls: list[str] = []

    def __call__(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = self.eager(name, inputs)
        for side, tensors in (("in", inputs), ("out", out)):
            for key, value in tensors.items():
                self.tensors[f"{len(self.calls)}|{name}|{side}|{key}"] = value.detach().clone().contiguous()
        self.calls.append(name)
        self.shapes[name] = out
        return out

    def save(self, folder: Path, **changes: Any) -> None:
        """manifest.json as export_bundle writes it, empty graph files, calls.safetensors."""
        folder.mkdir(exist_ok=True)
        save_file(self.tensors, folder / "calls.safetensors")
        (folder / "manifest.json").write_text(json.dumps(written(self.eager, self.shapes) | changes))
        for name in self.eager.parts:
            (folder / f"{name}.circle").touch()


def written(eager: Eager, outputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """The manifest of a bundle with what files add: forms of inputs and outputs (of graphs that ran)."""
    head = {"format": "pyquant-bundle", "version": 1}
    manifest = json.loads(json.dumps({**head, **eager.manifest}))
    for name, (part, own) in eager.parts.items():
        if name not in eager.adapters:
            eager.adapters[name] = part.as_export_module(own)
        specs = eager.adapters[name].input_specs
        ranges = manifest["graphs"][name].pop("range", {})
        inputs = []
        for key, spec in specs.items():
            entry = {"name": key, "shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch.")}
            if spec.dynamic is not None:
                entry["shape_signature"] = [-1 if axis == spec.dynamic else n for axis, n in enumerate(spec.shape)]
            inputs.append(entry | ({"range": ranges[key]} if key in ranges else {}))
        made = outputs.get(name, {})
        described = [
            {"name": key, "shape": list(made[key].shape) if key in made else [], "dtype": "float32"}
            for key in eager.adapters[name].output_names
        ]
        manifest["graphs"][name] |= {"file": f"{name}.circle", "bytes": 0, "inputs": inputs, "outputs": described}
    return manifest


def rows_of(ids: Tensor, mask: Tensor | None) -> str:
    """Prompts as --ids takes them, without padding."""
    keep = torch.ones_like(ids) if mask is None else mask
    return ";".join(",".join(str(int(t)) for t in row[own != 0]) for row, own in zip(ids, keep, strict=True))


def native(folder: Path, *words: object, turns: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """`pyquant-circle generate` over the recording in `folder`."""
    command = [program(), "generate", str(folder), *map(str, words), "--replay", str(folder / "calls.safetensors")]
    return subprocess.run(command, capture_output=True, text=True, check=False, input="\n".join(turns))


def media_file(folder: Path, inputs: Mapping[str, Tensor], name: str = "media.safetensors") -> list[str]:
    """The words for images and clips, which the file `name` of `folder` has then."""
    found = {key: value.contiguous() for key, value in inputs.items() if key in MEDIA and value is not None}
    if not found:
        return []
    save_file(found, folder / name)
    return ["--pixels", str(folder / name)]


def expect_same(
    folder: Path, eager: Eager, host: Any, inputs: Mapping[str, Tensor], *words: object, **options: Any
) -> Recorder:
    """Python's tokens for `inputs`, and the native host's with the same inputs for every graph."""
    recorder = Recorder(eager)
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    expected = host.generate(recorder, **inputs, **options)[:, ids.shape[1] :]
    recorder.save(folder)
    given = ["--ids", rows_of(ids, mask), *media_file(folder, inputs), *words]
    done = native(folder, "--max-new-tokens", options["max_new_tokens"], *given)
    assert done.returncode == 0, done.stderr
    lines = [[int(token) for token in line.split(",")] for line in done.stdout.splitlines()]
    assert len(lines) == len(expected)
    for line, row in zip(lines, expected.tolist(), strict=True):
        assert line == row[: len(line)]
        assert len(set(row[len(line) :])) <= 1, "what follows the end of a row is padding"
    return recorder
