# SPDX-License-Identifier: Apache-2.0
"""The phase of each module of a tree, the one way to change it, and what all modules of the tree share.

It owns the order of the phases, and that one thread at a time calibrates or converts a tree. What a phase means for a
value is site.py, the steps from one to the next are lifecycle.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

from torch import nn

from pyquant.decision import Decision
from pyquant.errors import CalibrationError, PhaseError
from pyquant.recipe import Recipe
from pyquant.role import Phase
from pyquant.stream import Stream

__all__ = ["BlockCalls", "Phased", "TreeState", "phase", "set_phase"]


class BlockCalls(Protocol):
    """Who records a graph sees the calls of its blocks, and may record equal ones once (QModule.run_block)."""

    def run(self, block: Any, run: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        """What `run(block, *given)` returns."""
        ...

    def clipped(self, site: Any, clip: tuple[float | None, float | None]) -> None:
        """A site gets a value with bounds: which of them is a clamp depends on the site's grid."""
        ...


class TreeState:
    """What all sites and wrappers of one tree share. A copy or a pickle of it is not locked.

    converted: the sites have their grids, for good. broken: why the statistics cannot be used (a batch that failed half
    way, data that ended with an error), None while they can. explicit: a graph is recorded, see `exporting`; calls: who
    sees the calls of its blocks. log: what algorithms decided, in their order. recipe: what pyquant.quantize ran, and
    what it had to say meanwhile (notes). collects: an algorithm takes statistics, see `collecting`. stream: where the
    weights of a tree lie that is larger than memory; None for one that is in memory. kept: what of weights is kept
    between calls, see weight_memory.py.
    """

    def __init__(self, *, converted: bool = False, stream: Stream | None = None) -> None:
        self.stream = stream
        self.converted = converted
        self.broken: str | None = None
        self.explicit = False
        self.calls: BlockCalls | None = None
        self.collects = False
        self.kept = "values" if stream is None else "nothing"
        self.warned_of_autocast = False
        self.log: list[Decision] = []
        self.recipe: Recipe | None = None
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._owner: int | None = None

    def check(self, phase: Phase) -> None:
        """Raise PhaseError for a phase that the tree has not reached, or has left for good, and while another thread
        calibrates or converts."""
        if phase is Phase.QUANTIZED and not self.converted:
            raise PhaseError("the tree is not converted yet; run pyquant.convert(q) before the QUANTIZED phase")
        if phase is Phase.CALIBRATE and self.converted:
            raise PhaseError("the tree is converted; prepare the float model again to calibrate anew")
        if self._owner not in (None, threading.get_ident()):
            raise PhaseError("another thread calibrates or converts this tree; change its phase when that is done")

    def current(self, earlier: Phase) -> Phase:
        """What a module that was in the phase `earlier` returns to: QUANTIZED for CALIBRATE once the tree is
        converted."""
        return Phase.QUANTIZED if self.converted and earlier is Phase.CALIBRATE else earlier

    @contextmanager
    def exclusive(self, verb: str) -> Iterator[None]:
        """Nobody else calibrates or converts the tree while the block runs.

        Raises PhaseError at once when somebody does: another thread, or the batches that calibrate reads.
        """
        if not self._lock.acquire(blocking=False):
            who = "its own batches call" if self._owner == threading.get_ident() else "another thread runs"
            raise PhaseError(
                f"{verb} on a tree that is being calibrated or converted: {who} calibrate or convert on it; wait until "
                f"that is done, or prepare a tree of its own for each thread"
            )
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = None
            self._lock.release()

    def require_intact(self, verb: str) -> None:
        """Raise CalibrationError when the statistics cannot be used."""
        if self.broken is not None:
            raise CalibrationError(
                f"{verb}: the calibration of this tree is broken: {self.broken}; the ranges are not those of "
                f"whole batches of all the data, so start again from pyquant.prepare"
            )

    @contextmanager
    def exporting(self, calls: BlockCalls | None = None) -> Iterator[None]:
        """A graph is recorded while the block runs: the forward of an export adapter enters it.

        Constants are computed by the graph (a fake quantization is a node, nothing comes from a cache), and a mask that
        is given is added, whatever its values. The same numbers as the adapter gives outside of torch.export.
        `calls` sees the calls of blocks, also in adapters within this one.
        """
        before = self.explicit, self.calls
        self.explicit, self.calls = True, self.calls if calls is None else calls
        try:
            yield
        finally:
            self.explicit, self.calls = before

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """What runs while the block does is for statistics of an algorithm: padding is left out, as while calibrating.

        The numbers at places that are no padding are those of the FLOAT phase.
        """
        before, self.collects = self.collects, True
        try:
            yield
        finally:
            self.collects = before

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in vars(self).items() if k not in ("_lock", "_owner")}
        return kept | {"explicit": False, "calls": None, "collects": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        vars(self).update(state)


class Phased(nn.Module):
    """A module of a tree: a site or a wrapper. A new one calibrates, or is quantized in a converted tree.

    UNTRACED: plain attributes on which the operations of forward do not depend while a graph is recorded; likeness.py
    compares all others.
    """

    UNTRACED: ClassVar[tuple[str, ...]] = ()

    _state: TreeState
    _phase: Phase

    def __init__(self, state: TreeState) -> None:
        super().__init__()
        self._set_plain(_state=state, _phase=state.current(Phase.CALIBRATE))

    def _set_plain(self, **values: Any) -> None:
        """Set attributes that are no modules and no tensors, all at once.

        An assignment asks torch for each whether it is one, which is half the time of making a site.
        """
        vars(self).update(values)

    def traced_state(self) -> Any:
        """What else the operations of forward depend on, as plain data: of attributes in UNTRACED, what counts."""
        return ()

    @property
    def state(self) -> TreeState:
        """What the whole tree shares."""
        return self._state

    @property
    def phase(self) -> Phase:
        """The phase of this very module; `set_phase` changes it together with all that is below."""
        return self._phase

    def phased(self) -> list[Phased]:
        """This module and all below it that have a phase."""
        return [module for module in self.modules() if isinstance(module, Phased)]


def set_phase(target: Phased, phase: Phase) -> None:
    """Put `target`, a tree, a part of one or a single site, and all below it in `phase`; the rest stays as it is.

    Raises PhaseError for QUANTIZED before convert, for CALIBRATE after it, and while another thread calibrates.
    """
    if not isinstance(target, Phased):
        raise PhaseError(f"set_phase takes a tree of pyquant.prepare, a part of it or a site, got {target!r:.200}")
    target.state.check(phase)
    for module in target.phased():
        module._phase = phase


@contextmanager
def phase(target: Phased, phase: Phase) -> Iterator[None]:
    """`set_phase` for a while: `with wrap.phase(q, Phase.FLOAT): ...`.

    Afterwards each module has the phase that it had, but QUANTIZED for CALIBRATE where the tree was converted inside.
    """
    before = [(module, module.phase) for module in target.phased()] if isinstance(target, Phased) else []
    set_phase(target, phase)
    try:
        yield
    finally:
        for module, earlier in before:
            module._phase = module.state.current(earlier)
