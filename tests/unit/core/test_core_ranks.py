# SPDX-License-Identifier: Apache-2.0
"""A group of ranks: calibration of parts is calibration of the whole, and an error of one rank is an error of all.

Here ranks are threads with queues between them; processes under torchrun are tests/e2e/test_torchrun.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant import Policy, Recipe, lifecycle, observe, ops, tree_statistics
from pyquant.algorithms.statistics import Moments
from pyquant.distributed import Group
from pyquant.errors import InputError, RankError
from pyquant.models.llama import example as llama
from pyquant.models.qwen3_vl import example as qwen
from pyquant.oneshot import run
from pyquant.policy import ObserverSpec, Rule
from pyquant.recipe import Step
from pyquant.role import Phase, Role
from pyquant.spec import UINT8, QuantSpec
from pyquant.weight import weights
from pyquant.wrap import QModule, phase
from tests.models import gemma4_model_tiny as gemma
from tests.ranks import run_ranks

torch.set_num_threads(1)


@cache
def family(name: str) -> tuple[nn.Module, list[Any]]:
    """A tiny float model, and batches of which some reach only a part of it."""
    if name == "llama":
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(0, 256, (1 + n % 2, 5 + n), generator=generator) for n in range(5)]
        return llama.tiny_model(), [{"input_ids": ids} for ids in rows]
    if name == "qwen":
        fp = qwen.tiny_model()
        images = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(2)]
        text = [{"input_ids": torch.arange(start, start + 7)[None]} for start in (0, 9)]
        return fp, [text[0], *(qwen.example_inputs(fp, images[:count]) for count in (1, 2)), text[1]]
    first = gemma.inputs([3, ("image", 2, 4), 2, ("audio", 18), 3], [9, ("image", 4, 4)], extra=2, patches=20)
    return gemma.conditional("e2b", audio=True), [gemma.inputs([8], [5], seed=3), first, gemma.inputs([4], [6], seed=5)]


def parts(data: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [data[rank * len(data) // size : (rank + 1) * len(data) // size] for rank in range(size)]


def together(fp: nn.Module, recipe: Recipe, data: Sequence[Any], size: int) -> list[Any]:
    trees = [lifecycle.prepare(fp, recipe.policy) for _ in range(size)]
    own = parts(data, size)
    return run_ranks(size, lambda g: run(trees[g.rank], own[g.rank], recipe, progress=False, log=_ignore, group=g))


def _ignore(line: str) -> None:
    pass


def grids(q: QModule) -> dict[str, Any]:
    return {
        site.path: (site.spec, site.scale.tolist(), site.zero_point.tolist())
        for site in q.all_sites()
        if site.scale is not None and site.zero_point is not None
    }


OBSERVERS = {"minmax": {}, "percentile": {"lower": 0.5, "upper": 99.5}, "mse": {}}


@pytest.mark.parametrize(
    ("name", "size", "observer"),
    [
        ("llama", 3, "minmax"),
        ("llama", 3, "mse"),
        ("qwen", 2, "percentile"),
        *(
            pytest.param(name, size, observer, marks=pytest.mark.slow)
            for name, size in (("qwen", 2), ("gemma4", 2), ("gemma4", 3))
            for observer in OBSERVERS
        ),
    ],
)
def test_ranges_of_parts_are_those_of_the_whole_bit_for_bit(name: str, size: int, observer: str) -> None:
    fp, data = family(name)
    made = ObserverSpec(observer, OBSERVERS[observer])
    rule = Rule(
        "*",
        role="activation",
        spec=QuantSpec(UINT8),
        observer=made,
        optional=True,
    )
    recipe = Recipe.of(Policy.preset("w8a8").with_rule(rule))
    whole = lifecycle.prepare(fp, recipe.policy)
    kinds = [site.observer.KIND for site in whole.all_sites() if site.role is Role.ACTIVATION and site.observer]
    assert kinds
    assert set(kinds) == {observer}
    run(whole, data, recipe, progress=False)
    for q in together(fp, recipe, data, size):
        assert isinstance(q, QModule), q
        assert grids(q) == grids(whole)
        assert tree_statistics.checksum(q) == tree_statistics.checksum(whole)


@pytest.mark.slow
def test_a_rank_without_images_gets_the_ranges_of_the_others() -> None:
    fp, data = family("qwen")
    assert "pixel_values" not in data[0], "the first of four ranks sees text alone"
    recipe = Recipe.of(Policy.preset("w8a8"))
    whole = run(lifecycle.prepare(fp, recipe.policy), data, recipe, progress=False)
    first, *rest = together(fp, recipe, data, 4)
    assert grids(first) == grids(whole)
    assert all(grids(q) == grids(first) for q in rest)


def test_statistics_of_several_calls_add_up() -> None:
    fp, data = family("llama")
    rule = Rule("*", role="activation", spec=QuantSpec(UINT8), observer=ObserverSpec("percentile", {}), optional=True)
    policy = Policy.preset("w8a8").with_rule(rule)
    whole = lifecycle.prepare(fp, policy)
    lifecycle.calibrate(whole, data, progress=False)
    trees = [lifecycle.prepare(fp, policy) for _ in range(2)]

    def work(group: Group) -> None:
        q = trees[group.rank]
        lifecycle.calibrate(q, [data[group.rank]], progress=False, group=group)
        lifecycle.calibrate(q, data[2 + group.rank :: 2], progress=False, group=group)

    assert run_ranks(2, work) == [None, None]
    for q in trees:
        for site, other in zip(q.all_sites(), whole.all_sites(), strict=True):
            if site.observer is not None and other.observer is not None:
                assert site.observer.batches == other.observer.batches, site.path
                assert site.observer.elements == other.observer.elements, site.path
                for name in site.observer.STATE:
                    assert torch.equal(getattr(site.observer, name), getattr(other.observer, name)), site.path


STEPS: dict[str, tuple[str, Step]] = {
    "gptq": ("w4a16", Step("gptq", {})),
    "gptq block by block": ("w4a16", Step("gptq", {"propagate": "quantized", "alpha": 0.5})),
    "range_search": ("w8a8", Step("range_search", {})),
    "smooth": ("w8a8", Step("smooth", {"alpha": "search"})),
    "tune": ("w4a16", Step("tune", {"steps": 3})),
    "auto16": ("w8a8", Step("auto16", {"loss": 1e-4})),
    "some samples": ("w4a16", Step("gptq", {"samples": 2})),
}


QUICK = ("gptq block by block", "smooth", "some samples")


@pytest.mark.parametrize("step", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in STEPS])
def test_all_ranks_decide_the_same_by_all_the_data(step: str) -> None:
    fp, data = family("llama")
    preset, made = STEPS[step]
    recipe = Recipe("own", Policy.preset(preset), (made,))
    whole = run(lifecycle.prepare(fp, recipe.policy), data, recipe, progress=False)
    one, two = together(fp, recipe, data, 2)
    assert isinstance(one, QModule), one
    assert tree_statistics.checksum(one) == tree_statistics.checksum(two)
    seen = [(each.path, each.bits, each.rows) for each in one.state.log]
    assert seen == [(each.path, each.bits, each.rows) for each in two.state.log]
    if step != "auto16":  # each rank draws tokens of its own
        assert seen == [(each.path, each.bits, each.rows) for each in whole.state.log], "rows of all ranks"
        for own, other in zip(weights(one), weights(whole), strict=True):
            off = (own.value - other.value).abs().max() / other.value.abs().max()
            assert float(off) < 1 / 7, f"{own.path}: more than a step of rounding"
            assert torch.allclose(own.value, other.value), own.path


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["qwen", "gemma4"])
def test_towers_that_some_ranks_do_not_reach(name: str, step: str) -> None:
    fp, data = family(name)
    preset, made = STEPS[step]
    recipe = Recipe("own", Policy.preset(preset), (made,))
    whole = run(lifecycle.prepare(fp, recipe.policy), data, recipe, progress=False)
    for q in together(fp, recipe, data, len(data) if step != "some samples" else 2):
        assert isinstance(q, QModule), q
        if step != "auto16":
            assert [(e.path, e.rows) for e in q.state.log] == [(e.path, e.rows) for e in whole.state.log]


def test_second_moments_differ_by_the_rounding_of_their_sum() -> None:
    """Moments.merge: each rank's sum as good as gram_accumulate_ says, and one more rounding for each rank."""
    fp, _ = family("llama")
    generator = torch.Generator().manual_seed(1)
    data = [{"input_ids": torch.randint(0, 256, (2, 40), generator=generator)} for _ in range(6)]
    size = 3

    def moments_of(q: QModule, batches: Sequence[Any], group: Group | None) -> list[Tensor]:
        chosen = [weight for weight in weights(q) if weight.is_linear]
        moments = Moments(q, chosen)
        with torch.no_grad(), phase(q, Phase.FLOAT), moments.watching():
            for batch in batches:
                q(**batch)
        moments.merge(group)
        found = [moments.of(weight)[0] for weight in chosen]
        assert all(each is not None and each.rows == 480 for each in found)
        return [each.gram for each in found if each is not None]

    trees = [lifecycle.prepare(fp, Policy.preset("w4a16")) for _ in range(size)]
    whole = moments_of(lifecycle.prepare(fp, Policy.preset("w4a16")), data, None)
    found = run_ranks(size, lambda g: moments_of(trees[g.rank], parts(data, size)[g.rank], g))
    for one, *others in zip(whole, *found, strict=True):
        # |sum of x_i x_j| <= sqrt(H_ii H_jj) bounds the magnitudes; 80 rows a call, 6 calls, 3 ranks
        magnitude = (one.diagonal()[:, None] * one.diagonal()[None]).sqrt()
        for other in others:
            assert torch.equal(other, others[0]), "the same bits on every rank"
            assert bool(((other - one).abs() <= 2 * (80 + 6 + size) * 2**-24 * magnitude).all())


