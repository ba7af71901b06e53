# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of AutoRound (`quant_method: auto-round`) in its packings of GPTQ's kind.

It owns which packings these are and their zero points. Source: auto-round 0.16, auto_round_extension/torch. The words
are those of gptq.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyquant.errors import ModelError
from pyquant.interop.gptq import WordsReader, plain
from pyquant.interop.reader import Advice
from pyquant.interop.tensor_folder import TensorFolder

__all__ = ["read"]

ADVICE = Advice(
    per_channel="auto-round with `--group_size -1` (AutoRound(..., group_size=-1))",
    symmetric="AutoRound(..., sym=True), which is the default",
)
_LESS_ONE = ("auto_round:auto_gptq", "auto_round:gptq")
_PLAIN = ("auto_round", "auto_round:gptqmodel", "auto_round:exllamav2", "auto_round:tritonv2")


def read(folder: TensorFolder, config: Mapping[str, Any]) -> WordsReader:
    """A folder of AutoRound. Raises ModelError for another packing, and for rotations that the model computes."""
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
    return WordsReader.of(folder, config, "AutoRound", ADVICE, _less_one if packing in _LESS_ONE else plain)


def _less_one(packed: Tensor, bits: int, count: int) -> Tensor:
    """Each zero point less one; AutoRound adds to each number, without a carry."""
    return plain(packed, bits, count) + 1
