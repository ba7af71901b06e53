# SPDX-License-Identifier: Apache-2.0
"""Session: a bundle's graphs, run in one runtime, with the host code that its manifest names.

It owns reading the manifest, the checksums, and each graph's runtime. What a family's host does between the graphs is
its own (models/family.py), found by the manifest's `family`; nothing else of a model is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyquant import circle, files, models
from pyquant.decoder.row_table import RowTable
from pyquant.decoder.turn import Past
from pyquant.errors import CircleError, InputError, PyquantError
from pyquant.verify.runtimes import RuntimeName, module

if TYPE_CHECKING:
    from pyquant.decoder.host import Host

MANIFEST = "manifest.json"


class Session:
    """The bundle in `folder`: `Session("out").generate(input_ids, pixel_values, image_grid_thw)`.

    Raises CircleError for a folder without a manifest, of another format, or with a file that is missing or is not the
    one that was exported (checksum); InputError for a runtime or a model family that is not known; ImportError when the
    runtime is not installed. A graph is loaded when it is first run. workspace: threads and memory of the native
    runtime, `circle.Workspace(threads=2)`; without one it takes as many threads as the process may use.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        runtime: RuntimeName = "native",
        workspace: circle.Workspace | None = None,
    ) -> None:
        self.folder, self.runtime = Path(folder), runtime
        self._module = module(runtime)
        if workspace is not None and runtime != "native":
            raise InputError(f"a workspace is what the native runtime computes with, and the runtime is {runtime!r}")
        self._workspace = workspace or circle.Workspace() if runtime == "native" else None
        self.manifest = _manifest(self.folder)
        self.graphs: Mapping[str, Any] = self.manifest["graphs"]
        self.tables: Mapping[str, Any] = self.manifest.get("tables", {})
        try:
            self._verify_files()
        except (KeyError, TypeError, AttributeError) as error:
            seen = f"{type(error).__name__}: {error}"
            raise CircleError(
                f"'{self.folder / MANIFEST}' does not say which files the bundle has ({seen}); export the bundle again"
            ) from error
        self._runtimes: dict[str, Any] = {}
        self._host: Any = None

    def _verify_files(self) -> None:
        beside, seen = self.manifest.get("files", {}), set[tuple[str, str]]()
        for name, entry in self.graphs.items():
            if "signature" in entry and self.runtime != "native":
                raise InputError(
                    f"the bundle has all graphs in '{entry['file']}', which {self.runtime} does not run; use "
                    'runtime="native", or export it with one_file=False'
                )
            if (key := (str(entry["file"]), str(entry["sha256"]))) not in seen:
                _verify(self.folder, key[0], f"graph '{name}'", key[1])
            seen.add(key)
        for file, entry in beside.items():
            _verify(self.folder, file, f"file '{file}'", str(entry["sha256"]))
        for name, entry in self.tables.items():
            if str(entry["file"]) not in beside:
                raise CircleError(f"'{self.folder / MANIFEST}': table '{name}' is in no file that it lists")

    @property
    def host(self) -> Any:
        """The family's host. Raises InputError for a bundle that has none, or cannot generate; CircleError for a
        manifest that does not say what a host has to know."""
        if self._host is None:
            host = _host_of(self.manifest)
            try:
                self._host = host(self.manifest)
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(error, PyquantError):
                    raise
                seen = f"{type(error).__name__}: {error}"
                raise CircleError(
                    f"'{self.folder / MANIFEST}' does not say what a host has to know ({seen}); export the bundle again"
                ) from error
        return self._host

    def generate(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens (B, S) -> (B, S + new), as q.generate of the quantized model: prompts and pixels by their names, then
        transformers' arguments of generate (do_sample, top_k, generation_config, stop_strings with tokenizer, streamer,
        ...), and `seed` or `sampler`; what they leave open follows the model's generation config.

        See decoder.generation.GenerationRequest. Raises InputError for inputs that no graph of the bundle takes, and
        for what the files cannot do (beams, several answers, assisted decoding, unknown names).
        """
        tokens: Tensor = self.host.generate(self.run, input_ids, *args, **kwargs)
        return tokens

    def chat(self) -> Chat:
        """A conversation over one cache: `chat = session.chat(); chat.generate(first); chat.generate(second)`."""
        return Chat(self)

    def run(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One graph, or a table beside them: inputs by name -> outputs by name, floats as float32. Raises InputError
        that names the graph and the input for a name, shape, type or integer that the manifest does not allow."""
        if name in self.tables:
            if name not in self._runtimes:
                self._runtimes[name] = RowTable(self.folder / str(self.tables[name]["file"]), self.tables[name])
            rows: dict[str, Tensor] = self._runtimes[name].run(inputs)
            return rows
        if name not in self.graphs:
            raise InputError(f"the bundle has no graph {name!r}; it has {', '.join(self.graphs)}")
        _check(name, self.graphs[name]["inputs"], inputs)
        if name not in self._runtimes:
            path = self.folder / str(self.graphs[name]["file"])
            if self._workspace is None:
                self._runtimes[name] = self._module.Runtime(path)
            else:
                key = str(self.graphs[name].get("signature", ""))
                self._runtimes[name] = self._module.Runtime(path, workspace=self._workspace, signature=key)
        out: dict[str, Tensor] = self._runtimes[name].run(dict(inputs))
        return out

    def close(self) -> None:
        """Close the runtimes; the next run starts them again."""
        for each in self._runtimes.values():
            if hasattr(each, "close"):
                each.close()
        self._runtimes.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Chat:
    """Turns of one conversation. Each `generate` takes what is new alone, and computes that alone.

    Needs a bundle with `append_lengths`, from the second turn on.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._past = session, Past()

    def generate(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One turn (B, S) -> (B, S + new), behind all turns before it; arguments as Session.generate's.

        The tokens are those of Session.generate on the whole conversation. attention_mask and images are those of this
        turn, penalties and max_length count all of it. Raises InputError as Session.generate, also when max_seq_len is
        reached or the bundle has no append graph; after any error the chat is as it was before the turn.
        """
        tokens: Tensor = self._session.host.generate(self._session.run, input_ids, *args, past=self._past, **kwargs)
        return tokens

    @property
    def tokens(self) -> Tensor:
        """The conversation so far: int64 (B, S), all turns and answers. Where rows ended early there is padding; see
        attention_mask."""
        return torch.empty(0, 0, dtype=torch.int64, device="cpu") if self._past.ids is None else self._past.ids

    @property
    def attention_mask(self) -> Tensor:
        """int64 (B, S): 0 where `tokens` has padding."""
        return torch.zeros_like(self.tokens) if self._past.real is None else self._past.real.long()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if why := files.absent(path):
        raise CircleError(f"'{path}' {why}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CircleError(f"'{folder}' is no bundle: {path.name} cannot be read ({error}); export one with "
                          "pyquant.export_bundle(q, folder, profile)") from error  # fmt: skip
    if not isinstance(manifest, dict) or manifest.get("format") != "pyquant-bundle" or manifest.get("version") != 1:
        raise CircleError(f"'{path}' is no manifest of a bundle that this pyquant knows (pyquant-bundle, version 1)")
    if not isinstance(manifest.get("graphs"), dict):
        raise CircleError(f"'{path}' names no graphs")
    return manifest