# --- errors ---


def failures(results: Sequence[Any], rank: int) -> str:
    """The one message that all ranks have."""
    for each in results:
        assert isinstance(each, RankError), each
        assert each.rank == rank
    assert len({str(each) for each in results}) == 1, results
    return str(results[0])


def calibrated(batches_of: Callable[[int], Any], size: int = 3, policies: Sequence[Policy] | None = None) -> list[Any]:
    fp, _ = family("llama")
    trees = [lifecycle.prepare(fp, (policies or [Policy.preset("w8a8")] * size)[rank]) for rank in range(size)]
    found = run_ranks(size, lambda g: lifecycle.calibrate(trees[g.rank], batches_of(g.rank), progress=False, group=g))
    for q in trees:
        if q.state.broken is None:
            assert not any(site.last_seen for site in q.all_sites() if not site.role.is_constant)
    return found


GOOD = [{"input_ids": torch.arange(6)[None]}]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_without_data_is_an_error_on_all(rank: int) -> None:
    text = failures(calibrated(lambda own: [] if own == rank else GOOD), rank)
    assert text.startswith(f"rank {rank}: calibrate got no batches")


@pytest.mark.parametrize("rank", [0, 2])
def test_a_batch_that_fails_is_an_error_on_all(rank: int) -> None:
    bad = [*GOOD, {"input_ids": torch.full((1, 3), 9999)}]
    results = calibrated(lambda own: bad if own == rank else GOOD)
    text = failures(results, rank)
    assert text.startswith(f"rank {rank}: batch 1: the model raised InputError")
    cause = results[rank].__cause__
    assert isinstance(cause, pyquant.PyquantError)
    assert not isinstance(cause, RankError), "the rank itself has the error with its cause"


