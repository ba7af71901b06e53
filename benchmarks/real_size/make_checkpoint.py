# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint folder of Gemma4 in its real size, with random bfloat16 weights, and data to calibrate on.

    python -m benchmarks.real_size.make_checkpoint OUT [--layers 7] [--vocabulary 262144]

The configuration is that of E2B: 5.1 G parameters, of which the per-layer table (262144 x 8960) has 2.35 G. The model
is never held: a tensor is made and written a block at a time. It owns names, sizes and values; what is measured on the
folder is `pyquant quantize`.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyquant import tensor_file
from pyquant.tensor_file import Entry

BLOCK = 1 << 24  # elements that exist at once
SHARD = 4 * 10**9  # bytes of a file, unless one tensor has more
SIZE = 2  # bytes of a bfloat16


def config(layers: int = 35, vocabulary: int = 262144) -> Any:
    """Gemma4 E2B (reference: transformers' convert_gemma4_weights.py), with fewer layers where asked for.

    The last 20 of 35 layers read the keys of earlier ones; of fewer layers, as large a share. Every fifth is full.
    """
    from transformers import Gemma4Config

    if layers < 2 or vocabulary < 1024:
        raise SystemExit("at least 2 layers and a vocabulary of 1024")
    specials = {
        name: vocabulary - 10 + i
        for i, name in enumerate(
            ("boi_token_id", "eoi_token_id", "image_token_id", "video_token_id", "boa_token_id", "eoa_token_index",
             "audio_token_id")
        )
    }  # fmt: skip
    text = {
        "vocab_size": vocabulary,
        "vocab_size_per_layer_input": vocabulary,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 512,
        "layer_types": ["full_attention" if i % 5 == 4 or i == layers - 1 else "sliding_attention"
                        for i in range(layers)],
        "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": _shared(layers),
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 131072,
    }  # fmt: skip
    vision = {"use_clipped_linears": True, "standardize": False, "pooling_kernel_size": 3}
    return Gemma4Config(text_config=text, vision_config=vision, audio_config={}, **specials)


def _shared(layers: int) -> int:
    """Layers without keys of their own; one of each kind before them has some."""
    return min(layers * 20 // 35, max(0, layers - 5)) if layers >= 7 else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=35)
    parser.add_argument("--vocabulary", type=int, default=262144)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32, help="text tokens of a sample")
    args = parser.parse_args()
    cfg = config(args.layers, args.vocabulary)
    count = write(args.out, cfg)
    write_data(args.out / "calibration", cfg, args.samples, args.tokens)
    print(f"{args.out}: {count / 1e9:.3f} G parameters")


def write(out: Path, cfg: Any, name: str = "Gemma4ForConditionalGeneration") -> int:
    """Write config.json, generation_config.json and the shards with their index; returns the number of parameters.

    name: of the class of transformers whose configuration `cfg` is.
    """
    import transformers
    from transformers import GenerationConfig

    with torch.device("meta"):
        model = getattr(transformers, name)(cfg)
    tensors = model.state_dict()
    if cfg.get_text_config().tie_word_embeddings:
        del tensors["lm_head.weight"]  # that of the table
    out.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors)
    where: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(out / file, {name: tensors[name] for name in names}, generator)
        where |= dict.fromkeys(names, file)
    total = sum(value.numel() for value in tensors.values())
    index = {"metadata": {"total_size": total * SIZE}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    cfg.architectures, cfg.dtype = [name], "bfloat16"
    cfg.save_pretrained(out)
    GenerationConfig(eos_token_id=1, pad_token_id=0, bos_token_id=2).save_pretrained(out)
    return total


def _shards(tensors: dict[str, Tensor]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, value in tensors.items():
        bytes_ = value.numel() * SIZE
        if shards[-1] and size + bytes_ > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_
    return shards


def _write_shard(path: Path, tensors: dict[str, Tensor], generator: torch.Generator) -> None:
    entries = {
        name: Entry(torch.bfloat16, tuple(value.shape), functools.partial(_blocks, name, value, generator))
        for name, value in tensors.items()
    }
    tensor_file.save(path, entries, {"format": "pt"})


def _blocks(name: str, value: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Flat pieces in bfloat16 of random values of a size that lets a signal through: like a trained model's, nothing
    more."""
    leaf = name.rpartition(".")[2]
    left = value.numel()
    while left:
        count = min(left, BLOCK)
        left -= count
        yield _values(leaf, value, count, generator).to(torch.bfloat16)


def _values(leaf: str, value: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if leaf in ("input_min", "output_min", "input_max", "output_max"):
        return torch.full((count,), -8.0 if leaf.endswith("min") else 8.0)
    if leaf == "layer_scalar":
        return torch.rand(count, generator=generator) * 0.5 + 0.5
    if leaf == "bias":
        return torch.empty(count).uniform_(-0.02, 0.02, generator=generator)
    if value.dim() < 2:  # gains of norms
        return torch.rand(count, generator=generator) + 0.5
    noise = torch.empty(count).uniform_(-1, 1, generator=generator)
    return noise.mul_(1.7 * value[0].numel() ** -0.5 if "table" not in leaf else 0.02)


def write_data(folder: Path, cfg: Any, samples: int, tokens: int) -> None:
    """Batches for `--data`: ids of text; the first one with an image of 6 x 6 patches (4 soft tokens) and a clip of 48
    frames (12 soft tokens)."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    for number in range(samples):
        ids = torch.randint(3, 1000, (1, tokens), generator=generator)
        types = torch.zeros_like(ids)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
        if number == 0:
            side = 2 * cfg.vision_config.pooling_kernel_size
            ids[:, 1], ids[:, 2:6], ids[:, 6] = cfg.boi_token_id, cfg.image_token_id, cfg.eoi_token_id
            ids[:, 7], ids[:, 8:20], ids[:, 20] = cfg.boa_token_id, cfg.audio_token_id, cfg.eoa_token_index
            types[:, 2:6], types[:, 8:20] = 1, 3
            batch["input_features"] = torch.randn(1, 48, 128, generator=generator)
            batch["input_features_mask"] = torch.ones(1, 48, dtype=torch.bool)
            y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            batch["pixel_values"] = torch.rand(1, side * side, 3 * cfg.vision_config.patch_size**2, generator=generator)
            batch["image_position_ids"] = torch.stack([x, y], dim=-1).reshape(1, side * side, 2)
        save_file({name: value.contiguous() for name, value in batch.items()}, folder / f"{number:03d}.safetensors")


if __name__ == "__main__":
    main()
