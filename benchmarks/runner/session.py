# SPDX-License-Identifier: Apache-2.0
"""Questions to the trained digits VLMs: the bundle in pyquant's runner, the same files in TICO's, HF's float32.

    python -m benchmarks.runner.session [--model qwen3_vl] [--recipes w8a8 w4a16] [--threads 2]

A turn is one question: its image, its prompt and as many new tokens as an answer may have. Rivals answer the same ones.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyquant
from benchmarks.runner.clock import Timed, race
from examples.digits import demo, vlm
from examples.digits.families import FAMILIES, Family
from examples.digits.vlm_data import MAX_ANSWER
from pyquant import circle
from pyquant.verify import Session

QUESTIONS = 32
ALL = {"max_new_tokens": MAX_ANSWER, "min_new_tokens": MAX_ANSWER, "do_sample": False}


def answering(generate: Callable[..., Tensor], prompts: list[dict[str, Tensor]]) -> Callable[[], object]:
    """One question a call, over and over."""
    turns: Iterator[dict[str, Tensor]] = itertools.cycle(prompts)

    @torch.no_grad()
    def answer() -> Tensor:
        return generate(**next(turns), **ALL)

    return answer


def measure(family: Family, recipe: str, seconds: float, place: Path) -> Timed:
    """Seconds a question of each rival."""
    fp = family.load_model()
    prompts = [dict(family.inputs([question])) for question in vlm.heldout_questions(QUESTIONS)]
    pyquant.export_bundle(demo.quantize(fp, recipe, 96, family), place, family.profile(1))
    rivals: dict[str, Callable[..., Any]] = {"transformers, float32": fp.generate}
    rivals["Session, TICO's runtime"] = Session(place, runtime="tico").generate
    rivals["Session, pyquant's"] = Session(place, workspace=circle.Workspace(torch.get_num_threads())).generate
    return race({name: answering(generate, prompts) for name, generate in rivals.items()}, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(FAMILIES), nargs="+", default=tuple(FAMILIES))
    parser.add_argument("--recipes", nargs="+", default=["w8a8", "w4a16"])
    parser.add_argument("--threads", type=int, default=2, help="of each rival (%(default)s)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each race (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, recipe in itertools.product(args.model, args.recipes):
        with tempfile.TemporaryDirectory() as place:
            found = measure(FAMILIES[name], recipe, args.seconds, Path(place) / "bundle")
        found.show(f"{name} {recipe}, one question: image, prompt, {MAX_ANSWER} new tokens", "transformers, float32",
                   tokens=MAX_ANSWER)  # fmt: skip


if __name__ == "__main__":
    main()