def test_running_out_of_memory_and_an_error_of_the_data_have_their_class_in_the_message() -> None:
    def data(own: int) -> Any:
        yield GOOD[0]
        if own == 1:
            raise MemoryError("no room for 5 GiB")

    assert failures(calibrated(data), 1) == "rank 1: MemoryError: no room for 5 GiB"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_ends_is_named(rank: int) -> None:
    def data(own: int) -> Any:
        yield GOOD[0]
        if own == rank:
            raise SystemExit(3)

    results = calibrated(data)
    assert isinstance(results.pop(rank), SystemExit)
    text = failures(results, rank)
    assert text.startswith(f"rank {rank}: it ended without a word")


def test_ranks_with_another_model_policy_or_call_are_refused() -> None:
    fp, data = family("llama")
    other = copy.deepcopy(fp)
    with torch.no_grad():
        other.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] += 1e-3
    policy = Policy.preset("w8a8")
    trees = [lifecycle.prepare(model, policy) for model in (fp, other)]
    results = run_ranks(2, lambda g: lifecycle.calibrate(trees[g.rank], data, progress=False, group=g))
    assert "the tree differs from that of rank 0" in failures(results, 1)
    policies = [policy, policy, policy.with_rule(Rule("*:act_in", spec=None))]
    assert "the tree differs from that of rank 0" in failures(calibrated(lambda own: GOOD, policies=policies), 2)

    def mixed(group: Group) -> None:
        q = lifecycle.prepare(fp, Policy.preset("w4a16"))
        step = pyquant.algorithms.gptq if group.rank else pyquant.algorithms.smooth
        step(q, data, progress=False, group=group)

    assert "every rank must make the same calls" in failures(run_ranks(2, mixed), 1)


