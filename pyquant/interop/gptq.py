# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of GPTQModel and AutoGPTQ (`quant_method: gptq`): words of integers, packed along the inputs.

It owns the meaning of their tensors and of their quantization_config: qweight (in * bits / 32, out), scales (groups,
out), qzeros (groups, out * bits / 32), g_idx (in,). Source: GPTQModel 7, gptqmodel/nn_modules/qlinear and
utils/model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import ModelError
from pyquant.interop.reader import Advice
from pyquant.interop.stored_weight import StoredWeight
from pyquant.interop.tensor_folder import TensorFolder
from pyquant.interop.words import BITS, add_one, unpack, words
from pyquant.qparams import QParams

__all__ = ["WordsReader", "plain", "read"]

ADVICE = Advice(
    per_channel="GPTQModel with QuantizeConfig(bits=4, group_size=-1)", symmetric="QuantizeConfig(..., sym=True)"
)
_ENDINGS = ("qweight", "qzeros", "scales", "g_idx")


ZeroPoints = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class WordsReader:
    """See Reader; of every tool that packs integers into words as GPTQ does.

    zero_points: (packed, bits, count) -> those that `qzeros` holds, signed ones as int32 (groups, count).
    """

    folder: TensorFolder
    weights: frozenset[str]
    owned: frozenset[str]
    bits: int
    tool: str
    advice: Advice
    zero_points: ZeroPoints

    @classmethod
    def of(
        cls, folder: TensorFolder, config: Mapping[str, Any], tool: str, advice: Advice, zero_points: ZeroPoints
    ) -> WordsReader:
        """The folder of `tool`. Raises ModelError for one without words."""
        return cls(
            folder, modules_of(folder, tool), owned_by(folder), int(config.get("bits", 4)), tool, advice, zero_points
        )

    def weight(self, path: str) -> StoredWeight:
        return read_weight(self.folder, path, self.bits, self.zero_points)

    def activations(self) -> Mapping[str, QParams]:
        return {}

    def remarks(self) -> list[str]:
        return []


def read(folder: TensorFolder, config: Mapping[str, Any]) -> WordsReader:
    """A folder of GPTQModel or AutoGPTQ. Raises ModelError for another format of theirs."""
    form = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise ModelError(
            f"{str(folder.path)!r} is of the format {form!r} of GPTQModel; pyquant reads gptq and gptq_v2: save "
            'it with QuantizeConfig(..., format="gptq")'
        )
    return WordsReader.of(folder, config, "GPTQ", ADVICE, _less_one if form == "gptq" else plain)


def plain(packed: Tensor, bits: int, count: int) -> Tensor:
    """Zero points as they are."""
    return unpack(packed, bits, count).to(torch.int32)


def _less_one(packed: Tensor, bits: int, count: int) -> Tensor:
    """Each zero point less one, to be added to the words: a carry goes into the next number."""
    return plain(add_one(packed, bits), bits, count)


def modules_of(folder: TensorFolder, tool: str) -> frozenset[str]:
    """The paths of the modules with words. Raises ModelError for none."""
    found = frozenset(name.removesuffix(".qweight") for name in folder if name.endswith(".qweight"))
    if not found:
        raise ModelError(
            f"{str(folder.path)!r}: config.json has a quantization_config of {tool}, and no tensor of the folder is "
            "quantized (none is a qweight); remove it from config.json if this is a float checkpoint"
        )
    return found


def owned_by(folder: TensorFolder) -> frozenset[str]:
    """The tensors of quantized modules."""
    return frozenset(name for name in folder if name.rpartition(".")[2] in _ENDINGS)


def read_weight(folder: TensorFolder, path: str, usual: int, zero_points: ZeroPoints) -> StoredWeight:
    """The integers of one module. zero_points(packed, bits, count) -> signed ones as int32 (groups, count).

    The number of bits is the `usual` one of the folder where the shapes fit it, else what they say (modules of one
    model may differ in it).
    """
    packed = folder[f"{path}.qweight"]
    scale = folder.require(f"{path}.scales", f"has the scales of {path!r}").to(torch.float32)
    zeros = folder.require(f"{path}.qzeros", f"has the zero points of {path!r}")
    if packed.dtype != torch.int32 or zeros.dtype != torch.int32 or {packed.dim(), scale.dim(), zeros.dim()} != {2}:
        raise ModelError(
            f"{path}.qweight is {packed.dtype} of shape {tuple(packed.shape)} and qzeros {zeros.dtype} of shape "
            f"{tuple(zeros.shape)}, expected int32 matrices (pack_dtype int32); save the model with it"
        )
    rows, groups = int(packed.shape[1]), int(scale.shape[0])
    bits = next((bits for bits in (usual, 2, 3, 4, 5, 6, 7, 8) if words(rows, bits) == zeros.shape[1]), 0)
    if bits and bits not in BITS:
        raise ModelError(f"the weight of {path!r} has {bits} bits; pyquant reads 2, 4 and 8: quantize it with bits=4")
    if not bits or tuple(scale.shape) != (groups, rows) or zeros.shape[0] != groups:
        raise ModelError(
            f"the tensors of {path!r} do not fit each other: qweight {tuple(packed.shape)}, scales "
            f"{tuple(scale.shape)}, "
            f"qzeros {tuple(zeros.shape)}; expected (in * bits / 32, out), (groups, out), (groups, out * bits / 32)"
        )
    index = folder.get(f"{path}.g_idx")
    columns = int(packed.shape[0]) * 32 // bits if index is None else int(index.numel())
    if words(columns, bits) != packed.shape[0] or (columns % groups and index is None):
        raise ModelError(
            f"the tensors of {path!r} do not fit each other: qweight {tuple(packed.shape)} of {bits} bits, {columns} "
            f"inputs in {groups} groups; download the checkpoint again"
        )
    zero_point = zero_points(zeros, bits, rows).t().contiguous()
    integers = unpack(packed.t(), bits, columns)
    order = None if index is None else _order(path, index.long(), groups)
    return StoredWeight(path, bits, integers, scale.t().contiguous(), zero_point, order)


def _order(path: str, index: Tensor, groups: int) -> Tensor | None:
    """The group of each column; None where equal runs of columns follow each other."""
    if int(index.min()) < 0 or int(index.max()) >= groups:
        raise ModelError(
            f"{path}.g_idx names groups {int(index.min())} to {int(index.max())}, and there are {groups}; download the "
            "checkpoint again"
        )
    count = index.numel()
    plain = count % groups == 0 and torch.equal(
        index, torch.arange(count, dtype=index.dtype, device=index.device) // (count // groups)
    )
    return None if plain or groups == 1 else index
