# SPDX-License-Identifier: Apache-2.0
"""A Qwen3-VL of a real size, random bfloat16 weights, through `pyquant quantize --stream`: seconds and peak memory.

    python -m benchmarks.real_size.streamed OUT [--size 8b] [--layers 36] [--recipe w4a16-fast] [--samples 1]
        [--tokens 128] [--limit-gib 12] [--keep] [-- more options of pyquant quantize]

Writes OUT/model and OUT/data, runs the command in a process of its own with the result in OUT/bundle, prints what it
printed (seconds and peak memory of each step) and the peak of the process, and fails where that is above the limit or
a file is not what the checker admits. It owns the sizes; writing tensors is make_checkpoint.py.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_size import make_checkpoint

GIB = 1 << 30
#: hidden, intermediate, heads, layers, tied head, vision: depth, hidden, intermediate, taps
SIZES: dict[str, tuple[int, int, int, int, bool, int, int, int, list[int]]] = {
    "tiny": (256, 512, 4, 2, True, 2, 64, 128, [0, 1]),
    "700m": (1536, 4608, 12, 16, False, 6, 1024, 4096, [1, 2, 4]),
    "2b": (2048, 6144, 16, 28, True, 24, 1024, 4096, [5, 11, 17]),
    "4b": (2560, 9728, 32, 36, True, 24, 1024, 4096, [5, 11, 17]),
    "8b": (4096, 12288, 32, 36, False, 27, 1152, 4304, [8, 16, 24]),
}


def config(size: str, layers: int | None = None, vocabulary: int = 151936) -> Any:
    """Qwen3-VL as in its released configurations (reference: config.json of Qwen/Qwen3-VL-*-Instruct)."""
    from transformers import Qwen3VLConfig

    hidden, wide, heads, depth, tied, vision_depth, vision, vision_wide, taps = SIZES[size]
    ids = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
                   range(vocabulary - 300, vocabulary - 296), strict=True))  # fmt: skip
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers or depth,
        "num_attention_heads": heads,
        "num_key_value_heads": math.gcd(8, heads),
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
                            "mrope_interleaved": True},
        "tie_word_embeddings": tied,
    }  # fmt: skip
    tower = {
        "depth": vision_depth,
        "hidden_size": vision,
        "intermediate_size": vision_wide,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": hidden,
        "deepstack_visual_indexes": taps,
        "num_position_embeddings": 2304,
    }
    return Qwen3VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=tied, **ids)


def write_data(folder: Path, cfg: Any, samples: int, tokens: int) -> None:
    """Batches for `--data`: ids of text; each with an image of 4 x 4 patches (4 tokens)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    for number in range(samples):
        ids = torch.randint(3, 1000, (1, tokens), generator=generator)
        ids[0, 3], ids[0, 4:8], ids[0, 8] = cfg.vision_start_token_id, cfg.image_token_id, cfg.vision_end_token_id
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == cfg.image_token_id).to(torch.int64),
            "pixel_values": torch.randn(16, 3 * 2 * 16 * 16, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        }
        save_file({name: value.contiguous() for name, value in batch.items()}, folder / f"{number:04d}.safetensors")


def main() -> int:
    words = sys.argv[1:]
    own, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--layers", type=int, help="of the text tower (default: all)")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--recipe", default="w4a16-fast")
    parser.add_argument("--dtype", default="bfloat16", help="float32 takes four bytes of disk a weight (%(default)s)")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--limit-gib", type=float, default=12.0)
    parser.add_argument("--keep", action="store_true", help="leave OUT/bundle and OUT/model")
    args = parser.parse_args(own)
    return measure(args, more)


def measure(args: argparse.Namespace, more: list[str]) -> int:
    cfg = config(args.size, args.layers, args.vocabulary)
    model, data, bundle = args.out / "model", args.out / "data", args.out / "bundle"
    began = time.perf_counter()
    count = make_checkpoint.write(model, cfg, "Qwen3VLForConditionalGeneration")
    write_data(data, cfg, args.samples, args.tokens)
    print(f"{count / 1e9:.2f} G parameters, written in {time.perf_counter() - began:.0f} s", flush=True)
    command = [
        sys.executable, "-m", "pyquant.cli.main", "quantize", "--stream", "--model", str(model), "--data", str(data),
        "--recipe", args.recipe, "--dtype", args.dtype, "--out", str(bundle), *more,
    ]  # fmt: skip
    began = time.perf_counter()
    child = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    _, status, usage = os.wait4(child.pid, 0)
    peak, code = usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)
    child.returncode = code
    print(
        f"all: {time.perf_counter() - began:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of the processor; peak "
        f"{peak / GIB:.2f} GiB, {usage.ru_majflt} pages read from disk; float32 weights {count * 4 / GIB:.2f} GiB",
        flush=True,
    )
    if code == 0:
        code = 1 if _faults(bundle) or peak > args.limit_gib * GIB else 0
        if peak > args.limit_gib * GIB:
            print(f"above the limit of {args.limit_gib} GiB")
    if not args.keep:
        for folder in (model, data, bundle):
            shutil.rmtree(folder, ignore_errors=True)
    return code


def _faults(bundle: Path) -> bool:
    from pyquant import circle

    faults = {path.name: circle.check(path) for path in sorted(bundle.glob("*.circle"))}
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    print(f"{len(faults)} files checked, bundle {size / 1e9:.2f} GB", flush=True)
    for name, found in faults.items():
        print("".join(f"{name}: {fault}\n" for fault in found[:3]), end="")
    return not faults or any(faults.values())


if __name__ == "__main__":
    sys.exit(main())