def test_a_moving_average_is_refused_since_ranks_have_no_order() -> None:
    rule = Rule("*", role="activation", spec=QuantSpec(UINT8), observer=ObserverSpec("ema", {}), optional=True)
    policy = Policy.preset("w8a8").with_rule(rule)
    text = failures(calibrated(lambda own: GOOD, policies=[policy] * 3), 0)
    assert "the observer ema" in text
    assert "order of the batches" in text


def test_a_step_that_takes_fewer_samples_than_there_are_ranks_says_so() -> None:
    fp, data = family("llama")
    recipe = Recipe("own", Policy.preset("w4a16"), (Step("gptq", {"samples": 2}),))
    text = failures(together(fp, recipe, data, 3), 2)
    assert "gptq takes 2 of the 5 samples of all ranks, and none of this one's 2" in text


def test_a_group_that_failed_stays_failed_and_a_group_of_one_does_nothing() -> None:
    def fails(group: Group) -> None:
        with group.guard():
            if group.rank == 1:
                raise ValueError("no")
            group.gather("never", 0)

    def work(group: Group) -> None:
        with pytest.raises(RankError, match="rank 1: ValueError: no"):
            fails(group)
        group.gather("again", 0)

    assert "rank 1: ValueError: no" in failures(run_ranks(2, work), 1)
    alone = run_ranks(1, lambda g: g.gather("one", 5))
    assert alone == [[5]]
    with pytest.raises(InputError, match="torchrun"):
        Group.of_torch()


def test_merged_histograms_do_not_depend_on_parts_or_order() -> None:
    """Bins are a function of the data: also where the range grows between parts, by far."""
    generator = torch.Generator().manual_seed(0)
    spec = QuantSpec(UINT8)
    values = (
        torch.randn(4000, generator=generator) * torch.logspace(-6, 6, 4000)[torch.randperm(4000, generator=generator)]
    )
    whole = observe.make("percentile", {}, spec)
    whole.update(values)
    for size in (2, 3, 7):
        pieces = list(values.chunk(size))
        for order in (range(size), reversed(range(size))):
            merged = observe.make("percentile", {}, spec)
            for index in order:
                one = observe.make("percentile", {}, spec)
                for piece in pieces[index].chunk(1 + index):
                    one.update(piece)
                merged.merge(one)
            assert torch.equal(merged.counts, whole.counts)
            assert torch.equal(merged.edges, whole.edges)
            assert merged.elements == whole.elements
    assert ops.histogram_percentile(whole.counts, whole.edges, 1.0, 99.0)[0] < 0
