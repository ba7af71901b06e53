# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the layouts of compressed-tensors, GPTQ and AutoRound, written from their documentation.

It owns writing them and knowing what is in them. It uses nothing of pyquant/interop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests import checkpoints

torch.set_num_threads(1)
SHARD = "model.safetensors"


@dataclass(frozen=True)
class Truth:
    """One weight: numbers of 0 .. 2**bits - 1 (out, in), and scale and zero point (out, groups) of that range."""

    bits: int
    numbers: NDArray[np.int64]
    scale: NDArray[np.float32]
    zero: NDArray[np.int64]

    @property
    def signed(self) -> NDArray[np.int64]:
        return self.numbers - (1 << (self.bits - 1))

    @property
    def value(self) -> NDArray[np.float32]:
        size = self.numbers.shape[1] // self.scale.shape[1]
        zero, scale = (np.repeat(each, size, axis=1) for each in (self.zero, self.scale))
        return (self.numbers - zero).astype(np.float32) * scale


Truths = dict[str, Truth]


def llama(**overrides: Any) -> Any:
    config = LlamaConfig(
        **{
            "vocab_size": 290,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            **overrides,
        }
    )
    return checkpoints.randomize(LlamaForCausalLM(config))


def grid(
    weight: Tensor, bits: int, *, symmetric: bool, group: int = 0, half: bool = True, sign: int = 1, lowest: int = 1
) -> Truth:
    """The plain min/max grid of a weight, full range. half: scales that a float16 holds. sign -1: negative scales.
    lowest: the least zero point."""
    w = weight.detach().double().numpy()
    parts = w.reshape(w.shape[0], -1, group or w.shape[1])
    top = (1 << bits) - 1
    if symmetric:
        scale = sign * np.abs(parts).max(-1) * 2 / top
        zero = np.full(scale.shape, 1 << (bits - 1))
    else:
        low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
        scale = (high - low) / top
        zero = np.clip(np.round(-low / scale), lowest, top).astype(np.int64)
    scale = scale.astype(np.float16 if half else np.float32).astype(np.float32)
    numbers = np.clip(np.round(parts / scale[..., None]) + zero[..., None], 0, top).astype(np.int64)
    return Truth(bits, numbers.reshape(w.shape), scale, zero.astype(np.int64))


def words(numbers: NDArray[np.int64], bits: int) -> Tensor:
    """(rows, n) -> int32 (rows, words): the numbers of a row as one long number, cut into words of 32 bits."""
    rows = []
    for row in numbers.tolist():
        whole = sum(number << (bits * place) for place, number in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([(whole >> (32 * word)) & 0xFFFFFFFF for word in range(count)])
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32).copy())


def signed_words(numbers: NDArray[np.int64], bits: int) -> Tensor:
    return words(numbers, bits)


def linears(fp: nn.Module) -> dict[str, nn.Linear]:
    """Those that such tools quantize: all but the head and the vision tower."""
    found = {path: module for path, module in fp.named_modules() if isinstance(module, nn.Linear)}
    return {path: module for path, module in found.items() if "lm_head" not in path and "visual" not in path}


def written(
    fp: Any,
    folder: Path,
    truths: Truths,
    tensors: Callable[[str, Truth], Mapping[str, Tensor]],
    config: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder of `fp` with what `tensors` makes of each weight in its place."""
    fp.save_pretrained(folder)
    kept = {
        name: value for name, value in load_file(folder / SHARD).items() if name.removesuffix(".weight") not in truths
    }
    for path, truth in truths.items():
        kept |= {f"{path}.{name}": value.contiguous() for name, value in tensors(path, truth).items()}
    save_file({**kept, **(extra or {})}, folder / SHARD, {"format": "pt"})
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "quantization_config": dict(config)}))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a folder."""
    tensors = {name: value.clone() for name, value in load_file(folder / SHARD).items()}
    change(tensors)
    save_file(tensors, folder / SHARD, {"format": "pt"})


def config_of(folder: Path, **changes: Any) -> None:
    """Change the quantization_config of a folder."""
    data = json.loads((folder / "config.json").read_text())
    data["quantization_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(data))


# --- compressed-tensors ---


def compressed(
    fp: Any,
    folder: Path,
    *,
    bits: int = 4,
    symmetric: bool = True,
    packed: bool = True,
    group: int = 0,
    scales: torch.dtype = torch.float32,
    inputs: Mapping[str, tuple[float, int]] | None = None,
    cache: Mapping[str, float] | None = None,
) -> Truths:
    """inputs: module -> static scale and zero point of its input; cache: `PATH.k_scale` -> scale."""
    truths = {path: grid(each.weight, bits, symmetric=symmetric, group=group, half=scales is not torch.float32)
              for path, each in linears(fp).items()}  # fmt: skip
    half = 1 << (bits - 1)

    def tensors(path: str, truth: Truth) -> dict[str, Tensor]:
        found = {"weight_scale": torch.from_numpy(truth.scale).to(scales)}
        zero = truth.zero
        if packed:
            found["weight_packed"] = words(truth.numbers, bits)
            found["weight_shape"] = torch.tensor(truth.numbers.shape)
            if not symmetric:
                found["weight_zero_point"] = words(zero.T, bits).t()
        else:
            found["weight"] = torch.from_numpy(truth.signed).to(torch.int8)
            if not symmetric:
                found["weight_zero_point"] = torch.from_numpy(zero - half).to(torch.int8)
        if inputs and path in inputs:
            scale, zero_point = inputs[path]
            found["input_scale"] = torch.tensor([scale])
            found["input_zero_point"] = torch.tensor([zero_point], dtype=torch.int8)
        return found

    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, **strategy}
    activation = {"num_bits": 8, "type": "int", "symmetric": False, "dynamic": False, "strategy": "tensor"}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activation if inputs else None}
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if packed else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }
    if cache:
        config["kv_cache_scheme"] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor"}
    extra = {name: torch.tensor([scale]) for name, scale in (cache or {}).items()}
    written(fp, folder, truths, tensors, config, extra)
    return truths


# --- GPTQ and AutoRound ---


def gptq(
    fp: Any,
    folder: Path,
    *,
    bits: int = 4,
    symmetric: bool = True,
    group: int = 0,
    form: str = "gptq",
    order: bool = False,
    method: str = "gptq",
    packing: str = "",
    sign: int = 1,
) -> Truths:
    """form: `gptq` has each zero point less one, `gptq_v2` as it is. order: columns in act-order."""
    truths = {path: grid(each.weight, bits, symmetric=symmetric, group=group, sign=sign)
              for path, each in linears(fp).items()}  # fmt: skip
    less = int(form == "gptq" if method == "gptq" else packing.endswith("gptq"))

    def tensors(path: str, truth: Truth) -> dict[str, Tensor]:
        columns = truth.numbers.shape[1]
        index = np.arange(columns) // (group or columns)
        numbers = truth.numbers
        if order:
            shuffled = np.random.default_rng(0).permutation(columns)
            index, numbers = index[shuffled], numbers[:, shuffled]
        found = {
            "qweight": words(numbers, bits).t(),
            "qzeros": words(truth.zero.T - less, bits),
            "scales": torch.from_numpy(truth.scale.T).half(),
        }
        return found if method == "auto-round" else {**found, "g_idx": torch.from_numpy(index).to(torch.int32)}

    config = {"quant_method": method, "bits": bits, "group_size": group or -1, "sym": symmetric, "desc_act": order}
    config |= {"packing_format": packing, "data_type": "int"} if packing else {"checkpoint_format": form}
    written(fp, folder, truths, tensors, config)
    return truths
