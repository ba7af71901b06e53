# SPDX-License-Identifier: Apache-2.0
"""Site: one quantization point of a model, from observing to its grid; and the caches of what it quantized.

It owns what each phase does to a value, who watches it, and whether its statistics give a grid. Which sites a module
has is wrap/, which format a site gets is policy.py, how a phase changes is tree_state.py.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import _global_forward_hooks

from pyquant import autocast, observe, ops
from pyquant.errors import InputError, PhaseError, PolicyError, SpecError
from pyquant.qparams import QParams
from pyquant.role import Phase, Role, fixed_grid
from pyquant.spec import BlockSpec, PerAxis, PerGroup, QuantSpec
from pyquant.tree_state import Phased, TreeState

__all__ = ["Phase", "Role", "Site", "Tap", "TapHandle", "TensorCache", "TreeState"]

Clip = tuple[float | None, float | None]
KEPT = ("values", "integers", "nothing")  # see weight_memory.py
_CLOCK = itertools.count(1)
_TINY = torch.finfo(torch.float32).tiny  # a smaller scale is not a normal float
_OBSERVED = (torch.float32, torch.bfloat16, torch.float16)
_FIXED_RULE = 'Rule("{}", spec=..., observer=ObserverSpec("fixed", {{"lo": -1, "hi": 1}}))'
_MASKED = 1e30  # no activation is that large; the finfo.min of an additive mask is


class Tap(Protocol):
    """A callable that sees what passes a site, and may replace it.

    x, out: the value as it came and as it leaves; clip, observed: as of Site.forward. constant: it came through
    Site.constant, from the cache or not. Returns the value that leaves instead of `out`, or None to leave it.
    """

    def __call__(
        self, site: Site, x: Tensor, out: Tensor, *, clip: Clip | None, observed: Tensor | None, constant: bool
    ) -> Tensor | None: ...


class TapHandle:
    """A tap that is set. `remove()`, or the end of a `with` block, takes away this one and no other."""

    def __init__(self, site: Site, tap: Tap) -> None:
        self._site, self.tap = site, tap

    def remove(self) -> None:
        """Take the tap away; twice is as once."""
        self._site._taps = tuple(handle for handle in self._site._taps if handle is not self)

    def __enter__(self) -> TapHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Site(Phased):
    """One quantization point.

    `path` is module path + ':' + name. `spec` None means that the value stays float. Once converted, `scale` (float32)
    and `zero_point` (int32) are buffers: they move with `.to`, and keep their types whatever the model's dtype is.
    """

    UNTRACED = ("path", "observer", "decided", "final", "apart", "last_seen", "_ends", "_cache", "_scanned")

    scale: Tensor | None
    zero_point: Tensor | None
    path: str
    role: Role
    spec: QuantSpec | None
    observer: observe.Observer | None
    decided: str  # who decided the grid or the format before convert; see decide(), reformat()
    final: bool  # a decided grid that not even a bias may widen
    apart: bool  # whether its range was observed on other values than it passes (masked logits)
    last_seen: int  # tick of the last observation: orders sites as data reaches them
    _ends: tuple[float, float]  # of the grid, as numbers: a clip is compared with them while tracing too
    _cache: TensorCache
    _scanned: TensorStamp
    _taps: tuple[TapHandle, ...]
    _form: tuple[QuantSpec | None, int | None, int, int, int]  # see _form()

    def __init__(
        self,
        path: str,
        role: Role,
        spec: QuantSpec | None,
        *,
        observer: str = "minmax",
        params: Mapping[str, Any] | None = None,
        state: TreeState | None = None,
        settled: bool = False,
    ) -> None:
        """settled: its grid follows at once (set_qparams), so that nothing is observed. Raises SpecError for an
        observer that the role or the format cannot have, also then."""
        super().__init__(state if state is not None else TreeState())
        watch = None
        if spec is not None and settled:
            _require_observer(role, spec, observer, tuple((params or {}).items()))
        elif spec is not None:
            watch = _observer(role, spec, observer, params or {})
        self._set_plain(
            path=path, role=role, spec=spec,
            observer=watch,
            decided="", final=True, apart=False, last_seen=0,
            _ends=(-math.inf, math.inf), _cache=TensorCache(), _scanned=TensorStamp(), _taps=(),
            _form=(None, None, 0, 0, 0),
        )  # fmt: skip
        self._buffers.update(scale=None, zero_point=None)

    @property
    def qparams(self) -> QParams | None:
        """The numbers that convert stored; None for a float or not yet converted site."""
        if self.spec is None or self.scale is None or self.zero_point is None:
            return None
        return QParams(self.spec, self.scale, self.zero_point)

    def rounded(self, x: Tensor) -> Tensor | None:
        """forward(x), where that is to round x to the grid and nothing else; None where it is more, and not done.

        QModule.q asks here first: a call of a module takes several times as long as rounding a small tensor. Tensors
        are read anew each time, whoever replaced them.
        """
        scale, zero_point, spec = self._buffers["scale"], self._buffers["zero_point"], self.spec
        if (
            self._phase is not Phase.QUANTIZED
            or scale is None
            or zero_point is None
            or self._taps
            or self._forward_hooks
            or self._forward_pre_hooks
            or _global_forward_hooks
            or self._state.explicit
            or not x.is_floating_point()
            or torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type)
        ):
            return None
        if self._form[0] is not spec:
            self._form = _form(self._spec())
        _, axis, group, qmin, qmax = self._form
        return ops.fake_quantize(x, scale, zero_point, axis, group, qmin, qmax)

    def forward(self, x: Tensor, *, clip: Clip | None = None, observed: Tensor | None = None) -> Tensor:
        """`x` clamped to `clip` (float, calibrating), or on this site's grid.

        Quantized, saturation is the clamp: the grid was found on clamped data. Where it is not (a symmetric grid has
        the larger bound on both sides, every grid has zero) the clamp stays.

        `observed` is what the range is computed from, where that is not `x` itself (masked logits). Never changes `x`.
        """
        if not x.is_floating_point():
            raise InputError(
                f"site {self.path!r} got a tensor of {x.dtype}, expected floating point; "
                f"integers and masks (token ids, indices, bool) do not pass through a site"
            )
        if torch.is_autocast_enabled(x.device.type):
            autocast.warn(self.state, x.device.type)
        out = self._pass(x, clip, observed)
        return self._tapped(x, out, clip, observed) if self._taps else out

    def _pass(self, x: Tensor, clip: Clip | None, observed: Tensor | None) -> Tensor:
        if clip is not None and self.state.calls is not None:
            self.state.calls.clipped(self, clip)
        if self._phase is Phase.QUANTIZED and self.scale is not None:
            return self._saturate(x, clip)
        x = _clamp(x, clip)
        if self._phase is Phase.CALIBRATE and self.observer is not None:
            self.apart |= observed is not None
            self.observe(x if observed is None else observed)
        return x

    def constant(self, value: Tensor, *, on_grid: bool = False) -> Tensor:
        """`value`, which does not depend on the model's inputs, as this site sees it.

        `on_grid`: it is made of integers of this site's grid already, so only a graph has a quantization of it.
        Observed at most once. When quantized the result is cached until the value or the grid changes. In the graph
        of an adapter (TreeState.exporting) the quantization is a node, so that lowering sees value and qparams; while
        training it is computed each time, so that gradients reach the value.
        """
        out = value if on_grid and not self._state.explicit else self._constant(value)
        return self._tapped(value, out, constant=True) if self._taps else out

    def _constant(self, value: Tensor) -> Tensor:
        if self._phase is Phase.CALIBRATE:
            if self.observer is not None and self.observer.batches == 0:
                self.scan(value)
            return value
        buffers = self._buffers  # self.scale is several times as slow
        scale, zero_point = buffers["scale"], buffers["zero_point"]
        if self._phase is Phase.FLOAT or scale is None or zero_point is None:
            return value
        if self._state.explicit or (self.training and torch.is_grad_enabled()):
            return self._quantize(value)
        of = (value, scale, zero_point)
        if self._state.kept == "values" or not self.role.is_kernel:
            return self._cache.get(of, lambda: same_or(value, self._quantize(value)))
        with torch.no_grad():
            if self._state.kept == "nothing":
                return self._quantize(value).detach()
            return self._floats(self._cache.get(of, lambda: self._integers(value)), value)

    def _integers(self, value: Tensor) -> Tensor:
        """As a file has them: 4-bit ones packed."""
        spec, scale, zero_point = self._spec(), cast(Tensor, self.scale), cast(Tensor, self.zero_point)
        axis, group = getattr(spec.granularity, "axis", None), getattr(spec.granularity, "size", 0)
        storage = ops.STORAGE[spec.dtype.name]
        integers = ops.quantize(value.detach(), scale, zero_point, axis, group, spec.qmin, spec.qmax, storage)
        return ops.pack_int4(integers) if spec.dtype.bits == 4 else integers

    def _floats(self, integers: Tensor, like: Tensor) -> Tensor:
        spec, scale, zero_point = self._spec(), cast(Tensor, self.scale), cast(Tensor, self.zero_point)
        axis, group = getattr(spec.granularity, "axis", None), getattr(spec.granularity, "size", 0)
        if spec.dtype.bits == 4:
            integers = ops.unpack_int4(integers, like.numel(), spec.dtype.signed).reshape(like.shape)
        return ops.dequantize(integers, scale, zero_point, axis, group).to(like.dtype)

    def let_go(self) -> None:
        """Drop what is kept of a constant; it is made again when it is next used."""
        self._cache = TensorCache()

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows (..., D) of constant(table) for `ids` (...); table (V, D). Once quantized, no other row is.

        The whole table is quantized where a scale depends on several rows, where a tap watches it, and in the graph of
        an adapter (TreeState.exporting), whose GATHER reads the table. Equal numbers.
        """
        if self._phase is not Phase.QUANTIZED or self.scale is None or self._taps or self.state.explicit:
            return F.embedding(ids, self.constant(table))
        granularity, scale, zero_point = self._spec().granularity, self.scale, cast(Tensor, self.zero_point)
        axis = getattr(granularity, "axis", 1) % 2
        if axis == 0 and isinstance(granularity, PerGroup):
            return F.embedding(ids, self.constant(table))
        flat = ids.reshape(-1)
        if axis == 0 or isinstance(granularity, PerGroup):  # scales lie along the rows
            scale, zero_point = scale[flat], zero_point[flat]
        rows = self._on_grid(F.embedding(flat, table), scale, zero_point)
        return rows.reshape(*ids.shape, table.shape[1])

    def part(self, value: Tensor, rows: slice, columns: slice) -> Tensor:
        """These rows and columns of constant(value), a matrix; nothing else of it is quantized, in a graph neither.

        The whole is, where scales are per group or a tap watches it. Equal numbers.
        """
        if self._phase is not Phase.QUANTIZED or self.scale is None or self._taps:
            return self.constant(value)[rows, columns]
        granularity, scale, zero_point = self._spec().granularity, self.scale, cast(Tensor, self.zero_point)
        if isinstance(granularity, PerGroup):
            return self.constant(value)[rows, columns]
        if isinstance(granularity, PerAxis):
            own = rows if granularity.axis % 2 == 0 else columns
            scale, zero_point = scale[own], zero_point[own]
        return self._on_grid(value[rows, columns], scale, zero_point)

    def quantize(self, x: Tensor, *, clip: Clip | None = None, constant: bool = False) -> Tensor:
        """`x` on the grid, in whatever phase the site is: as forward() quantizes, or constant() if `constant`.

        Clamped only, where the policy leaves the site float or convert had it named unused. Observes nothing, and no
        tap sees it. Raises PhaseError for a site whose grid is not computed yet.
        """
        if self.scale is None:
            if self.spec is not None and not self.state.converted:
                raise PhaseError(f"site {self.path!r} has no grid yet; run pyquant.calibrate and pyquant.convert first")
            return _clamp(x, clip)
        return self._quantize(_clamp(x, clip)) if constant else self._saturate(x, clip)

    def tap(self, tap: Tap) -> TapHandle:
        """Let `tap` watch or replace what passes this site, constants included: `with site.tap(watch): ...`.

        Several taps run in the order in which they were set, each on what the one before it left; the site observes and
        quantizes before all of them. A copy of the site has none. They are no part of an exported graph unless they are
        set while it is recorded.
        """
        handle = TapHandle(self, tap)
        self._taps = (*self._taps, handle)
        return handle

    def _tapped(
        self, x: Tensor, out: Tensor, clip: Clip | None = None, observed: Tensor | None = None, constant: bool = False
    ) -> Tensor:
        for handle in self._taps:
            replaced = handle.tap(self, x, out, clip=clip, observed=observed, constant=constant)
            out = out if replaced is None else replaced
        return out

    def scan(self, value: Tensor) -> None:
        """Observe a constant, unless it is the one that was observed last."""
        if self.observer is not None and not self._scanned.is_of(value):
            self.observer.reset()
            self.observe(value)
            self._scanned = TensorStamp(value)

    def forget(self) -> None:
        """Drop the statistics of a constant that has another value now; it is observed again when it is next seen."""
        if self.observer is not None:
            self.observer.reset()
        self._scanned = TensorStamp()

    def observe(self, x: Tensor) -> None:
        """Take `x` into the statistics."""
        assert self.observer is not None, f"float site {self.path!r} has nothing to observe"
        if x.dtype not in _OBSERVED:
            names = ", ".join(str(dtype) for dtype in _OBSERVED)
            raise InputError(f"site {self.path!r} got a tensor of {x.dtype}, expected one of {names}; cast the model")
        self.last_seen = next(_CLOCK)  # before: an update that fails may have been done in part
        try:
            self.observer.update(x)
        except SpecError as error:
            raise PolicyError(
                f"site {self.path!r} cannot have its format: {error}; give it another one by a rule"
            ) from error

    def compute_qparams(self) -> QParams | str | None:
        """The QParams of the statistics, or the reason why there are none and what to do about it.

        None for a format that needs none (block_site.py).
        """
        observer = self.observer
        assert observer is not None, f"site {self.path!r} has no statistics"
        if not observer.needs_data:
            return observer.qparams()
        if observer.elements == 0:
            if self.role.is_constant:
                return "its constant was never seen; the wrapper must pass it through const()"
            return (
                "saw no calibration data; run calibrate() with batches that reach it, or name it in convert(unused=...)"
            )
        if observer.non_finite:
            where = "its constant has" if self.role.is_constant else "saw"
            return (
                f"{where} {observer.non_finite} NaN or infinite of {observer.elements} values; repair the model or data"
            )
        lo, hi = (t.cpu().double() for t in observer.range())
        low, high = float(lo.min()), float(hi.max())
        if max(-low, high) >= _MASKED:
            return self._far(low, high)
        if not self.role.is_constant and max(-low, high) / (observer.spec.qmax - observer.spec.qmin) < _TINY:
            seen = "only zeros" if low == high == 0 else f"only values in [{low:.6g}, {high:.6g}]"
            return (
                f"saw {seen}, which gives no scale; calibrate with data that reaches it, or, where it is always so (a "
                f"block that was initialised to zeros), give it a range by a rule: {_FIXED_RULE.format(self.path)}, or "
                "leave it float by one"
            )
        return observer.qparams()

    def _far(self, low: float, high: float) -> str:
        """The message for a range that no model computes with."""
        what = f"has the range [{low:.6g}, {high:.6g}]"
        if self.role.is_kernel:
            return f"its constant {what}, and no trained weight is that large: the checkpoint is damaged; repair it"
        if self.role.is_constant:
            return (
                f"its constant {what}; if these are mask values use a finite fill such as -1e4, else repair the model"
            )
        return (
            f"{what}, which only mask values make, or a model that overflows (weights that are too large are named "
            f"here too); for a mask, the wrapper must observe the unmasked values alone (q(..., observed=...))"
        )

    def decide(self, qparams: QParams, how: str, *, final: bool = True) -> None:
        """Give the site its grid now: `qparams`, of whatever format, instead of what the policy and calibration would.

        `how` says where it comes from, in words for a user ("trained, in a gemma checkpoint"). Calibration and convert
        leave it as it is; it applies once the tree is quantized. Unless it is `final`, convert may still raise the
        scale of a row whose bias would not fit its integers (wrap/bias.py), and then the row is rounded to that.
        Raises PhaseError for a converted tree, PolicyError
        for a site that the policy leaves float or gives blocks.
        """
        if self.state.converted:
            raise PhaseError(f"site {self.path!r}: the tree is converted, and its grids are final; prepare it again")
        if not self.takes_grid:
            raise PolicyError(f"site {self.path!r} cannot take a grid: the policy gives it {self.spec or 'no format'}")
        self.adopt(qparams.spec, how)
        self.final = final
        self.set_qparams(qparams)

    def reformat(self, spec: QuantSpec, how: str) -> None:
        """Give the site another format than the policy's, and leave its range to calibration: what was observed stays.

        `how` says who chose it, in words for a user; it is saved with the tree, and loading gives the site this format
        again. Raises PhaseError for a converted tree and a site whose grid is decided, PolicyError for a site that the
        policy leaves float or gives blocks, and for another granularity than it has.
        """
        if self.state.converted or self.scale is not None:
            why = f"its grid is decided ({self.decided})" if not self.state.converted else "the tree is converted"
            raise PhaseError(f"site {self.path!r} stays as it is: {why}")
        if not self.takes_grid or self.observer is None or isinstance(spec, BlockSpec):
            raise PolicyError(f"site {self.path!r} is {self.spec or 'float'} by the policy, and cannot become {spec}")
        try:
            if self.role.known_range is not None:
                self.observer = _observer(self.role, spec, "fixed", {})
            else:
                self.observer = self.observer.recast(spec)
        except SpecError as error:
            raise PolicyError(f"site {self.path!r} cannot become {spec}: {error}") from error
        self.spec, self.decided = spec, how
        self._scanned = TensorStamp()  # a constant is looked at again: a search depends on the format

    @property
    def takes_grid(self) -> bool:
        """Whether it may have a grid: the policy does not leave it float, and gives it no blocks."""
        return self.spec is not None

    def adopt(self, spec: QuantSpec, how: str) -> None:
        """Take the format of a decided grid whose numbers follow (loading); see decide()."""
        self.spec, self.decided, self.observer = spec, how, None

    def set_qparams(self, qparams: QParams) -> None:
        """Store the numbers and let the statistics go."""
        assert qparams.spec == self.spec, f"site {self.path!r} is {self.spec}, got {qparams.spec}"
        self._buffers.update(scale=qparams.scale.clone(), zero_point=qparams.zero_point.clone())
        self._set_plain(observer=None, _scanned=TensorStamp())
        self._compute_ends()

    def _compute_ends(self) -> None:
        scale, zero_point = self._buffers["scale"], self._buffers["zero_point"]
        if scale is not None and zero_point is not None and scale.dim() == 0:
            spec, step, zero = self._spec(), float(scale), int(zero_point)
            self._set_plain(_ends=((spec.qmin - zero) * step, (spec.qmax - zero) * step))

    def clamp_of(self, clip: Clip | None) -> Clip | None:
        """The bounds of `clip` that are a clamp in this phase: all, but for those that saturation reaches first."""
        on_grid = self._phase is Phase.QUANTIZED and self.scale is not None
        return self._beyond(clip) if on_grid else clip

    def _beyond(self, clip: Clip | None) -> Clip | None:
        """The bounds of `clip` that lie inside the grid by more than a step, so that saturation does not reach them."""
        if clip is None:
            return None
        spec, (low_end, high_end), (low, high) = self._spec(), self._ends, clip
        step = (high_end - low_end) / (spec.qmax - spec.qmin)
        if self.decided:  # not made for this clip: where it rounds to the end of the grid, and nowhere else
            step /= 2
        return (
            None if low is None or low <= low_end + step else low,
            None if high is None or high >= high_end - step else high,
        )

    def _saturate(self, x: Tensor, clip: Clip | None) -> Tensor:
        return self._quantize(_clamp(x, self._beyond(clip)), self._spec().dtype.qmin)

    def _quantize(self, x: Tensor, qmin: int | None = None) -> Tensor:
        """On the grid. Constants stay in [-qmax, qmax] when symmetric; a value that is computed on the device saturates
        where its type does (`qmin`), one step further down, so that too is what the file computes."""
        return self._on_grid(x, cast(Tensor, self.scale), cast(Tensor, self.zero_point), qmin)

    def _on_grid(self, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int | None = None) -> Tensor:
        spec = self._spec()
        axis = getattr(spec.granularity, "axis", None)
        group = getattr(spec.granularity, "size", 0)
        return ops.fake_quantize(x, scale, zero_point, axis, group, spec.qmin if qmin is None else qmin, spec.qmax)

    def _spec(self) -> QuantSpec:
        assert self.spec is not None, f"site {self.path!r} is float"
        return self.spec

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Site:
        """Move with the model but keep float32 scales: `.half()` is about the model's dtype, not the grid's."""
        for name in ("scale", "zero_point"):
            old = self._buffers[name]
            if old is not None:
                new = fn(old)
                self._buffers[name] = new if new.dtype == old.dtype else old.to(new.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """The format goes into the metadata, for the tree that loads it (wrap/state_dict.py)."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # a caller's own dictionary has none
            destination._metadata.setdefault(prefix[:-1], {})["format"] = str(self.spec)

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self._compute_ends()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_taps": ()}

    def extra_repr(self) -> str:
        return f"{self.path}, {self.role.value}, {self.spec or 'float'}"


class TensorStamp:
    """A fingerprint that shows later whether tensors are the same: not replaced, edited in place, moved or cast.

    A copy or a pickle of it fits nothing. An edit through `.data` has no trace in torch and goes unseen; an inference
    tensor does not count its edits and never fits.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._marks = () if any(t.is_inference() for t in tensors) else tuple(map(_mark, tensors))

    def is_of(self, *tensors: Tensor) -> bool:
        """True when the stamp is of exactly these tensors as they are now."""
        marks = self._marks
        if not marks or len(marks) != len(tensors):
            return False
        for t, (seen, version, address, dtype, device) in zip(tensors, marks, strict=True):
            # A tensor that is `seen` is no inference tensor, so it has a version.
            if t is not seen or t._version != version or t.data_ptr() != address:
                return False
            if t.dtype != dtype or t.device != device:
                return False
        return True

    def __reduce__(self) -> tuple[type[TensorStamp], tuple[()]]:
        return TensorStamp, ()


def same_or(value: Tensor, other: Tensor) -> Tensor:
    """`value` where `other` has the same bits, so that no second copy of them is kept; else `other`."""
    if torch.compiler.is_compiling() or type(other) is not Tensor or other.is_meta:  # nothing to compare
        return other
    if value.shape != other.shape or value.dtype != other.dtype:
        return other
    bits = torch.int32 if value.dtype == torch.float32 else torch.int16
    if value.dtype.itemsize not in (2, 4) or not value.is_contiguous() or not other.is_contiguous():
        return other
    return value if torch.equal(value.detach().view(bits), other.detach().view(bits)) else other


def _mark(t: Tensor) -> tuple[Tensor, int, int, torch.dtype, torch.device]:
    """The tensor, kept alive, and what an edit, a move or a cast of it changes."""
    return t, t._version, t.data_ptr(), t.dtype, t.device


class TensorCache:
    """One tensor computed from others, kept until one of them changes. A copy or a pickle of it starts empty."""

    def __init__(self) -> None:
        self._stamp = TensorStamp()
        self._value: Tensor | None = None

    def get(self, inputs: tuple[Tensor, ...], build: Callable[[], Tensor]) -> Tensor:
        """The tensor that `build` makes of `inputs`, from the cache when none of them changed.

        Under torch.compile and torch.export it is built each time: tensors have no identity there. Equal numbers.
        """
        if torch.compiler.is_compiling():
            return build()
        if self._value is None or not self._stamp.is_of(*inputs):
            with torch.inference_mode(False), torch.no_grad():
                self._value = build().detach()
            self._stamp = TensorStamp(*inputs)
        return self._value

    def __reduce__(self) -> tuple[type[TensorCache], tuple[()]]:
        return TensorCache, ()


def _form(spec: QuantSpec) -> tuple[QuantSpec, int | None, int, int, int]:
    """The format, and what ops.fake_quantize takes of it for a value that is computed on the device: axis, group, the
    lowest integer of the type, qmax."""
    axis, group = getattr(spec.granularity, "axis", None), getattr(spec.granularity, "size", 0)
    return spec, axis, group, spec.dtype.qmin, spec.qmax


def _clamp(x: Tensor, clip: Clip | None) -> Tensor:
    return x if clip is None or clip == (None, None) else torch.clamp(x, *clip)


def _observer(role: Role, spec: QuantSpec, kind: str, params: Mapping[str, Any]) -> observe.Observer:
    known = role.known_range
    if known is not None:
        return observe.FixedObserver(spec, *known, grid=fixed_grid(role, spec))
    return observe.make(kind, params, spec, constant=role.is_constant)


@functools.lru_cache(maxsize=256)
def _require_observer(role: Role, spec: QuantSpec, kind: str, params: tuple[tuple[str, Any], ...]) -> None:
    """Raise SpecError where there is no such observer; asked once for the many sites of one rule."""
    _observer(role, spec, kind, dict(params))
