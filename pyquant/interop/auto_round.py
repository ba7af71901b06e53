# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of AutoRound (`quant_method: auto-round`) in its packings of GPTQ's kind.

It owns which packings these are and their zero points. Source: auto-round 0.16, auto_round_extension/torch. The words
are those of gptq.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import ModelError
from pyquant.interop.gptq import modules_of, owned_by, read_weight
from pyquant.interop.reader import Advice
from pyquant.interop.stored_weight import StoredWeight
from pyquant.interop.tensor_folder import TensorFolder
from pyquant.interop.words import unpack
from pyquant.qparams import QParams

__all__ = ["AutoRoundReader"]

ADVICE = Advice(
    per_channel="auto-round with `--group_size -1` (AutoRound(..., group_size=-1))",
    symmetric="AutoRound(..., sym=True), which is the default",
)
_LESS_ONE = ("auto_round:auto_gptq", "auto_round:gptq")
_PLAIN = ("auto_round", "auto_round:gptqmodel", "auto_round:exllamav2", "auto_round:tritonv2")


@dataclass(frozen=True)
class AutoRoundReader:
    """See Reader. `less_one`: qzeros hold each zero point less one."""

    folder: TensorFolder
    weights: frozenset[str]
    owned: frozenset[str]
    less_one: bool
    bits: int
    tool: str = "AutoRound"
    advice: Advice = ADVICE

    @classmethod
    def read(cls, folder: TensorFolder, config: Mapping[str, Any]) -> AutoRoundReader:
        packing = str(config.get("packing_format") or "auto_round:gptq")
        kind = str(config.get("data_type") or "int")
        if packing not in (*_LESS_ONE, *_PLAIN) or not kind.startswith("int"):
            raise ModelError(
                f"{str(folder.path)!r} is packed as {packing!r} with data_type {kind!r}; pyquant reads integers in "
                f"{', '.join((*_LESS_ONE, *_PLAIN))}: export it with `--format auto_round:auto_gptq`"
            )
        if rotations := config.get("rotation_config"):
            raise ModelError(
                f"{str(folder.path)!r} has rotations that the model computes as it runs ({rotations}), which no "
                "wrapper does; quantize it without them"
            )
        return cls(
            folder, modules_of(folder, "AutoRound"), owned_by(folder), packing in _LESS_ONE, int(config.get("bits", 4))
        )

    def weight(self, path: str) -> StoredWeight:
        return read_weight(self.folder, path, self.bits, self._zero_points)

    def _zero_points(self, packed: Tensor, bits: int, count: int) -> Tensor:
        """AutoRound adds to each number, without a carry."""
        return unpack(packed, bits, count).to(torch.int32) + int(self.less_one)

    def activations(self) -> Mapping[str, QParams]:
        return {}

    def remarks(self) -> list[str]:
        return []
