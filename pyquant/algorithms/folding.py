# SPDX-License-Identifier: Apache-2.0
"""Folds: changes of weights that cancel each other, collected first and then made, all of them or none.

It owns what a scale or a rotation of channels does to a weight's rows and columns and to its bias. Which ones leave a
model's output as it is, is the business of rotate.py and smooth.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyquant.errors import InputError, PhaseError
from pyquant.weight import Weight, replace_parameter
from pyquant.wrap import Phase, QModule

__all__ = ["Change", "Folds", "require_foldable"]

#: (N, channels) float64 -> the same shape
Change = Callable[[Tensor], Tensor]
_PIECE = 1 << 22  # elements in float64 at a time


@dataclass
class _Edits:
    columns: list[Change] = field(default_factory=list)
    rows: list[Change] = field(default_factory=list)
    shift: Tensor | None = None

    def by_row(self, module: QModule) -> list[list[Change]] | None:
        """The changes one after the other, where each changes every row of the weight on its own."""
        if hasattr(module, "watch_rows"):
            return None if self.rows or getattr(module, "experts", 1) != 1 else [self.columns]
        return [self.columns, self.rows]


def require_foldable(q: QModule, verb: str) -> None:
    """Raise PhaseError unless `q` is the tree of prepare, before anything about it was decided or calibrated."""
    if not isinstance(q, QModule):
        raise PhaseError(f"{verb} takes the tree that pyquant.prepare returned, got {type(q).__name__}")
    if q.path:
        raise PhaseError(
            f"{verb} takes the tree that prepare returned, got its part {q.path!r}: what reads and writes the same "
            "values may be outside of it"
        )
    q.require(Phase.CALIBRATE, verb)
    for site in q.all_sites():
        if not site.role.is_constant and site.last_seen:
            raise PhaseError(
                f"{verb} changes the values that the site {site.path!r} was calibrated with; run it after prepare and "
                "before pyquant.calibrate"
            )


class Folds:
    """The changes of one call. A weight is rounded once, to its own type, whatever is folded into it."""

    def __init__(self, q: QModule) -> None:
        self._tree = q
        self._edits: dict[QModule, _Edits] = {}
        self._given: dict[tuple[QModule, str], Tensor] = {}

    def columns(self, module: QModule, change: Change) -> None:
        """Let `change` have the rows (n, in_features) of a linear's weight, of every matrix that is in it."""
        self._of(module).columns.append(change)

    def rows(self, module: QModule, change: Change) -> None:
        """Let `change` have what the linear adds to the stream of its outputs, as rows: the columns of its weight,
        transposed, (n, out_features), and its bias."""
        self._of(module).rows.append(change)

    def shift(self, module: QModule, constant: Tensor) -> None:
        """Take a constant (in_features,) that no longer comes with the inputs of a linear into its bias.

        Raises InputError for a linear without a bias.
        """
        if not bool(constant.any()):
            return
        if module._parameters.get("bias") is None:
            raise InputError(
                f"{module.path!r} has no bias to take that of the norm before it, so nothing can be folded there; "
                "leave this tower out (towers=[...])"
            )
        self._of(module).shift = constant.double()

    def set(self, module: QModule, name: str, value: Tensor) -> None:
        """Give a parameter a value: the gain or the bias of a norm."""
        self._given[module, name] = value

    def apply(self) -> None:
        """Make all changes. Raises PhaseError or InputError, and changes nothing, for a weight that is decided or that
        has no float value, and for a tree whose float model was edited (QModule.require_unedited)."""
        self._tree.require_unedited("folding")
        for module, edits in self._edits.items():
            self._check(module, "weight")
            self._check_grids(module, "act_in" if edits.columns else "", "act_out" if edits.rows else "")
        for module, name in self._given:
            self._check(module, name)
        for module, edits in self._edits.items():
            old, bias = module.get_parameter("weight").detach(), module._parameters.get("bias")
            self._replace(module, old, edits)
            if bias is not None and (edits.rows or edits.shift is not None):
                replace_parameter(module, "bias", _shifted(module, old, bias.detach(), edits))
        for (module, name), value in self._given.items():
            replace_parameter(module, name, value)

    def _replace(self, module: QModule, old: Tensor, edits: _Edits) -> None:
        stream = module.state.stream
        along = edits.by_row(module)
        if stream is None or along is None or old.dim() != 2 or old.device.type != "cpu":
            replace_parameter(module, "weight", _changed(module, old, edits))
            return
        stream.touch(old)
        new = stream.write(tuple(old.shape), old.dtype, _pieces(old, along))  # a table of gigabytes is never whole
        replace_parameter(module, "weight", new, own=True)

    def _of(self, module: QModule) -> _Edits:
        return self._edits.setdefault(module, _Edits())

    def _check(self, module: QModule, name: str) -> None:
        where = f"{module.path}.{name}"
        value = module._parameters.get(name)
        if value is None or not value.is_floating_point():
            raise InputError(
                f"{where!r} of {type(module).__name__} has integers of a checkpoint and no float value, so nothing can "
                "be folded into it; load the float checkpoint of this model"
            )
        if value.is_meta:
            raise InputError(f"{where!r} has no data (device meta); load the whole model before folding")
        if module.state.stream is not None:
            module.state.stream.touch(value)
        ends = torch.stack(torch.aminmax(value.detach())) if value.numel() else value  # NaN in, NaN out
        if not bool(ends.isfinite().all()):
            raise InputError(
                f"{where!r} has NaN or infinite values, which folding would carry into other weights; repair the "
                "checkpoint"
            )
        if name in module.sites and (how := Weight(module, name).how):
            raise PhaseError(f"{where!r} is decided ({how}), and stays as it is; fold before weights are decided")

    def _check_grids(self, module: QModule, *names: str) -> None:
        for name in names:
            if name in module.sites and (how := module.site(name).decided):
                raise PhaseError(
                    f"the grid of {module.site(name).path!r} is decided ({how}), and folding would change the values "
                    "that it was made for; leave the step out"
                )


