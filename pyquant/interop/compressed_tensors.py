# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of compressed-tensors, which llm-compressor and vLLM's tools write: integers, activations, KV cache.

It owns the meaning of their tensors and of their quantization_config, as of compressed-tensors 0.8 to 0.20
(github.com/vllm-project/compressed-tensors, src/compressed_tensors/compressors).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import ModelError, SpecError
from pyquant.interop.reader import Advice
from pyquant.interop.stored_weight import StoredWeight
from pyquant.interop.tensor_folder import TensorFolder
from pyquant.interop.words import BITS, unpack, words
from pyquant.qparams import QParams
from pyquant.spec import INT8, INT16, PerTensor, QuantSpec

__all__ = ["CompressedReader"]

ADVICE = Advice(
    per_channel=(
        'llm-compressor with a scheme of one scale per channel: QuantizationArgs(num_bits=4, strategy="channel", '
        "symmetric=True) in config_groups of GPTQModifier or QuantizationModifier, or the preset W8A8 (W4A16 has "
        "groups of 128)"
    ),
    symmetric="symmetric=True in its QuantizationArgs",
)
#: endings of the tensors beside a quantized module's weight
_KINDS = ("weight", "input", "output", "q", "k", "v")
_ENDINGS = frozenset(f"{kind}_{what}" for kind in _KINDS for what in ("scale", "zero_point", "global_scale")) | {
    "weight_packed",
    "weight_shape",
    "weight_g_idx",
}
_CACHES = {"k": "key", "v": "value"}
_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision", "dense")


@dataclass(frozen=True)
class _Scheme:
    """One of the config's groups: the modules that it means and the arguments for each kind of tensor."""

    targets: tuple[str, ...]
    args: Mapping[str, Mapping[str, Any]]

    def names(self, path: str) -> bool:
        """Whether a target is this path, or a pattern of it."""
        plain = [target for target in self.targets if not target.startswith("re:")]
        patterns = [target.removeprefix("re:") for target in self.targets if target.startswith("re:")]
        return path in plain or any(re.match(pattern, path) for pattern in patterns)


