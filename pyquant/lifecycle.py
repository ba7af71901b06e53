# SPDX-License-Identifier: Apache-2.0
"""prepare -> calibrate -> convert: the three steps from a float model to one with scale and zero point at every site.

It owns the order of the steps and the errors that name sites. One site is site.py; saving is checkpoint.py.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyquant import autocast, lockstep, models, offloaded, tree_statistics, wrap
from pyquant import progress as shown
from pyquant.batch import call, describe, is_batch, tensors_in
from pyquant.calibrated import Progress
from pyquant.distributed import Group
from pyquant.errors import CalibrationError, CheckpointError, ModelError, PhaseError, PolicyError, UnknownModuleError
from pyquant.policy import Policy
from pyquant.qparams import QParams
from pyquant.site import Site
from pyquant.stream import Stream, watching
from pyquant.tree_state import TreeState
from pyquant.wrap import Phase, QModule, WrapContext, foreign, hf_contract, structure
from pyquant.wrap.computed import computed_weights
from pyquant.wrap.finite import non_finite
from pyquant.wrap.hf_facts import CACHE_NAMES
from pyquant.wrap.snapshot import Snapshot

__all__ = ["CalibrationWarning", "calibrate", "convert", "prepare"]

logger = logging.getLogger(__name__)


class CalibrationWarning(UserWarning):
    """Calibration data that gave every site a grid, and never reached a part of the model."""


def prepare(
    fp: nn.Module,
    policy: Policy,
    *,
    checkpoint: str | Path | None = None,
    requantize: bool = False,
    stream: Stream | None = None,
) -> QModule:
    """A new tree of wrappers that shares the weights of `fp`, in the CALIBRATE phase and eval mode.

    `fp` still runs and is not changed. Every weight and constant is scanned once, here; edit weights before, since what
    is computed from some of them (folded kernels, clip bounds) is computed here too. Layers of a quantization-aware
    checkpoint (transformers' `QuantizedLinear`, `QuantizedEmbedding`) keep the grids that they were trained with.

    checkpoint: the folder that the model was loaded from, where another tool quantized it. Of a quantization-aware
        Gemma: the scales of the KV cache, which transformers ignores, and which activation scales it lacks
        (transformers leaves these uninitialized). Of compressed-tensors, GPTQ and AutoRound (pyquant.interop.load): the
        integers and scales of each weight, and static scales of activations, of whatever width they are; a site that
        the policy leaves float stays float.
    requantize: quantize anew, as the policy says, those weights of `checkpoint` whose grid no file can hold (scales per
        group, columns in act-order) instead of raising.
    stream: for a model that is larger than memory (`pyquant.interop.load(folder, stream=stream)`): few of its weights
        are in memory at a time, here and in every later step; the results are the same bits. A model that accelerate
        offloads (`device_map` with "disk") gets one where none is given.

    Raises PolicyError for a rule
    that matches nothing and for weights that are computed on each call (wrap/computed.py); UnknownModuleError for a
    module without a wrapper, with the way out for those of other tools (torch.compile, DataParallel, PEFT, GPTQ);
    ModelError for weights that are quantized already in a way that pyquant does not read, and for a `checkpoint` that
    cannot be read; CalibrationError for NaN or Inf in a tensor that no quantized
    site looks at (one in a weight that has such a site is an error of convert). Warns of forward hooks and of forwards
    that were replaced on a module: wrappers do not run them.
    """
    if not isinstance(policy, Policy):
        raise PolicyError(f"prepare takes a Policy such as Policy.preset('w8a8'), got {policy!r}")
    if isinstance(fp, QModule):
        raise PhaseError(f"prepare takes a float model, got {type(fp).__name__}, which is already prepared")
    if not isinstance(fp, nn.Module):
        raise PhaseError(f"prepare takes a float model (an nn.Module), got {type(fp).__name__}")
    if advice := foreign.advice(type(fp)):
        raise UnknownModuleError(advice)
    if reason := foreign.stored_quantized(fp):
        raise ModelError(reason)
    if offloaded.is_offloaded(fp):
        stream = stream or Stream()
        fp = offloaded.present(fp, stream)
    if stream is not None:
        stream.guard(fp)
    _warn_of_hooks(fp)
    q = _with_grids(fp, policy, checkpoint, requantize, stream)
    policy.check_used(list(q.all_sites()))
    _scan(q)
    _check_finite(q, "prepare")
    return q.eval()


def _with_grids(
    fp: nn.Module, policy: Policy, checkpoint: str | Path | None, requantize: bool, stream: Stream | None
) -> QModule:
    """The tree, its grids decided where the checkpoint has some."""
    if checkpoint is None:
        return build(fp, policy, stream=stream)
    from pyquant.interop import decide, gemma_qat, reader  # they import transformers

    if (read := reader.reader_of(checkpoint)) is not None:
        q = build(fp, policy, stream=stream)
        decide.decide(q, read, requantize=requantize)
        return q
    folder = gemma_qat.GemmaFolder.read(checkpoint)
    q = build(fp, policy, folder.absent(fp), stream)
    folder.decide_caches(q)
    return q


def build(
    fp: nn.Module,
    policy: Policy,
    absent: frozenset[str] = frozenset(),
    stream: Stream | None = None,
    settled: frozenset[str] = frozenset(),
) -> QModule:
    """The tree of prepare and of loading, before any value was looked at. `absent`, `settled`: see WrapContext.

    Raises PolicyError for weights that are computed on each call, CompatibilityError for a release of transformers that
    the wrappers were not written for.
    """
    if computed := computed_weights(fp):
        more = [f"  ... and {len(computed) - 5} more"] if len(computed) > 5 else []
        raise PolicyError(
            f"{len(computed)} weights of the model are computed on each call (pruned, parametrized or normalized), "
            "which a quantized model cannot do; bake them in before prepare, each by its call:\n"
            + "\n".join([*(f"  {line}" for line in computed[:5]), *more])
        )
    models.load(map(type, fp.modules()))
    hf_contract.require(type(module) for module in fp.modules())
    with torch.random.fork_rng(devices=[]):  # a wrapper may build modules; the caller's random numbers stay as they are
        return wrap.wrap(fp, WrapContext("", policy, TreeState(stream=stream), absent, settled))


def calibrate(
    q: QModule,
    batches: Iterable[Any],
    *,
    progress: bool | None = None,
    resume: Path | None = None,
    group: Group | None = None,
) -> None:
    """Run `q` on every batch and let the sites see the values. May be called several times; what was seen adds up.

    A batch is a dict of keyword arguments, a tuple or list of positional ones, or one tensor. `progress`: None shows
    a bar on a terminal, True lines elsewhere too, False never. An autocast block around it has no effect.

    resume: a folder where the statistics are kept every 20 seconds, from which a run that was ended goes on with the
    same bits. All batches of a generator are kept in memory then.

    group: processes that all call this, each with the same tree and its own batches (docs/distributed.md). Afterwards
    each tree has the statistics of all the batches, bit for bit as if it had seen them alone.

    Raises CalibrationError for no batches, a batch of another type or one that the model fails on, and NaN or Inf at a
    site (path and batch number); PhaseError when `q` is not in the CALIBRATE phase, where the float model was edited
    after prepare in tensors that prepare computed others from, and at once when `q` is being calibrated or converted
    already. A batch that sites have seen in part (the model failed on it, Ctrl-C) or with NaN
    breaks the calibration of the whole tree: convert refuses it from then on. So does an error of `batches` itself, or
    Ctrl-C between two of them, once one batch was seen: the statistics are not those of the data that was given.
    RankError for an error of any process of the group, for one that has no batches or another tree;
    CalibrationError for an observer that depends on the order of batches (ema), which a group has not.
    """
    tree = _tree(q, "calibrate")
    with tree.state.exclusive("calibrate"), autocast.off(), torch.no_grad(), watching(tree.state.stream, tree):
        if group is None or group.size == 1:
            _calibrate(tree, batches, progress, resume)
            return
        with group.guard():
            _calibrate_ranks(tree, batches, progress, resume, group)


def _calibrate_ranks(
    q: QModule, batches: Iterable[Any], progress: bool | None, resume: Path | None, group: Group
) -> None:
    q.require(Phase.CALIBRATE, "calibrate")
    tree_statistics.require_mergeable(q)
    group.same("calibrate: the tree", tree_statistics.checksum(q))
    earlier = tree_statistics.set_aside(q)
    try:
        _calibrate(q, batches, progress if group.first else False, resume)
        tree_statistics.merge_ranks(q, group, earlier)
    except BaseException as error:
        q.state.broken = q.state.broken or str(error).partition("\n")[0]
        raise


def _calibrate(q: QModule, batches: Iterable[Any], progress: bool | None, resume: Path | None) -> None:
    q.require(Phase.CALIBRATE, "calibrate")
    q.state.require_intact("calibrate")
    if isinstance(batches, Tensor | Mapping | str):
        raise CalibrationError(
            f"calibrate takes an iterable of batches, got one {type(batches).__name__}; pass [batch] for a single batch"
        )
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise CalibrationError(
            f"calibrate takes an iterable of batches, got {type(batches).__name__}; pass a list or a data loader"
        )
    if absent := [name for name, weight in q.named_parameters() if weight.is_meta]:
        raise CalibrationError(
            f"{len(absent)} weights of the model have no data (device meta), the first is {absent[0]!r}: it was never "
            "loaded; load all of it, and start again from pyquant.prepare"
        )
    q.require_unedited("calibrate")
    if resume is not None and isinstance(batches, Iterator):
        batches = list(batches)
    kept = None if resume is None else Progress(q, _each(batches), resume)
    walk = _Walk(q, kept)
    stream = q.state.stream
    why = None if stream is None else lockstep.obstacle(q)
    if why is not None:
        logger.warning("calibrate reads the whole model once for each batch: %s", why)
    if stream is None or why is not None:
        walk.one_by_one(shown.bar(batches, desc="calibrate", unit="batch", show=progress, leave=None))
    else:
        walk.side_by_side(batches, stream, progress)
    if kept is not None:
        kept.after(walk.count, last=True)
    if not walk.count:
        raise CalibrationError(
            "calibrate got no batches: the iterable is empty (or a generator that was used up before)"
        )


class _Walk:
    """One call of calibrate: the batches through the tree, and what a batch broke. count: batches that came."""

    def __init__(self, q: QModule, kept: Progress | None) -> None:
        self._q, self._kept, self.count = q, kept, 0
        self._watched = [s for s in q.all_sites() if s.observer is not None and not s.role.is_constant]
        self._bad = {id(site) for site in _non_finite(self._watched)}

    def one_by_one(self, batches: Iterable[Any]) -> None:
        """Each batch through the whole tree, one after the other."""
        for number, batch in self._numbered(batches):
            self._q.require(Phase.CALIBRATE, f"batch {number} of calibrate")  # the batches may have changed it
            before = _last_seen(self._watched)
            try:
                _run(self._q, batch, number)
                self._require_finite(self._watched, number, batch)
            except BaseException as error:
                self._break(before, number, error)
                raise
            if self._kept is not None:
                self._kept.after(number + 1)

    def side_by_side(self, batches: Iterable[Any], stream: Stream, progress: bool | None) -> None:
        """All batches through one block after the other: the same statistics, and each weight is read once for all."""
        inside: dict[QModule, list[Site]] = {
            block: list(block.all_sites()) for tower in structure.blocks(self._q) for block in tower.modules
        }
        below = {id(site) for sites in inside.values() for site in sites}
        between = [site for site in self._watched if id(site) not in below]
        watched = {id(site) for site in self._watched}
        before = _last_seen(self._watched)

        def call(item: tuple[int, Any]) -> None:
            number, batch = item
            self._q.require(Phase.CALIBRATE, f"batch {number} of calibrate")
            if isinstance(batch, Mapping) and any(batch.get(name) is not None for name in CACHE_NAMES):
                steps.keep_cache()
            _run(self._q, batch, number)

        def after(item: tuple[int, Any], block: QModule | None) -> None:
            number, batch = item
            ran = [] if block is None else [site for site in inside[block] if id(site) in watched]
            self._require_finite(ran + between, number, batch)

        steps: lockstep.Lockstep[tuple[int, Any]] = lockstep.Lockstep(self._q, stream)
        with shown.bar(total=len(steps), desc="calibrate", unit="block", show=progress, leave=None) as bar:
            try:
                for wave in steps.run(self._numbered(batches), call, after, lambda block: _count(bar)):
                    if self._kept is not None:
                        self._kept.after(wave[-1][0] + 1)
                    before = _last_seen(self._watched)
                    bar.reset()
            except BaseException as error:
                self._break(before, steps.at[0] if steps.at else 0, error)
                raise

    def _numbered(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        for number, batch in enumerate(_whole(self._q, batches)):
            self.count = number + 1
            if self._kept is None or number >= self._kept.done:
                yield number, batch

    def _require_finite(self, sites: list[Site], number: int, batch: object) -> None:
        if bad := [site for site in _non_finite(sites) if id(site) not in self._bad]:
            raise CalibrationError(_non_finite_message(self._q, bad, number, batch))

    def _break(self, before: int, number: int, error: BaseException) -> None:
        """Sites have seen a batch in part: nothing good comes of them."""
        if _last_seen(self._watched) > before and self._q.state.broken is None:
            self._q.state.broken = _reason(number, error)


def convert(q: QModule, *, unused: Sequence[str] = ()) -> None:
    """Give each site its scale and zero point, and put the tree in QUANTIZED phase: all sites, or an error and none.

    A grid that is decided already (Site.decide) stays as it is. `unused` are globs over paths of sites that no graph
    will use; of these, the ones without a decided grid stay float. The scale of a weight is raised where the bias
    beside it would not fit its integers (wrap/bias.py).

    Raises CalibrationError that lists every site without data, with NaN or Inf, or with a degenerate range, and every
    weight whose bias no scale suits, and for a tree whose calibration is broken (see calibrate); PhaseError when `q` is
    converted already, was never prepared, or is being calibrated or converted, and where the float model was edited as
    calibrate refuses it. Warns with CalibrationWarning of a part
    that has grids and that no calibration data reached (an expert), and logs what fewer than some tens of rows reached.
    """
    tree = _tree(q, "convert")
    with tree.state.exclusive("convert"):
        _convert(tree, unused)


def _convert(tree: QModule, unused: Sequence[str]) -> None:
    if tree.state.converted:
        raise PhaseError("convert was already done for this tree; prepare the float model again to quantize it anew")
    tree.require(Phase.CALIBRATE, "convert")
    if tree.path:
        raise PhaseError(f"convert takes the tree that prepare returned, got its part {tree.path!r}")
    tree.state.require_intact("convert")
    tree.require_unedited("convert")
    _scan(tree)  # only what was edited since prepare
    _check_finite(tree, "convert")
    grids: dict[Site, QParams] = {}
    problems: list[str] = []
    total = 0
    for site in _used(list(tree.all_sites()), unused):
        found = site.compute_qparams() if site.scale is None else site.qparams
        if isinstance(found, str):
            problems.append(f"{site.path}: {found}")
        elif found is not None:
            grids[site] = found
        total += found is not None
    for module in tree.all_qmodules():
        problems += module.fit_biases_(grids)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise CalibrationError(f"convert: {len(problems)} of {total} sites have no usable range\n{listed}")
    for site, qparams in grids.items():
        site.set_qparams(qparams)
    finalize(tree)
    _name_gaps(tree)


def _name_gaps(q: QModule) -> None:
    """A warning for what no calibration data reached, a log record for what little of it reached."""
    gaps = [gap for module in q.all_qmodules() for gap in module.data_gaps()]
    for gap in gaps:
        if gap.seen:
            logger.warning("%s", gap)
    if none := [str(gap) for gap in gaps if not gap.seen]:
        more = f"\n  and {len(none) - 5} more" if len(none) > 5 else ""
        warnings.warn("convert: " + "\n  ".join(none[:5]) + more, CalibrationWarning, stacklevel=4)


def finalize(q: QModule) -> None:
    """The last step of convert and of loading: bias scales, no more looking at the float model, QUANTIZED phase."""
    q.state.converted = True
    for module in q.all_qmodules():
        module.loaded()
        module.snapshot = Snapshot()
    q.checked.clear()
    wrap.set_phase(q, Phase.QUANTIZED)


def _scan(q: QModule) -> None:
    for module in q.all_qmodules():
        for name, value in module.constants().items():
            if q.state.stream is not None:
                q.state.stream.touch(value)
            module.site(name).scan(value)


def _check_finite(q: QModule, verb: str) -> None:
    if bad := non_finite(q):
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise CalibrationError(
            f"{verb}: {len(bad)} tensor(s) without a quantized site have NaN or Inf, which would go into the file as "
            "they are; repair the model or its checkpoint\n" + "\n".join(f"  {line}" for line in bad[:20]) + more
        )


def _tree(q: Any, verb: str) -> QModule:
    if not isinstance(q, QModule):
        if advice := foreign.advice(type(q)):
            raise PhaseError(f"{verb} takes the tree that pyquant.prepare returned, but {advice}")
        raise PhaseError(f"{verb} takes the tree that pyquant.prepare(fp, policy) returned, got {type(q).__name__}")
    return q


def _count(bar: Any) -> None:
    """One block more; rows that run one by one are no other ones."""
    if bar.n < bar.total:
        bar.update()


def _require_batch(batch: object, number: int) -> None:
    if not is_batch(batch):
        raise CalibrationError(
            f"batch {number} is a {type(batch).__name__}; expected a dict of keyword arguments, a tuple or list of "
            f"positional arguments, or a tensor"
        )


def _run(q: QModule, batch: object, number: int) -> None:
    _require_batch(batch, number)
    try:
        call(q, batch)
    except (PolicyError, CheckpointError):  # about the format of a site, or a file of weights, not about this batch
        raise
    except Exception as error:
        raise CalibrationError(
            f"batch {number}: the model raised {type(error).__name__}: {error}; the batch was {describe(batch)}; "
            f"repair or leave it out, and start again from pyquant.prepare (some sites have seen it)"
        ) from error


def _whole(q: QModule, batches: Iterable[Any]) -> Iterator[Any]:
    """`batches`; one that ends with an error after a batch breaks the calibration."""
    number = 0
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except PhaseError:  # the batches call calibrate or convert on this tree, which was refused
            raise
        except BaseException as error:
            if number:
                text = str(error).partition("\n")[0]
                name = f"{type(error).__name__}{': ' if text else ''}{text}"
                q.state.broken = f"the batches ended with {name} after {number} of them"
            raise
        yield batch
        number += 1


def _each(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches for their checksums. Raises CalibrationError for one that is none."""
    for number, batch in enumerate(batches):
        _require_batch(batch, number)
        yield batch


def _last_seen(sites: Sequence[Site]) -> int:
    """When one of them observed something last."""
    return max((site.last_seen for site in sites), default=0)


def _reason(number: int, error: BaseException) -> str:
    """What broke the calibration: `batch 3 made NaN or Inf, ...`, `batch 3 failed with MemoryError: ...`, in a line."""
    cause = error.__cause__ if isinstance(error, CalibrationError) else error
    if cause is None:
        return str(error).partition(";")[0]
    text = str(cause).partition("\n")[0]
    return f"batch {number} failed with {type(cause).__name__}{': ' if text else ''}{text}"


def _warn_of_hooks(fp: nn.Module) -> None:
    """One warning for all that a caller hung on modules of `fp`; transformers' own hooks only record."""
    found = []
    for path, module in fp.named_modules():
        kinds = {"forward pre-hook": module._forward_pre_hooks, "forward hook": module._forward_hooks}
        what = [kind for kind, hooks in kinds.items() if not all(map(_records, hooks.values()))]
        what += ["own forward"] if "forward" in vars(module) else []
        found += [f"{repr(path) if path else 'the model itself'} ({kind})" for kind in what]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        warnings.warn(
            f"prepare does not take over {', '.join(found[:5])}{more}: a wrapper computes the class's own arithmetic. "
            f"Remove them before prepare if they matter to nothing; if they change values, the quantized model will "
            f"differ from this one",
            UserWarning,
            stacklevel=3,
        )


def _records(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")) == "transformers.utils.output_capturing"


def _non_finite(sites: Sequence[Site]) -> list[Site]:
    """The sites that saw NaN or Inf, in one transfer per device."""
    groups: dict[torch.device, list[tuple[Site, Tensor]]] = {}
    for site in sites:
        if site.observer is not None:
            groups.setdefault(site.observer.count.device, []).append((site, site.observer.count))
    bad = []
    for group in groups.values():
        flags = torch.stack([count[1] for _, count in group]).tolist()
        bad += [site for (site, _), flag in zip(group, flags, strict=True) if flag]
    return bad


def _non_finite_message(q: QModule, bad: list[Site], number: int, batch: object) -> str:
    first = sorted(bad, key=lambda site: site.last_seen)
    named = ", ".join(repr(site.path) for site in first[:3])
    more = f" and {len(first) - 3} sites after" if len(first) > 3 else ""
    broken = [name for name, weight in q.named_parameters() if not bool(weight.isfinite().all())]
    if broken:
        rest = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        return (
            f"batch {number} made NaN or Inf, first at site {named}{more}; the model itself has NaN or Inf in "
            f"{', '.join(map(repr, broken[:3]))}{rest}; repair the checkpoint, and start again from pyquant.prepare"
        )
    if any(weight.dtype == torch.float16 for weight in q.parameters()) and all(
        bool(value.isfinite().all()) for value in tensors_in(batch)
    ):
        return (
            f"batch {number} made NaN or Inf, first at site {named}{more}; the batch itself is finite and the model "
            f"computes in float16, whose largest value is 65504: the model overflows by itself. Load it in bfloat16 or "
            f"float32 and start again from pyquant.prepare"
        )
    return (
        f"batch {number} made NaN or Inf, first at site {named}{more}; repair or leave out that batch, and start again "
        f"from pyquant.prepare (this tree has seen it)"
    )


def _used(sites: list[Site], unused: Sequence[str]) -> list[Site]:
    """The quantized sites that no glob of `unused` names."""
    if isinstance(unused, str):
        unused = (unused,)
    for pattern in unused:
        if not any(fnmatchcase(site.path, pattern) for site in sites):
            raise CalibrationError(
                f"convert(unused=...): {pattern!r} matches no site; see policy.explain(q) for the paths"
            )
    return [s for s in sites if s.spec is not None and not any(fnmatchcase(s.path, pattern) for pattern in unused)]