def _verify(folder: Path, file: str, name: str, sha256: str) -> None:
    path = folder / file
    if Path(file).name != file:
        raise CircleError(f"{name} of the bundle is '{file}', which is no file of its folder; export the bundle again")
    if not path.is_file():
        raise CircleError(f"{name} of the bundle is missing: no file '{path}'; export the bundle again")
    if why := files.absent(path):
        raise CircleError(f"'{path}' {why}")
    if (seen := files.sha256(path)) != sha256:
        raise CircleError(
            f"'{path}' is not the file that was exported: its sha256 is {seen}, the manifest has {sha256}; export the "
            "bundle again"
        )


def _host_of(manifest: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Host]:
    family = str(manifest.get("family", ""))
    host = models.by_name(family).host if family in models.FAMILIES else None
    if host is None:
        raise InputError(
            f"the bundle is of the model family {family!r}, which has no host side here; run its graphs one by one "
            "with Session.run"
        )
    return host


def _check(name: str, specs: list[dict[str, Any]], inputs: Mapping[str, Tensor]) -> None:
    names = [spec["name"] for spec in specs]
    if set(names) != set(inputs):
        raise InputError(f"graph '{name}' takes the inputs {names}, got {list(inputs)}")
    for spec in specs:
        value, sizes = inputs[spec["name"]], spec.get("shape_signature", spec["shape"])
        integer = spec["dtype"] in ("int32", "int64", "bool") and "quant" not in spec
        want = getattr(torch, spec["dtype"]) if integer else torch.float32
        fits = len(value.shape) == len(sizes) and all(
            size in (-1, seen) for size, seen in zip(sizes, value.shape, strict=True)
        )
        if not fits or value.dtype != want:
            shown = ["any" if size == -1 else size for size in sizes]
            raise InputError(
                f"graph '{name}': input '{spec['name']}' is {value.dtype} {list(value.shape)}, expected {want} {shown}"
            )
        # The sum is finite where all values are (or passes float32's range, which says nothing): four times as fast.
        if value.is_floating_point() and not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            place = (~value.isfinite()).nonzero()[0].tolist()
            raise InputError(
                f"graph '{name}': input '{spec['name']}' has {float(value[tuple(place)])} at {place}; a graph takes "
                "finite numbers only (runtimes differ in what they make of others), so repair the data"
            )
        if "range" in spec and value.numel():
            low, high = spec["range"]
            outside = ((value < low) | (value > high)).nonzero()
            if len(outside):
                place = outside[0].tolist()
                what = "token id" if spec["name"] == "input_ids" else "value"
                rows = f" (the vocabulary has {high + 1})" if spec["name"] == "input_ids" else ""
                raise InputError(
                    f"graph '{name}': input '{spec['name']}' has the {what} {int(value[tuple(place)])} at {place}, "
                    f"out of the range {low} to {high}{rows}"
                )
