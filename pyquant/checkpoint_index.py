# SPDX-License-Identifier: Apache-2.0
"""quantization.json of a checkpoint: its format, and the configurations that it was made with.

It owns refusing an index that no save_quantized could have written, before anything is built from it. The tensors
themselves are checkpoint.py's.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from pyquant import companions, files
from pyquant.decision import LOG_FILE
from pyquant.errors import CheckpointError
from pyquant.wrap import QModule

FORMAT, VERSION = "pyquant-checkpoint", 1
INDEX, CONFIG = "quantization.json", "config.json"
WEIGHTS = "quantized.safetensors"  # no name that transformers looks for: it would read integers as weights
EARLIER = "model.safetensors"  # what pyquant 0.1 wrote; still read
CHECKED = companions.FILES | {
    WEIGHTS,
    EARLIER,
    CONFIG,
    LOG_FILE,
}  # files with a checksum; README.md is for people, who may edit it

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPREAD = 64  # a tensor's memory is at most that many times its elements
# fields of a configuration that do not change the arithmetic: where it comes from, types, and what to return
_ORIGIN = {
    "quantization_config",
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "architectures",
    "initializer_range",
}
_TYPES = {"dtype", "torch_dtype", "attn_implementation", "_attn_implementation", "_attn_implementation_internal"}
_MORE_TYPES = {"_attn_implementation_autoset", "_experts_implementation", "_experts_implementation_internal"}
_RETURNS = {"output_hidden_states", "output_attentions", "return_dict", "use_cache", "id2label", "label2id"}
_VOLATILE = _ORIGIN | _TYPES | _MORE_TYPES | _RETURNS | {"experts_implementation", "problem_type"}
T = TypeVar("T")


@contextmanager
def verified(folder: Path) -> Iterator[dict[str, Any]]:
    """The index of `folder`, for a block that reads its files. Raises CheckpointError for an index of another form, and
    for a file whose checksum is not the one in it: that of the weights is computed while the block runs, and what the
    block made of damaged weights, an error too, gives way to the CheckpointError that says so."""
    index = _read(folder)
    weights = weights_of(index)
    for name, expected in index["sha256"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"checkpoint {str(folder)!r} lacks the file {name!r}; copy the whole folder")
        if why := files.absent(folder / name):
            raise CheckpointError(f"{str(folder / name)!r} {why}")
        if name != weights:
            _require_checksum(folder, name, files.sha256(folder / name), expected)
    with ThreadPoolExecutor(1, "pyquant-load") as thread:
        checksum = thread.submit(files.sha256, folder / weights, mapped=True)
        try:
            yield index
        finally:
            _require_checksum(folder, weights, checksum.result(), index["sha256"][weights])


def _require_checksum(folder: Path, name: str, seen: str, expected: str) -> None:
    if seen != expected:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} is corrupt: the checksum of {name!r} is not the one in {INDEX}; copy or "
            f"save it again"
        )


def _read(folder: Path) -> dict[str, Any]:
    if why := files.absent(folder / INDEX):
        raise CheckpointError(f"{str(folder / INDEX)!r} {why}")
    try:
        index: Any = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{str(folder)!r} is no quantized model: {INDEX} cannot be read ({error.strerror}); save_quantized "
            f"writes one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} is damaged: {INDEX} is not valid JSON ({error})") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CheckpointError(f"{str(folder / INDEX)!r} is no {FORMAT} file")
    if index.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has format version {index.get('version')!r}, this pyquant reads {VERSION}; "
            f"it was made by {index.get('made_by')}: use that version or save it again"
        )
    _Form(folder).check(index)
    return index


def files_of(folder: Path) -> frozenset[str]:
    """The files that a former save_quantized wrote to `folder`, by its index; none where there is no such index."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return frozenset(index["sha256"]) if index["format"] == FORMAT else frozenset()
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def weights_of(index: Mapping[str, Any]) -> str:
    """The name of the weights file of a checkpoint."""
    return WEIGHTS if WEIGHTS in index["sha256"] else EARLIER


def fault(folder: Path, where: str, what: str) -> CheckpointError:
    """The error of a folder that no save_quantized wrote like this."""
    return CheckpointError(f"checkpoint {str(folder)!r} is damaged: {where} {what}; copy or save it again")


