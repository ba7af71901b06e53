# SPDX-License-Identifier: Apache-2.0
"""Modules and tensors of other tools that a float model may hold: what each is, and the step that gives plain weights.

It owns those words. Classes are known by the package that defines them, so that none of the packages is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
UNQUANTIZED = "load the unquantized model instead (pyquant quantizes float weights)"

# pattern over "module:Class" -> what it is
_QUANTIZED = (
    (r"bitsandbytes|.*[.]bitsandbytes", "bitsandbytes"),
    (r"(auto)?awq|.*[_.]awq", "AWQ"),
    (r"auto_gptq|gptqmodel|optimum\.gptq", "GPTQ"),
    (r"compressed_tensors\.", "compressed-tensors"),
    (r".*finegrained_fp8|.*fbgemm_fp8|.*:FP8Linear|.*:FbgemmFp8", "FP8"),
    (r"torchao\.", "torchao"),
    (r"optimum\.quanto|quanto\.", "quanto"),
    (r"hqq\.", "HQQ"),
    (r"aqlm\.", "AQLM"),
    (r"eetq\.", "EETQ"),
    (r"auto_round", "AutoRound"),
    (r"torch\.ao\.|torch\.quantization|torch\.nn\.quantized", "torch.ao"),
)
# pattern -> what it is, and how to get at the plain model
_WRAPPED = (
    (r"torch\._dynamo\..*:OptimizedModule", "a module compiled by torch.compile", "pass model._orig_mod"),
    (r"torch\.nn\.parallel\.", "a wrapper for several devices", "pass model.module"),
    (
        r"torch\.distributed\.fsdp.*:FullyShardedDataParallel",
        "an FSDP wrapper",
        "pass model.module, its weights gathered",
    ),
    (
        r"torch\.distributed\.fsdp|.*:FSDP",
        "a module sharded by FSDP",
        "load the model on one device without fully_shard",
    ),
    (r"deepspeed\.", "a DeepSpeed engine", "pass engine.module"),
    (r"peft\.", "a LoRA / PEFT adapter", "merge it into the weights first: model = model.merge_and_unload()"),
)


def advice(cls: type, path: str = "") -> str | None:
    """The error about a module of another tool: what it is and the next step; None for any other class."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    where = f"module {path!r}" if path else "the model"
    for pattern, what, step in _WRAPPED:
        if re.match(pattern, name):
            return f"{where} is {what} ({cls.__name__}), which has no wrapper; {step}"
    if issubclass(cls, nn.Module):
        for pattern, kind in _QUANTIZED:
            if re.match(pattern, name):
                return f"{where} is quantized already ({kind}: {cls.__name__}); {_step(kind)}"
    return None


# integers of these modules have wrappers (hf_gemma_quant.py); and what their checkpoints' config.json calls them
READ_MODULES = ("transformers.integrations.gemma_quant",)
READ_METHODS = ("gemma",)


def stored_quantized(model: nn.Module) -> str | None:
    """The error about the first weight that is no plain float tensor: of a tool's own class, float8, or integers.

    Not of layers whose integers pyquant reads.
    """
    read = {f"{path}." for path, module in model.named_modules() if type(module).__module__ in READ_MODULES}
    for name, weight in model.named_parameters():
        if f"{name.rpartition('.')[0]}." in read:
            continue
        kind = type(weight.data) if type(weight) is nn.Parameter else type(weight)
        name_of = f"{kind.__module__}:{kind.__qualname__}"
        for pattern, tool in _QUANTIZED:
            if re.match(pattern, name_of):
                return f"the weight {name!r} is quantized already ({tool}: {kind.__name__}); {_step(tool)}"
        if name_of.startswith("torch.distributed"):
            return f"the weight {name!r} is sharded ({kind.__name__}); load the model on one device"
        if weight.dtype not in _FLOATS and not weight.is_complex():
            form = str(weight.dtype).removeprefix("torch.")
            return f"the weight {name!r} is stored as {form}, a quantized format; {UNQUANTIZED}"
    return None


def method(config: Mapping[str, Any]) -> str:
    """The `quant_method` of a quantization_config, such as `gptq`; where it is not named, what its other keys mean."""
    loads = config.get("load_in_4bit") or config.get("load_in_8bit")
    found = config.get("quant_method") or ("bitsandbytes" if loads else "")
    return str(getattr(found, "value", found) or "an unnamed format")


def named(config: Mapping[str, Any]) -> str:
    """The format of a quantization_config in words: `AWQ, 4 bits`."""
    known = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "hqq": "HQQ", "eetq": "EETQ", "aqlm": "AQLM"}
    loads = 4 if config.get("load_in_4bit") else 8 if config.get("load_in_8bit") else 0
    bits = config.get("bits") or config.get("w_bit") or loads
    name = known.get(method(config), method(config))
    return name + (f", {bits} bits" if isinstance(bits, int) and bits else "")


def _step(kind: str) -> str:
    more = ", or turn its weights back with model.dequantize()" if kind in ("bitsandbytes", "HQQ", "FP8") else ""
    return UNQUANTIZED + more