def _changed(module: QModule, old: Tensor, edits: _Edits) -> Tensor:
    wide = torch.promote_types(old.dtype, torch.float32)
    value = old.to(wide, copy=True, memory_format=torch.contiguous_format)
    matrices = value.reshape(int(getattr(module, "experts", 1)), -1, *value.shape[1:]).flatten(2)
    for matrix in matrices:  # views: what is written is written into `value`
        _apply(matrix, edits.columns)
        _apply(matrix.T, edits.rows) if hasattr(module, "watch_rows") else _apply(matrix, edits.rows)
    return value


def _shifted(module: QModule, old: Tensor, bias: Tensor, edits: _Edits) -> Tensor:
    value = bias.double()
    if edits.shift is not None:
        value = value + old.flatten(1).double() @ edits.shift.to(old.device)
    for change in edits.rows:
        value = change(value[None])[0]
    return value


def _pieces(old: Tensor, along: list[list[Change]]) -> Iterator[Tensor]:
    """What _changed makes of `old` (rows, channels), some rows at a time: the same bits."""
    wide = torch.promote_types(old.dtype, torch.float32)
    for rows in _steps(old):
        piece = old[rows].to(wide)
        for changes in filter(None, along):
            whole = piece.double()
            for change in changes:
                whole = change(whole)
            piece = whole.to(wide)
        yield piece


def _steps(rows: Tensor) -> Iterator[slice]:
    step = max(1, _PIECE // rows.shape[1])
    return (slice(start, start + step) for start in range(0, rows.shape[0], step))


def _apply(rows: Tensor, changes: list[Change]) -> None:
    """Change the rows (n, channels) in place, some at a time."""
    for own in _steps(rows) if changes else ():
        piece = rows[own].double()
        for change in changes:
            piece = change(piece)
        rows[own] = piece
