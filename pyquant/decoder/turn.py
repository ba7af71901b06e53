# SPDX-License-Identifier: Apache-2.0
"""What one call of generate() brings: the tokens that are new to the cache, and the conversation that they continue.

It owns putting rows of unequal length in place. Graphs are host.py, the loop over tokens generation.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyquant.decoder.cache import CacheState
from pyquant.decoder.generation import GenerationRequest
from pyquant.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


class Past:
    """A conversation so far: `ids` int64 (B, S), where they are `real` (B, S) bool, and the cache of all but the last
    real token of each row. Empty before the first turn."""

    def __init__(self) -> None:
        self.ids: Tensor | None = None
        self.real: Tensor | None = None
        self.state: CacheState | None = None

    def take(self, ids: Tensor, real: Tensor, state: CacheState) -> None:
        """Go on to the end of a turn: all tokens, and the cache that the turn filled."""
        self.ids, self.real, self.state = ids, real, state


@dataclass(frozen=True)
class Prompt:
    """What graphs are given of new tokens: `ids` (B, S), each row from place 0 on, `real` (B, S) bool, positions
    (axes, B, S), and `deltas` (B, 1), from the tokens of a row to the position after them.

    A family that has more for each token derives from it and overrides `part`.
    """

    ids: Tensor
    real: Tensor
    positions: Tensor
    deltas: Tensor

    def replaced(self, ids: Tensor, real: Tensor, positions: Tensor) -> Self:
        """With these in place of its own."""
        return replace(self, ids=ids, real=real, positions=positions)

    def part(self, start: int, stop: int, length: int) -> Self:
        """Places start to stop, in a graph of `length` places."""
        ids, real, positions = (cut(each, start, stop, length) for each in (self.ids, self.real, self.positions))
        return replace(self, ids=ids, real=real, positions=positions)


@dataclass(frozen=True)
class Turn:
    """One call: `ids` (B, S) new to the cache, each row from place 0 on, `real` (B, S) bool; `state`, a cache of its
    own that holds what came before them.

    A turn that continues a conversation begins with the last token of its answer, which is not in the cache yet.
    all_ids, all_real: the whole conversation with this turn, as transformers' loop takes it; `before`: its columns that
    are not this call's. new: tokens that follow at most.
    """

    ids: Tensor
    real: Tensor
    state: CacheState
    request: GenerationRequest
    all_ids: Tensor
    all_real: Tensor
    before: int
    new: int = 0

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, past: Past | None, empty: CacheState, request: GenerationRequest) -> Turn:
        """Of input_ids (B, S), real where `mask` is."""
        if past is None or past.ids is None or past.real is None or past.state is None:
            width = int(mask.sum(dim=1).max())
            new, real = (compact(each, mask, width) for each in (ids, mask))
            return cls(new, real, empty, request, ids, mask, 0)
        all_ids, all_real = torch.cat([past.ids, ids], dim=1), torch.cat([past.real, mask], dim=1)
        places = all_real.cumsum(dim=1) - 1
        fresh = all_real & (places >= past.state.lengths[:, None])
        width = int(fresh.sum(dim=1).max())
        new, real = (compact(each, fresh, width) for each in (all_ids, fresh))
        return cls(new, real, past.state.copy(), request, all_ids, all_real, past.ids.shape[1])

    @property
    def continues(self) -> bool:
        """Whether there is a cache already."""
        return self.before > 0

    def with_room(self, new: int) -> Turn:
        """With so many tokens that may follow."""
        return replace(self, new=new)

    def prompt(self) -> Prompt:
        """Of text alone: positions go up by one, on every axis that a model may have."""
        counted = torch.arange(self.ids.shape[1], dtype=torch.int64, device="cpu")
        at = (self.state.lengths[:, None] + self.state.deltas + counted).expand(3, -1, -1)
        return Prompt(self.ids, self.real, at, self.state.deltas)


def checked(
    input_ids: Tensor, attention_mask: Tensor | None, batch: int, request: GenerationRequest
) -> tuple[Tensor, Tensor]:
    """The prompt int64 (B, S) and where it is real, bool. Raises InputError for another form."""
    if not isinstance(input_ids, Tensor):
        raise InputError(
            f"input_ids are a tensor of integers ({batch}, tokens), got a {type(input_ids).__name__}; a "
            "processor's batch is given as generate(**batch), without what is no argument of generate"
        )
    if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.shape[0] != batch:
        raise InputError(
            f"input_ids are integers ({batch}, tokens) for this bundle, which was exported with "
            f"batch_size={batch}; got {input_ids.dtype} {tuple(input_ids.shape)}"
        )
    mask = request.inferred_mask(input_ids) if attention_mask is None else attention_mask
    _require_shape("attention_mask", mask, input_ids)
    mask = mask != 0
    if not bool(mask.any(dim=1).all()):
        raise InputError("a row of attention_mask is all padding; every row needs a token")
    return input_ids.long().cpu(), mask.cpu()


def check_types(given: Tensor | None, types: Tensor, real: Tensor) -> None:
    """Raise InputError where `given`, a caller's mm_token_type_ids, are not the `types` (B, S) that input_ids have,
    where these are `real`."""
    if given is None:
        return
    _require_shape("mm_token_type_ids", given, types)
    if not torch.equal(given.long().cpu()[real], types[real]):
        raise InputError("mm_token_type_ids contradict the placeholder tokens in input_ids; leave them out")


def _require_shape(name: str, given: object, ids: Tensor) -> None:
    if not isinstance(given, Tensor) or given.shape != ids.shape:
        seen = f"{tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise InputError(f"{name} is {seen}, expected a tensor {tuple(ids.shape)} as input_ids")


def require_whole(mask: Tensor) -> None:
    """Raise InputError for a row of `mask` (B, S) whose real tokens have padding between them: a window of transformers
    counts it, and the cache of a bundle does not hold it."""
    inside = (mask.long().cumsum(dim=1) > 0) & (mask.long().flip(1).cumsum(dim=1).flip(1) > 0) & ~mask
    if bool(inside.any()):
        row, place = inside.nonzero()[0].tolist()
        raise InputError(
            f"attention_mask is 0 at token {place} of row {row}, between tokens that are not padding; this model has "
            "layers with a window, which would count it: pass each prompt without holes"
        )


def compact(values: Tensor, mask: Tensor, length: int) -> Tensor:
    """Each row's real entries from place 0 on, zeros up to `length`."""
    out = values.new_zeros(len(values), length)
    for row, keep in enumerate(mask):
        out[row, : int(keep.sum())] = values[row, keep]
    return out


def cut(values: Tensor, start: int, stop: int, length: int, fill: int = 0) -> Tensor:
    """(..., S) -> (..., length): places start to stop, and `fill` behind them."""
    return torch.nn.functional.pad(values[..., start:stop], (0, length - (stop - start)), value=fill)