@dataclass(frozen=True)
class CompressedReader:
    """See Reader. Raises ModelError for a format that is not read."""

    folder: TensorFolder
    weights: frozenset[str]
    owned: frozenset[str]
    schemes: tuple[_Scheme, ...]
    cache: Mapping[str, Any]  # the arguments of kv_cache_scheme
    tool: str = "compressed-tensors"
    advice: Advice = ADVICE

    @classmethod
    def read(cls, folder: TensorFolder, config: Mapping[str, Any]) -> CompressedReader:
        config = {**config, **(config.get("quantization_config") or {})}
        _require_format(folder, config)
        packed = {name.removesuffix(".weight_packed") for name in folder if name.endswith(".weight_packed")}
        scaled = {name.removesuffix(".weight_scale") for name in folder if name.endswith(".weight_scale")}
        whole = {name.removesuffix(".weight") for name in folder if name.endswith(".weight")}
        integers = {path for path in whole if folder.dtype(f"{path}.weight") in ("I8", "I32", "U8")}
        _require_pairs(folder, packed | integers, scaled, whole)
        modules = packed | integers
        owned = {name for name in folder if name.rpartition(".")[2] in _ENDINGS} | {
            f"{path}.weight" for path in integers
        }
        groups = config.get("config_groups") or {}
        schemes = tuple(_scheme(folder, name, group) for name, group in groups.items())
        return cls(folder, frozenset(modules), frozenset(owned), schemes, config.get("kv_cache_scheme") or {})

    def weight(self, path: str) -> StoredWeight:
        args = self._args(path, "weights")
        bits = int(args.get("num_bits", 8))
        if args.get("type", "int") != "int" or bits not in BITS:
            raise ModelError(
                f"the weight of {path!r} has {args.get('type', 'int')} of {bits} bits; pyquant reads integers of 2, 4 "
                f"and 8 bits: {self.advice.per_channel}"
            )
        if f"{path}.weight_g_idx" in self.folder:
            raise ModelError(
                f"the weight of {path!r} has columns in the order of their groups (actorder=group), which no file "
                f'format has; quantize it with actorder="weight"'
            )
        integers = self._integers(path, bits)
        scale = self.folder.require(f"{path}.weight_scale", f"has the scales of {path!r}").to(torch.float32)
        rows, columns = integers.shape
        if scale.numel() == 1 and args.get("strategy") in ("tensor", None):
            zero = self.folder.get(f"{path}.weight_zero_point")
            zero_point = torch.zeros(1, dtype=torch.float32, device="cpu") if zero is None else zero
            return StoredWeight(path, bits, integers, scale.reshape(()), zero_point.reshape(()).to(torch.int32))
        if scale.dim() != 2 or scale.shape[0] != rows or columns % scale.shape[1]:
            raise ModelError(
                f"{path}.weight_scale has shape {tuple(scale.shape)}, expected ({rows}, groups): scales by channel or "
                f"group (strategy {args.get('strategy')!r}); {self.advice.per_channel}"
            )
        return StoredWeight(path, bits, integers, scale, self._zero_points(path, bits, scale, args))

    def _integers(self, path: str, bits: int) -> Tensor:
        name = f"{path}.weight_packed"
        if name not in self.folder:
            whole = self.folder[f"{path}.weight"]
            if whole.dtype != torch.int8 or whole.dim() != 2:
                raise ModelError(
                    f"{path}.weight is {whole.dtype} of shape {tuple(whole.shape)}, expected int8 of rank 2"
                )
            return whole
        packed, shape = self.folder[name], self.folder.require(f"{path}.weight_shape", f"has the shape of {name!r}")
        sizes = [int(size) for size in shape.reshape(-1).tolist()]
        if len(sizes) != 2 or packed.dtype != torch.int32 or tuple(packed.shape) != (sizes[0], words(sizes[1], bits)):
            raise ModelError(
                f"{name!r} is {packed.dtype} of shape {tuple(packed.shape)}, expected int32 words of {bits}-bit "
                f"integers for a weight of shape {tuple(sizes)}; its format is another one, or the files are damaged"
            )
        return unpack(packed, bits, sizes[1])

    def _zero_points(self, path: str, bits: int, scale: Tensor, args: Mapping[str, Any]) -> Tensor:
        name = f"{path}.weight_zero_point"
        symmetric = bool(args.get("symmetric", True))
        if name not in self.folder:
            if not symmetric:
                self.folder.require(name, f"has the zero points of {path!r}")
            return torch.zeros(scale.shape, dtype=torch.int32, device=scale.device)
        stored = self.folder[name]
        if stored.dtype == torch.int32 and f"{path}.weight_packed" in self.folder and not symmetric:
            stored = unpack(stored.t(), bits, int(scale.shape[0])).t() if stored.dim() == 2 else stored
        if stored.shape != scale.shape:
            raise ModelError(
                f"{name!r} has shape {tuple(stored.shape)}, expected that of the scales, {tuple(scale.shape)}"
            )
        return stored.to(torch.int32).contiguous()

    def activations(self) -> Mapping[str, QParams]:
        return {
            f"{path}:{_CACHES.get(kind, kind)}": self._grid(path, kind, spec)
            for path, kind, spec in self._scales()
            if isinstance(spec, QuantSpec)
        }

    def _scales(self) -> Iterator[tuple[str, str, QuantSpec | str]]:
        """(module, kind, format) of each static scale of an activation; or why it has no format here."""
        for name in sorted(self.owned):
            path, _, ending = name.rpartition(".")
            kind = ending.removesuffix("_scale")
            if not ending.endswith("_scale") or kind not in ("input", "output", "q", *_CACHES):
                continue
            if kind == "q":
                yield path, kind, "are of queries, for attention of integers"
                continue
            args = self.cache if kind in _CACHES else self._args(path, f"{kind}_activations")
            if self.folder[name].numel() != 1:
                yield path, kind, "are several for a tensor (one per head)"
            else:
                yield path, kind, _activation_spec(args)

    def _grid(self, path: str, kind: str, spec: QuantSpec) -> QParams:
        scale = self.folder.number(f"{path}.{kind}_scale")
        zero = f"{path}.{kind}_zero_point"
        zero_point = (
            self.folder.number(zero) if zero in self.folder else torch.zeros((), dtype=torch.int32, device="cpu")
        )
        try:
            return QParams(spec, scale, zero_point.to(torch.int32))
        except SpecError as error:
            raise ModelError(f"{path}.{kind}_scale is no grid: {error}; repair the checkpoint") from error

    def remarks(self) -> list[str]:
        counts = Counter(
            (spec, "the KV cache" if kind in _CACHES else "activations")
            for _, kind, spec in self._scales()
            if isinstance(spec, str)
        )
        return [f"{count} scales of {what} {why}, and are calibrated instead" for (why, what), count in counts.items()]

    def _args(self, path: str, kind: str) -> Mapping[str, Any]:
        """By name, else the first that goes by the class of a module; {} for none."""
        named = [scheme for scheme in self.schemes if scheme.names(path)]
        by_class = [scheme for scheme in self.schemes if not all(map(_is_path, scheme.targets))]
        found = next(iter([*named, *by_class]), None)
        return {} if found is None else found.args.get(kind, {})