def plausible_stride(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """True for the memory layout of a tensor whose elements do not overlap and are not strewn about."""
    if len(stride) != len(shape) or any(step < 1 for step in stride):
        return False
    reach = 1
    for step, size in sorted((s, n) for s, n in zip(stride, shape, strict=True) if n > 1):
        if step < reach:
            return False
        reach = step * (size - 1) + reach
    return reach <= _SPREAD * max(1, torch.Size(shape).numel())


@dataclasses.dataclass(frozen=True)
class _Form:
    """The form of an index: one method per kind of thing in it."""

    folder: Path

    def check(self, index: Mapping[str, Any]) -> None:
        self._is(index.get("root"), str, "'root'", "the class that was quantized")
        self._is(index.get("policy"), dict, "'policy'", "an object")
        recipe = self._is(index.get("recipe", {}), dict, "'recipe'", "an object")
        self._is(recipe.get("notes", []), list, "'notes' of 'recipe'", "a list")
        checksums = self._is(index.get("sha256"), dict, "'sha256'", "an object of file names and checksums")
        sites = self._is(index.get("sites"), dict, "'sites'", "an object")
        tensors = self._is(index.get("tensors"), dict, "'tensors'", "an object")
        configs = self._is(index.get("configs"), dict, "'configs'", "an object")
        for name, value in checksums.items():
            known = f"is of no file that save_quantized writes ({WEIGHTS}, {CONFIG}, tokenizer and processor files)"
            self._require(name in CHECKED, f"sha256 of {name!r}", known)
            valid = isinstance(value, str) and _SHA256.fullmatch(value) is not None
            self._require(valid, f"sha256 of {name!r}", f"is {value!r}, expected 64 hexadecimal digits")
        self._require(WEIGHTS in checksums or EARLIER in checksums, "'sha256'", f"has no checksum of {WEIGHTS!r}")
        for path, config in configs.items():
            self._is(config, dict, f"configuration of {path!r}", "an object")
        for path, form in self._is(index.get("stored", {}), dict, "'stored'", "an object").items():
            self._stored(f"stored form of {path!r}", form)
        for path, site in sites.items():
            self._site(f"site {path!r}", site)
        for name, entry in tensors.items():
            self._tensor(f"tensor {name!r}", entry, tensors, sites)

    def _site(self, where: str, site: Any) -> None:
        self._is(site, dict, where, "an object")
        self._is(site.get("role"), str, f"role of {where}", "a string")
        quantized = self._is(site.get("quantized"), bool, f"'quantized' of {where}", "true or false")
        self._require(
            "spec" in site and isinstance(site["spec"], dict | None), f"spec of {where}", "is no object or null"
        )
        self._require(not (quantized and site["spec"] is None), where, "is quantized, but has no spec")
        self._is(site.get("decided", ""), str, f"'decided' of {where}", "a string")

    def _stored(self, where: str, form: Any) -> None:
        self._is(self._is(form, dict, where, "an object").get("form"), str, f"'form' of {where}", "a string")
        for key in ("bits", "blocks"):
            number = form.get(key, 1)
            valid = type(number) is int and 1 <= number < 2**31
            self._require(valid, f"{key!r} of {where}", f"is {number!r}, expected a positive whole number")

    def _tensor(self, where: str, entry: Any, tensors: Mapping[str, Any], sites: Mapping[str, Any]) -> None:
        kind = self._is(entry, dict, where, "an object").get("kind")
        self._require(
            kind in ("float", "integer", "alias"), where, f"has kind {kind!r}, expected float, integer or alias"
        )
        if kind == "alias":
            of = self._is(entry.get("of"), str, f"'of' of {where}", "the name of another tensor")
            target = tensors.get(of)
            known = isinstance(target, dict) and target.get("kind") in ("float", "integer")
            self._require(known, where, f"is an alias of {of!r}, which is no stored tensor")
            return
        name = entry.get("dtype")
        dtype = getattr(torch, name, None) if isinstance(name, str) else None
        self._require(isinstance(dtype, torch.dtype), where, f"has dtype {name!r}, expected a type such as float32")
        shape = entry.get("shape")
        self._require(_sizes(shape), where, f"has shape {shape!r}, expected a list of sizes")
        if "stride" in entry:
            stride = entry["stride"]
            fits = _sizes(stride) and plausible_stride(shape, stride)
            self._require(fits, where, f"has stride {stride!r}, which is no layout of shape {shape}")
        if kind == "integer":
            assert isinstance(dtype, torch.dtype)
            self._require(dtype.is_floating_point, where, f"has values of {name}, expected a floating point type")
            path = entry.get("site")
            known = isinstance(path, str) and path in sites and sites[path]["quantized"]
            self._require(known, where, f"is on the grid of site {path!r}, which is not quantized here")

    def _is(self, value: Any, kind: type[T], where: str, expected: str) -> T:
        if not isinstance(value, kind):
            seen = "missing" if value is None else f"a {type(value).__name__}"
            raise fault(self.folder, f"{INDEX}: {where}", f"is {seen}, expected {expected}")
        return value

    def _require(self, condition: bool, where: str, what: str) -> None:
        if not condition:
            raise fault(self.folder, f"{INDEX}: {where}", what)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


# --- configurations ---


def configs(q: QModule) -> dict[str, dict[str, Any]]:
    """Module path -> configuration (Hugging Face's or a dataclass) of the tree, each object where it is met first."""
    found: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for module in q.all_qmodules():
        plain = None if id(module.config) in seen else _plain(module.config)
        if plain is not None:
            seen.add(id(module.config))
            found[module.path] = plain
    return found


def check_configs(recorded: Mapping[str, Mapping[str, Any]], q: QModule, folder: Path) -> None:
    """Raise CheckpointError that names the keys in which the model's configurations are not the recorded ones."""
    here = {module.path: module.config for module in q.all_qmodules()}
    for path, theirs in recorded.items():
        ours = _plain(here.get(path)) or {}
        same_release = theirs.get("transformers_version") == ours.get("transformers_version")
        differing = [
            f"{key} ({then} there, {now} here)"
            for key, then, now in _differences(theirs, ours)
            if same_release or "absent" not in (then, now)  # another release of transformers has other keys
        ]
        if differing:
            where = f" of {path!r}" if path else ""
            raise CheckpointError(
                f"checkpoint {str(folder)!r} is of another configuration{where}: {', '.join(differing)}; pass a model "
                f"of the configuration that was quantized"
            )


def _differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, value in a, value in b) where two configurations differ in the arithmetic."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in sorted({*a, *b} - _VOLATILE):
            yield from _differences(a.get(name, _ABSENT), b.get(name, _ABSENT), f"{key}.{name}" if key else name)
    elif a != b:
        yield key, _shown(a), _shown(b)


_ABSENT = object()


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def _plain(config: Any) -> dict[str, Any] | None:
    """A configuration as JSON has it; None for what is none."""
    if callable(getattr(config, "to_dict", None)) and not isinstance(config, type):
        data = config.to_dict()
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        data = dataclasses.asdict(config)
    else:
        return None
    plain = json.loads(json.dumps(data, default=lambda value: f"{type(value).__name__} {value}"))
    return plain if isinstance(plain, dict) else None
