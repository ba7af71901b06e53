# SPDX-License-Identifier: Apache-2.0
"""QModule: the base of all wrappers. A wrapper's children and sites are data; its forward is the model's arithmetic.

It owns building a tree over a float model without changing it, and routing values to sites. Which wrapper a class gets
is registry.py, how a phase changes is tree_state.py, the order prepare -> calibrate -> convert is lifecycle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyquant.block_site import BlockSite
from pyquant.errors import PhaseError, PolicyError, SpecError
from pyquant.policy import Policy
from pyquant.qparams import QParams
from pyquant.site import Clip, Phase, Role, Site, TensorCache, TensorStamp, TreeState
from pyquant.spec import BlockSpec
from pyquant.tree_state import Phased, phase, set_phase
from pyquant.wrap import registry
from pyquant.wrap.adapter import GraphAdapter, plain_graph
from pyquant.wrap.bias import BiasGrid, bias_bits, bias_scale, fake_quantize_bias
from pyquant.wrap.hf_facts import output_class
from pyquant.wrap.snapshot import Snapshot
from pyquant.wrap.state_dict import follow_state_dict

__all__ = ["Clip", "DataGap", "Phase", "QModule", "Role", "Site", "WrapContext", "phase", "set_phase"]


@dataclass(frozen=True)
class WrapContext:
    """A wrapper's place in the tree, and the policy that assigns formats to its sites.

    absent: tensors of the float model (by their names in it) that its checkpoint lacks and that mean nothing.
    settled: paths of sites whose grids follow (loading), which need no observers.
    """

    path: str
    policy: Policy
    state: TreeState = field(default_factory=TreeState)
    absent: frozenset[str] = frozenset()
    settled: frozenset[str] = frozenset()

    def child(self, name: str) -> WrapContext:
        """The context of the child `name`."""
        return replace(self, path=f"{self.path}.{name}" if self.path else name)

    def site(self, name: str, role: Role) -> Site:
        """A new site of the wrapper at this path. Raises PolicyError when its rule cannot apply to it."""
        assert name.isidentifier(), f"site name {name!r} of {self.path!r} is not an identifier"
        path = f"{self.path}:{name}"
        choice = self.policy.choose(path, role)
        if choice.rule is None or choice.rule.spec is None:
            return Site(path, role, None, state=self.state)
        rule = choice.rule
        try:
            if isinstance(rule.spec, BlockSpec):
                return BlockSite(path, role, rule.spec, state=self.state)
            observer, settled = rule.observer, path in self.settled
            return Site(
                path, role, rule.spec, observer=observer.kind, params=observer.params, state=self.state, settled=settled
            )
        except SpecError as error:
            raise PolicyError(
                f"rule #{choice.index} {rule} does not fit the {role.value} site {path!r}: {error}"
            ) from error


@dataclass(frozen=True)
class DataGap:
    """A part of a wrapper that has its grids, and saw little of the calibration data: `seen` rows, 0 for none.

    path: of the wrapper. text: what saw how much, and what to do.
    """

    path: str
    text: str
    seen: int

    def __str__(self) -> str:
        return f"{self.path or 'the model'}: {self.text}"


class QModule(Phased):
    """A wrapper of one float module.

    `CHILDREN`: attribute names of the float module that are wrapped through the registry (a ModuleList item by item,
    a ModuleDict entry by entry). One that is missing or None is an error, unless it is listed in `OPTIONAL` too; then
    the attribute is None here. `SITES`: site name -> role. `BIASES`: bias attribute -> (site of the input, site of
    the weight) whose scales make the bias' scale, and third, if there is one, the site of the output.
    `INFINITE`: buffers in which an infinity has a meaning (a bound that is none). `ACCEPTED`: parameters of HF's
    forward that this forward takes by `**kwargs` because they change nothing here; hf_contract.py checks every
    other one that it does not name. `COUNTS`: int64 tensors in which calibration counts; those of several processes
    are added up.

    A subclass calls `super().__init__(fp, ctx)` and then assigns the parameters, buffers and plain values of `fp` that
    it needs, the same objects. It never keeps `fp` itself. `fp` is None for a piece that has no module of its own.

    What a wrapper computes from tensors of `fp` (a folded kernel) it computes there too, once, and keeps a `snapshot`
    of those tensors, so that calibrate and convert notice weights which are edited or loaded into `fp` later.
    """

    CHILDREN: ClassVar[tuple[str, ...]] = ()
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    SITES: ClassVar[Mapping[str, Role]] = {}
    BIASES: ClassVar[Mapping[str, tuple[str, str] | tuple[str, str, str]]] = {}
    OUTPUT: ClassVar[type[Any] | None] = None  # what forward makes, unless HF's forward makes another class
    INFINITE: ClassVar[tuple[str, ...]] = ()
    UNTRACED: ClassVar[tuple[str, ...]] = ("path", "_context", "snapshot", "checked", "_bias_cache")
    ACCEPTED: ClassVar[tuple[str, ...]] = ()
    COUNTS: ClassVar[tuple[str, ...]] = ()
    # What algorithms must know, by dotted names of descendants (`*`: every entry of a list); names of optional modules
    # that are absent count for nothing. structure.py resolves them.
    SHARED: ClassVar[tuple[tuple[str, ...], ...]] = ()  # linears that multiply the same input
    FEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # norm -> all modules that read its output
    PAIRS: ClassVar[tuple[tuple[str, str], ...]] = ()  # (producer, consumer) linears, see pair_rows
    BLOCKS: ClassVar[str | None] = None  # the list of modules that run one after the other
    READS: ClassVar[tuple[str, ...]] = ()  # modules that read the residual stream
    WRITES: ClassVar[tuple[str, ...]] = ()  # modules whose output is added to it, or starts it
    WRITES_TO: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # owner of another stream -> modules that write to that

    fp_type: type[nn.Module] | None
    output_type: type[Any] | None
    path: str
    config: Any
    _context: WrapContext
    snapshot: Snapshot
    checked: dict[str, TensorStamp]  # of the whole tree, see finite.py
    _bias_cache: dict[str, TensorCache]

    def __init__(self, fp: nn.Module | None, ctx: WrapContext) -> None:
        super().__init__(ctx.state)
        fp_type = None if fp is None else type(fp)
        found = None if fp_type is None or self.OUTPUT is None else output_class(fp_type)
        self._set_plain(
            fp_type=fp_type,
            output_type=found or self.OUTPUT,
            path=ctx.path,
            config=getattr(fp, "config", None),
            _context=ctx,
            snapshot=Snapshot(),
            checked={},
            _bias_cache={name: TensorCache() for name in self.BIASES},
        )
        self.sites = nn.ModuleDict()
        for name, role in self.site_roles(fp).items():
            self.add_site(name, role)
        for name in self.CHILDREN:
            setattr(self, name, self._wrap_child(fp, name))
        for name in self.BIASES:
            self.register_buffer(f"{name}_scale", None, persistent=False)
        follow_state_dict(self)
        self.training = False

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        """The sites for this `fp`; where they depend on it (a norm without a gain), some of SITES are left out."""
        return cls.SITES

    def _wrap_child(self, fp: nn.Module | None, name: str) -> nn.Module | None:
        child = getattr(fp, name, None)
        ctx = self._context.child(name)
        if child is None:
            assert name in self.OPTIONAL, (
                f"{type(self).__name__} expects {type(fp).__name__}.{name} at {self.path!r}, which has none; "
                f"list it in OPTIONAL if that is allowed"
            )
            return None
        if type(child) is nn.ModuleList:
            return nn.ModuleList(registry.wrap(item, ctx.child(str(i))) for i, item in enumerate(child))
        if type(child) is nn.ModuleDict:
            return nn.ModuleDict({key: registry.wrap(item, ctx.child(key)) for key, item in child.items()})
        return registry.wrap(child, ctx)

    def add_site(self, name: str, role: Role) -> Site:
        """A site that depends on the float module's configuration; `__init__` of a subclass calls it."""
        assert name not in self.sites, f"{type(self).__name__} has two sites named {name!r}"
        site = self._context.site(name, role)
        self.sites[name] = site
        return site

    # --- values ---

    def q(self, name: str, x: Tensor, *, clip: Clip | None = None, observed: Tensor | None = None) -> Tensor:
        """`x` through the site `name`; see Site.forward."""
        sites: Any = self._modules["sites"]  # as self.sites[name], without torch's look-ups
        site: Site = sites._modules[name]
        if clip is None and (rounded := site.rounded(x)) is not None:
            return rounded
        out: Tensor = site(x, clip=clip, observed=observed)
        return out

    def const(self, name: str, value: Tensor) -> Tensor:
        """A value that does not depend on the model's inputs through the site `name`; see Site.constant.

        Cached by the identity of `value`: pass a parameter or buffer, not a fresh tensor per call.
        """
        sites: Any = self._modules["sites"]  # as self.sites[name], without torch's look-ups
        site: Site = sites._modules[name]
        return site.constant(value)

    def qbias(self, name: str, value: Tensor | None) -> Tensor | None:
        """The bias `name` of BIASES on the grid that input scale times weight scale gives: 32-bit integers for 8-bit
        inputs, 64-bit for 16-bit ones. Unchanged where that grid does not exist: one of the two sites is not in the
        QUANTIZED phase, float input or weight, 4-bit input, weight scales per group."""
        scale = self._buffers[f"{name}_scale"]
        if value is None or scale is None:
            return value
        sites: Any = self._modules["sites"]
        x_name, weight_name, *_ = self.BIASES[name]
        x: Site = sites._modules[x_name]
        weight: Site = sites._modules[weight_name]
        if x._phase is not Phase.QUANTIZED or weight._phase is not Phase.QUANTIZED:
            return value
        spec = x.spec
        assert spec is not None
        bits = bias_bits(spec)
        if self.state.explicit or (self.training and torch.is_grad_enabled()):
            return fake_quantize_bias(value, scale, bits)
        cache = self._bias_cache[name]
        return cache.get((value, scale), lambda: fake_quantize_bias(value, scale, bits))

    def fit_biases_(self, grids: dict[Site, QParams]) -> list[str]:
        """Raise the weight scales in `grids` (site -> what convert is about to store) where a bias needs it.

        See wrap/bias.py. Returns a line for each bias that fits no scale, with the path of its weight's site. A weight
        scale that is decided for good (Site.decide) is not raised: a bias that needs it is such a line.
        """
        problems = []
        for name, (input_site, weight_site, *output_site) in self.BIASES.items():
            bias, site = getattr(self, name), self.site(weight_site)
            x, weight = grids.get(self.site(input_site)), grids.get(site)
            scale = bias_scale(x, weight)
            if bias is None or scale is None or scale.shape not in ((), bias.shape):
                continue
            if site.observer is None and site.scale is None:
                continue
            assert x is not None
            assert weight is not None
            out = grids.get(self.site(output_site[0])) if output_site else None
            empty = torch.zeros_like(scale, dtype=torch.bool) if site.observer is None else site.observer.empty()
            fitted = BiasGrid(bias, x, weight, empty, out).fit()
            if site.observer is None and site.final and isinstance(fitted, QParams) and fitted is not weight:
                fitted = (
                    f"the bias beside it does not fit 32 (64) bits with this grid, which is decided ({site.decided}): "
                    "leave its input or its weight float by a rule"
                )
            if isinstance(fitted, str):
                problems.append(f"{site.path}: {fitted}")
            else:
                grids[site] = fitted
        return problems

    def compute_bias_scales(self) -> None:
        """Compute the scales of the biases that this module has, when the sites have theirs."""
        for name, (input_site, weight_site, *_) in self.BIASES.items():
            scale = None
            if getattr(self, name) is not None:
                scale = bias_scale(self.site(input_site).qparams, self.site(weight_site).qparams)
            self._buffers[f"{name}_scale"] = scale

    def constants(self) -> Mapping[str, Tensor]:
        """Site name -> value of every constant that exists without running the model; prepare scans them.

        The default finds the sites of a constant role that share their name with a parameter or buffer. A parameter or
        buffer listed here is used through its site only: of a quantized one, checkpoints keep just the integers.
        """
        found = {}
        for name, site in self.own_sites():
            value = getattr(self, name, None)
            if site.role.is_constant and isinstance(value, Tensor):
                found[name] = value
        return found

    def data_gaps(self) -> list[DataGap]:
        """What calibration reached too little for its grids to be trusted; convert names it. For a wrapper whose parts
        see different data (experts)."""
        return []

    def pair_rows(self, producer: str, consumer: str) -> tuple[Tensor | None, int | None]:
        """For a pair of PAIRS: the producer's row whose output each column of the consumer multiplies (in_features,)
        int64, None where they are in the same order; and the size of a head for values of attention, else None."""
        return None, None

    def loaded(self) -> None:
        """Compute what follows from this wrapper's own tensors, which are new: after load_state_dict, loading a
        checkpoint and convert."""
        if self.state.converted:
            self.compute_bias_scales()

    # --- the tree ---

    def site(self, name: str) -> Site:
        """The own site `name`."""
        site = self.sites[name]
        assert isinstance(site, Site)
        return site

    def own_sites(self) -> Iterator[tuple[str, Site]]:
        """(name, site) of this module, without its children's."""
        for name, site in self.sites.items():
            assert isinstance(site, Site)
            yield name, site

    def all_sites(self) -> Iterator[Site]:
        """Every site of the tree, this module's first."""
        for module in self.all_qmodules():
            for _, site in module.own_sites():
                yield site

    def uncalibrated_sites(self) -> list[Site]:
        """The sites, in tree order, that saw no data that gives them a grid; convert takes their paths as `unused`.

        None in a converted tree.
        """
        return [s for s in self.all_sites() if s.observer is not None and isinstance(s.compute_qparams(), str)]

    def all_qmodules(self) -> Iterator[QModule]:
        """Every wrapper of the tree, this one first: in the order of modules(), and each once."""
        seen: set[int] = set()
        todo: list[nn.Module] = [self]
        while todo:  # modules() makes names on its way, and goes through the sites, most modules of a tree
            module = todo.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            below = module._modules
            if isinstance(module, QModule):
                yield module
                below = {name: child for name, child in below.items() if name != "sites"}
            todo += [child for child in reversed(below.values()) if child is not None]

    @property
    def policy(self) -> Policy:
        """The policy that the tree was prepared with."""
        return self._context.policy

    @property
    def observes(self) -> bool:
        """Whether what passes is for statistics, so that padding must not be seen: in the CALIBRATE phase, and while an
        algorithm collects (TreeState.collecting)."""
        return self.phase is Phase.CALIBRATE or self.state.collects

    def run_block(self, block: nn.Module, run: Callable[..., Any], *given: Any) -> Any:
        """`run(block, *given)`, for one of BLOCKS or a part of one: of equal blocks a graph may record the first alone.

        run: a function without a closure. given: tensors and plain data, in tuples, dicts and named tuples; of tensors
        the block reads no others but its own. What comes back is made of tensors and None in the same way.
        """
        calls = self.state.calls
        return run(block, *given) if calls is None else calls.run(block, run, given)

    def require(self, phase: Phase, verb: str) -> None:
        """Raise PhaseError unless this module and all below it are in `phase`; `verb` is what the caller is about to
        do. CheckpointError for a file of a streamed tree that is not as it was (Stream.check)."""
        if self.state.stream is not None:
            self.state.stream.check()
        other = next((module for module in self.phased() if module.phase is not phase), None)
        if other is None:
            return
        steps = {
            Phase.CALIBRATE: "this needs a prepared tree that is not converted: pyquant.prepare(fp, policy)",
            Phase.QUANTIZED: "run pyquant.calibrate(q, batches) and pyquant.convert(q) first",
            Phase.FLOAT: "use pyquant.wrap.phase(q, Phase.FLOAT)",
        }
        if phase is Phase.QUANTIZED and self.state.converted:
            steps[phase] = "use pyquant.wrap.set_phase(q, Phase.QUANTIZED)"
        where = "" if other is self else f" (at {other.path!r})"
        raise PhaseError(
            f"{verb} before the tree is ready: {type(self).__name__} is in phase {other.phase.name}{where}, expected "
            f"{phase.name}; {steps[phase]}"
        )

    def require_unedited(self, verb: str) -> None:
        """Raise PhaseError where tensors of the float model changed that something in this tree was computed from."""
        if changed := [path for module in self.all_qmodules() for path in module.snapshot.changed()]:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise PhaseError(
                f"{verb}: {', '.join(map(repr, changed[:5]))}{more} of the float model changed after prepare (edited, "
                "moved, loaded or replaced), and this tree has kernels, bounds or grids that were computed from the "
                "values before; change the model first, then call pyquant.prepare again"
            )

    def as_export_module(self, profile: Any) -> GraphAdapter:
        """This wrapper as a static graph; `profile` is a GraphInterface, unless a wrapper with a profile of its own
        overrides it.

        Raises PhaseError before convert.
        """
        self.require(Phase.QUANTIZED, "export")
        return plain_graph(self, profile, type(self).__name__.removeprefix("Quant").lower())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QModule:
        """Move or cast this tree, and never the float model it shares parameters with.

        Torch writes into parameters in place; here each gets a new Parameter, tied ones one storage again.
        """
        fn = fn if isinstance(fn, _Once) else _Once(fn)
        self.snapshot = self.snapshot.after(fn)
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        scales = {f"{name}_scale": self._buffers.pop(f"{name}_scale", None) for name in self.BIASES}
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
            self._buffers.update({key: t if t is None else t.to(fn(t).device) for key, t in scales.items()})
        return self

    def extra_repr(self) -> str:
        return f"fp={self.fp_type.__name__}" if self.fp_type else ""


class _Once:
    """A function of tensors that gives the same result, not an equal one, for the same tensor."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        self._fn = fn
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, t: Tensor) -> Tensor:
        if id(t) not in self._seen:
            self._seen[id(t)] = (t, self._fn(t))
        return self._seen[id(t)][1]