def _is_path(target: str) -> bool:
    return target.startswith("re:") or "." in target


def _scheme(folder: TensorFolder, name: str, group: Any) -> _Scheme:
    if not isinstance(group, Mapping):
        raise ModelError(
            f"{str(folder.path / 'config.json')!r}: config_groups[{name!r}] is {group!r}, expected its arguments; "
            "save the model with a current compressed-tensors"
        )
    kinds = ("weights", "input_activations", "output_activations")
    return _Scheme(tuple(group.get("targets") or ()), {kind: group.get(kind) or {} for kind in kinds})


def _activation_spec(args: Mapping[str, Any]) -> QuantSpec | str:
    """The format of a static scale; in its place, why it has none here."""
    if not args:
        return "have no scheme in quantization_config"
    bits, kind, symmetric = args.get("num_bits", 8), args.get("type", "int"), bool(args.get("symmetric", True))
    types = {8: INT8, 16: INT16}
    if kind != "int" or bits not in types or (bits == 16 and not symmetric):
        return f"are {kind} of {bits} bits{'' if symmetric else ' with a zero point'}"
    return QuantSpec(types[bits], symmetric=symmetric, granularity=PerTensor())


def _require_format(folder: TensorFolder, config: Mapping[str, Any]) -> None:
    groups = [group for group in (config.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    for form in (config.get("format"), *(group.get("format") for group in groups)):
        if form is not None and form not in _FORMATS:
            raise ModelError(
                f"{str(folder.path)!r} is of the format {form!r} of compressed-tensors; pyquant reads pack-quantized, "
                f"int-quantized and naive-quantized: {ADVICE.per_channel}"
            )
    if (config.get("transform_config") or {}).get("config_groups"):
        raise ModelError(
            f"{str(folder.path)!r} has transforms that the model computes as it runs (transform_config), which no "
            "wrapper does; quantize it without SpinQuantModifier's R3 and R4, and without QuIPModifier"
        )


def _require_pairs(folder: TensorFolder, modules: set[str], scaled: set[str], whole: set[str]) -> None:
    if absent := sorted(modules - scaled):
        folder.require(f"{absent[0]}.weight_scale", f"has the scales of {absent[0]!r}")
    others: Iterable[str] = sorted(scaled - modules)
    for path in others:
        if path not in whole:
            folder.require(f"{path}.weight_packed", f"has the integers of {path!r}")
        form = folder.dtype(f"{path}.weight")
        step = (
            "save it with save_pretrained(..., save_compressed=True)"
            if form in ("F32", "F16", "BF16")
            else f"pyquant reads integers: {ADVICE.per_channel}"
        )
        raise ModelError(f"{path}.weight in {str(folder.path)!r} is stored as {form} beside its scales; {step}")
    if not modules and not any(name.endswith((".k_scale", ".v_scale")) for name in folder):
        raise ModelError(
            f"{str(folder.path)!r}: config.json has a quantization_config of compressed-tensors, and no tensor of the "
            "folder is quantized; remove it from config.json if this is a float checkpoint"
        )
