# SPDX-License-Identifier: Apache-2.0
"""The time that a trace of statistics adds to a forward: traced and untraced calls alternate; ratio of the pairs and
its spread.

Run `python -m benchmarks.trace.bench_capture`; times are of the thread (a busy machine changes them less). The models:
a decoder layer of Gemma4-E2B's size, and the digits classifier, whose modules are so small that the fixed cost
dominates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.conftest import machine
from pyquant.trace import capture

Case = tuple[str, nn.Module, dict[str, Tensor]]


class Layer(nn.Module):
    """Attention and gated MLP with the sizes of Gemma4-E2B's text layers: 1536 wide, 6144 inside, 8 heads of 256."""

    def __init__(self, hidden: int = 1536, inner: int = 6144, heads: int = 8, head: int = 256) -> None:
        super().__init__()
        self.heads, self.head = heads, head
        self.norm, self.norm_mlp = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.q_proj, self.o_proj = nn.Linear(hidden, heads * head, False), nn.Linear(heads * head, hidden, False)
        self.k_proj, self.v_proj = nn.Linear(hidden, head, False), nn.Linear(hidden, head, False)
        self.gate_proj, self.up_proj = nn.Linear(hidden, inner, False), nn.Linear(hidden, inner, False)
        self.act, self.down_proj = nn.GELU("tanh"), nn.Linear(inner, hidden, False)

    def forward(self, x: Tensor) -> Tensor:
        y, (batch, length, _) = self.norm(x), x.shape
        q = self.q_proj(y).view(batch, length, self.heads, self.head).transpose(1, 2)
        k, v = (p(y).view(batch, length, 1, self.head).transpose(1, 2) for p in (self.k_proj, self.v_proj))
        attended = torch.softmax(q @ k.transpose(2, 3) / self.head**0.5, -1) @ v
        x = x + self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))
        y = self.norm_mlp(x)
        return x + self.down_proj(self.act(self.gate_proj(y)) * self.up_proj(y))


def cases(tokens: tuple[int, ...] = (256, 16, 1), batches: tuple[int, ...] = (64, 1)) -> Iterator[Case]:
    from examples.digits.data import load_split, patchify
    from examples.digits.model import DigitsClassifier

    layer = Layer().eval()
    for count in tokens:
        yield f"layer of E2B's size, {count} tokens", layer, {"x": torch.randn(1, count, 1536)}
    digits = DigitsClassifier.load()
    for size in batches:
        images = load_split("heldout").images[:size]
        yield f"digits classifier, batch {size}", digits, patchify(images, digits.config)


@torch.no_grad()
def ratios(model: nn.Module, inputs: dict[str, Tensor], pairs: int) -> tuple[list[float], list[float], int]:
    """Time with a trace over time without, of consecutive calls; the times without in seconds; calls recorded."""
    model(**inputs)
    found, plain, calls = [], [], 0
    for _ in range(pairs):
        without = _timed(lambda: model(**inputs))
        with capture(model) as trace:
            found.append(_timed(lambda: model(**inputs)) / without)
        plain.append(without)
        calls = len(trace)
    return found, plain, calls


def _timed(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=40)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{machine()}; one thread, {args.pairs} pairs")
    print(f"{'':36} {'forward ms':>10} {'calls':>6} {'with / without':>15}   quartiles")
    for title, model, inputs in cases():
        found, plain, calls = ratios(model, inputs, args.pairs)
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"{title:36} {1e3 * statistics.median(plain):10.2f} {calls:6} {middle:15.3f}   {low:.3f} {high:.3f}")


if __name__ == "__main__":
    main()
