# SPDX-License-Identifier: Apache-2.0
"""One decoder layer of a 2B model (hidden 2048, MLP 6144, 16 heads, 8 of keys): the file in pyquant's runner beside
transformers' own layer in float32 and bfloat16, and with its linears in int8 by onednn (activations are quantized as it
runs), for one token behind a cache and for a prompt of 256.

    python -m benchmarks.runner.layer [--threads 1] [--recipes w4a16-fast w8a8-fast]

The weights are random: the speed does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import pyquant
from benchmarks.runner.clock import Timed, race
from pyquant import circle
from pyquant.models import llama

PROMPT, CACHE = 256, 512


def model() -> LlamaForCausalLM:
    """Of one layer, and a vocabulary that weighs nothing."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=6144, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        num_hidden_layers=1, vocab_size=64, max_position_embeddings=1024, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def files(fp: nn.Module, recipe: str, folder: Path) -> dict[str, Path]:
    """The layer's graphs by kind: decode and prefill."""
    q = pyquant.prepare(fp, pyquant.Policy.preset(recipe))
    pyquant.calibrate(q, [{"input_ids": torch.randint(0, 64, (1, 64))}], progress=False)
    pyquant.convert(q)
    profile = llama.Profile(CACHE + 1, prefill_lengths=(PROMPT,), layers="per_layer")
    pyquant.export_bundle(q, folder, profile)
    return {"decode": folder / "decode_layer0.circle", "prefill": folder / f"prefill_s{PROMPT}_layer0.circle"}


def of_file(path: Path, threads: int) -> Callable[[], object]:
    """A run of the file on values of its own dtypes, as a host that keeps integers gives them."""
    runner = circle.Runner(path, threads=threads)
    random = np.random.default_rng(0)
    given = [
        random.integers(-100, 100, port.shape).astype(port.dtype)
        if port.dtype != "uint8"
        else random.integers(100, 150, port.shape).astype(np.uint8)
        for port in runner.inputs
    ]
    return lambda: runner.run(given)


def of_model(fp: LlamaForCausalLM, rows: int, past: int, dtype: torch.dtype) -> Callable[[], object]:
    """The same layer of transformers."""
    layer, rotary = fp.model.layers[0].to(dtype), fp.model.rotary_emb
    hidden = torch.randn(1, rows, 2048).to(dtype)
    positions = torch.arange(past, past + rows)[None]
    embeddings = tuple(each.to(dtype) for each in rotary(hidden, positions))
    cache: DynamicCache | None = None
    if past:
        cache = DynamicCache(config=fp.config)
        keys = torch.randn(1, 8, past, 128).to(dtype)
        cache.update(keys, keys.clone(), 0)
    mask = None if rows == 1 else torch.full((rows, rows), float("-inf")).triu(1)[None, None].to(dtype)

    # transformers 5.24 renamed it
    key = "cache" if "cache" in inspect.signature(type(layer).forward).parameters else "past_key_values"

    @torch.no_grad()
    def run() -> Tensor:
        out: Tensor = layer(
            hidden, attention_mask=mask, position_ids=positions, use_cache=cache is not None,
            position_embeddings=embeddings, **{key: cache},
        )  # fmt: skip
        if cache is not None:
            cache.crop(-rows)
        return out

    return run


def in_int8(fp: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy whose linears are onednn's int8, as torch quantizes them dynamically."""
    from torch.ao.quantization import quantize_dynamic

    torch.backends.quantized.engine = "onednn"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*deprecated", category=DeprecationWarning)
        made: LlamaForCausalLM = quantize_dynamic(copy.deepcopy(fp).float(), {nn.Linear}, dtype=torch.qint8)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", default=["w4a16-fast", "w8a8-fast"])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each race (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fp = model()
    int8 = in_int8(fp)
    with tempfile.TemporaryDirectory() as place:
        made = {recipe: files(fp, recipe, Path(place) / recipe) for recipe in args.recipes}
        for kind, rows, past in (("decode", 1, CACHE), ("prefill", PROMPT, 0)):
            for name, rival, dtype in (
                ("transformers float32", fp, torch.float32),
                ("transformers bfloat16", fp, torch.bfloat16),
                ("onednn int8", int8, torch.float32),
            ):
                runners = {recipe: of_file(paths[kind], args.threads) for recipe, paths in made.items()}
                found: Timed = race({name: of_model(rival, rows, past, dtype), **runners}, args.seconds)
                found.show(f"{kind}, {rows} row(s) behind {past}, {args.threads} thread(s)", against=name)


if __name__ == "__main__":
    main()
