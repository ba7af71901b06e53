# SPDX-License-Identifier: Apache-2.0
"""Rotations folded into the weights: of the residual stream (R1) and of the heads of attention values (R2).

It owns which weights take which rotation, and naming what cannot take one. The matrices are orthogonal.py, changing
weights is folding.py, which modules belong together is wrap/structure.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyquant.algorithms.folding import Change, Folds, require_foldable
from pyquant.algorithms.orthogonal import Rotation, rotation
from pyquant.errors import InputError
from pyquant.wrap import QModule, structure
from pyquant.wrap.norm import QuantLayerNorm

__all__ = ["rotate"]


@torch.no_grad()
def rotate(
    q: QModule, *, residual: bool = True, heads: bool = True, seed: int = 0, towers: Sequence[str] | None = None
) -> None:
    """Rotate channels so that no single one is far larger than the others (QuaRot, arXiv 2404.00456; SpinQuant,
    arXiv 2405.16406: R1 and R2). Outputs stay as they are, in float, but for rounding; weights change, and no operator
    is added.

    Run it after prepare and before weights are decided or activations calibrated; together with `gptq`, since weights
    that are rounded to the nearest lose more once they are rotated.

    residual: R1. The gain of each norm that reads the residual stream, and a LayerNorm's bias, move into the linears
        after it; what writes the stream and what reads it takes R. R is a Hadamard matrix with random signs where one
        of that order is known (orthogonal.core), else a random orthogonal one. Where LayerNorms read the stream, R
        is random and keeps the mean over channels.
    heads: R2, of the values of each attention head, within v_proj and o_proj.
    seed: of the random signs and matrices; the same seed gives the same weights.
    towers: paths of the models whose stream and heads are rotated ("model.language_model"), all that have one by
        default.

    What changes besides: a token table and a head that are one tensor become two in this tree, so that it needs the
    memory of both (a .circle bundle has two anyway). Hidden states, `inputs_embeds` and the keys' companions, the
    values, are in the rotated basis: embeddings that do not come from this tree's table do not fit it. Weights that are
    edited in the float model later do not reach the tree. Each weight is computed in float64 and rounded to its own
    type once: with bfloat16 weights outputs move as much as by one more rounding of all weights to bfloat16; prepare a
    float32 model to avoid that.

    Raises InputError where a stream cannot be rotated, with the module that stands in the way: a norm between a linear
    and the stream (Gemma4), a linear that reads the stream without a norm, a final norm whose head is not in the tree;
    and for a path in `towers` that names no stream. Raises PhaseError for a tree that is calibrated or converted, that
    has decided weights, or whose float model was edited after prepare. Nothing is changed then.
    """
    require_foldable(q, "rotate")
    if not residual and not heads:
        raise InputError("rotate with residual=False and heads=False rotates nothing; leave the step out")
    streams = structure.streams(q)
    chosen = _chosen(streams, towers, residual)
    folds = Folds(q)
    if residual:
        for stream in chosen:
            _rotate_stream(folds, stream, seed)
    inside = [stream.path for stream in streams if towers is None or stream.path in towers]
    pairs = [
        pair
        for pair in (structure.pairs(q) if heads else [])
        if pair.heads and (towers is None or any(_below(pair.producer.path, path) for path in inside))
    ]
    for pair in pairs:
        _rotate_heads(folds, pair, seed)
    if not pairs and not (residual and chosen):
        raise InputError(
            f"rotate found nothing to rotate in this {type(q).__name__}: no wrapper in it declares a residual stream "
            "with all its readers and writers, or attention values that go straight into an output projection; leave "
            "the step out, or use pyquant.algorithms.smooth"
        )
    folds.apply()


def _chosen(streams: list[structure.Stream], towers: Sequence[str] | None, residual: bool) -> list[structure.Stream]:
    if isinstance(towers, str):
        raise InputError(f"towers is a list of paths, got the string {towers!r}; write [{towers!r}]")
    paths = [stream.path for stream in streams]
    if unknown := [path for path in towers or () if path not in paths]:
        raise InputError(f"towers: no residual stream at {unknown[0]!r}; this tree has them at {paths or 'no path'}")
    chosen = [stream for stream in streams if towers is None or stream.path in towers]
    if residual and not streams:
        raise InputError(
            "rotate found no residual stream in this tree; use rotate(q, residual=False) for the heads alone"
        )
    for stream in chosen if residual else []:
        if stream.obstacles:
            raise InputError(_obstacle(stream, [other.path for other in streams if not other.obstacles]))
    return chosen


def _obstacle(stream: structure.Stream, free: Sequence[str]) -> str:
    first = stream.obstacles[0]
    more = f" (and {len(stream.obstacles) - 1} more)" if len(stream.obstacles) > 1 else ""
    where = repr(stream.path) if stream.path else "the model"
    return (
        f"the residual stream of {where} cannot be rotated: {first.path!r} of "
        f"{type(first).__name__}{more} adds to it or reads it, and has no weight that could take the rotation. A norm "
        "after a linear stands between that and the stream; a final norm needs its head in the tree (prepare the whole "
        "model). Use pyquant.algorithms.smooth" + (f", or rotate(q, towers={list(free)!r})" if free else "")
    )


def _below(path: str, tower: str) -> bool:
    return not tower or path.startswith(f"{tower}.")


# --- R1 ---


def _rotate_stream(folds: Folds, stream: structure.Stream, seed: int) -> None:
    """x -> x R for the stream x (rows are tokens).

    An RMSNorm without gain commutes with every orthogonal R, since it divides a row by its length.
    So does a LayerNorm without gain and bias with one that keeps the ones, R 1 = 1 (then 1^T R = 1^T too): the mean of
    x R is x R 1 / n = x 1 / n, so (x R - mean 1^T) = (x - mean 1^T) R, of the same length. A norm over k rows of the
    stream side by side (a merger of patches) sees the block-diagonal matrix of k R, which is orthogonal and keeps the
    ones of that width, since each block keeps its own.
    """
    layer_norms = any(isinstance(feed.norm, QuantLayerNorm) for feed in stream.readers)
    width = _width(stream)
    turn = rotation(width, seed, keep_mean=layer_norms)
    for writer in stream.writers:
        folds.rows(writer, turn)
    for feed in stream.readers:
        _fold_norm(folds, feed)
        for reader in feed.readers:
            folds.columns(reader, turn)


def _width(stream: structure.Stream) -> int:
    """Channels of the stream: out_features of linears, columns of tables."""
    found = set()
    for writer in stream.writers:
        weight = writer.get_parameter("weight")
        found.add(weight.shape[0] // int(getattr(writer, "experts", 1)) if _multiplies(writer) else weight.shape[1])
    assert len(found) == 1, f"writers of the stream of {stream.path!r} have widths {sorted(found)}"
    return int(found.pop())


def _multiplies(module: QModule) -> bool:
    return hasattr(module, "watch_rows")


def _fold_norm(folds: Folds, feed: structure.Feed) -> None:
    """The gain of the norm into the columns of its readers, its bias through their weights into their biases."""
    gain, bias = (feed.norm._parameters.get(name) for name in ("weight", "bias"))
    for reader in feed.readers:
        times = reader.get_parameter("weight").shape[1]
        if gain is not None:
            folds.columns(reader, _scaled(gain.detach().repeat(times // len(gain))))
        if bias is not None:
            folds.shift(reader, bias.detach().repeat(times // len(bias)))
    if gain is not None:
        folds.set(feed.norm, "weight", torch.ones_like(gain))
    if bias is not None:
        folds.set(feed.norm, "bias", torch.zeros_like(bias))


# --- R2 ---


def _rotate_heads(folds: Folds, pair: structure.Pair, seed: int) -> None:
    """Attention adds up the rows of a head's values with weights that do not depend on the channel, so a rotation R of
    a head's channels passes through it: rows of the producer take R^T, columns of the consumer R."""
    assert pair.heads is not None
    turn = rotation(pair.heads, seed)
    channels = torch.unique(pair.rows.reshape(-1, pair.heads), dim=0)  # (heads of values, channels)
    folds.rows(pair.producer, _within(channels, turn))
    folds.columns(pair.consumer, turn)


def _within(channels: Tensor, turn: Rotation) -> Change:
    """Rotate these groups of channels only."""

    def change(rows: Tensor) -> Tensor:
        rows = rows.clone()
        index = channels.to(rows.device)
        rows[:, index] = turn(rows[:, index])
        return rows

    return change


def _scaled(scale: Tensor) -> Change:
    return lambda rows: rows * scale.to(rows)
