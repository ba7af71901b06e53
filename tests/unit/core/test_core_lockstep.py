# SPDX-License-Identifier: Apache-2.0
"""Calibrating a streamed tree block after block: the statistics of batch after batch, and the same errors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import pyquant
from pyquant import Policy, lifecycle, lockstep, tree_statistics
from pyquant.errors import CalibrationError
from pyquant.lockstep import Lockstep
from pyquant.policy import ObserverSpec, Rule
from pyquant.spec import UINT8, QuantSpec
from pyquant.stream import Stream
from pyquant.wrap import QModule, structure
from tests.unit.core.test_core_ranks import family


def data_of(name: str) -> tuple[nn.Module, list[Any]]:
    """Of llama with rows that padding shortens, which run one by one."""
    fp, data = family(name)
    if name == "llama":
        ids = torch.arange(30).reshape(3, 10)
        data = [{"input_ids": ids, "attention_mask": (ids % 10 < torch.tensor([[10], [4], [7]])).long()}, *data]
    return fp, data


def statistics(q: QModule) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for site in tree_statistics.running(q):
        assert site.observer is not None
        state = [getattr(site.observer, name) for name in site.observer.STATE]
        found[site.path] = [site.observer.batches, site.apart, site.last_seen > 0, *state]
    for module in q.all_qmodules():
        found |= {f"{module.path}#{name}": [getattr(module, name)] for name in module.COUNTS}
    return found


def differences(one: QModule, two: QModule) -> list[str]:
    wanted, got = statistics(one), statistics(two)
    assert list(wanted) == list(got)

    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

    return [path for path in wanted if not all(map(equal, wanted[path], got[path]))]


def policy_of(observer: str) -> Policy:
    if observer == "minmax":
        return Policy.preset("w8a8")
    made = ObserverSpec(observer, {})
    return Policy.preset("w8a8").with_rule(
        Rule("*", role="activation", spec=QuantSpec(UINT8), observer=made, optional=True)
    )


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma4"])
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_statistics_are_those_of_batch_after_batch(
    name: str, observer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every hidden state in a file, several waves or one."""
    monkeypatch.setattr(pyquant.stream, "_SMALL", 0)
    monkeypatch.setattr(lockstep, "_SMALL", 0)
    fp, data = data_of(name)
    whole = lifecycle.prepare(fp, policy_of(observer))
    lifecycle.calibrate(whole, data, progress=False)
    for most in (128, 2):
        monkeypatch.setattr(lockstep, "MOST", most)
        q = lifecycle.prepare(fp, policy_of(observer), stream=Stream(tmp_path, cache_gb=1e-7 if most == 2 else 1e-3))
        lifecycle.calibrate(q, data, progress=False)
        assert differences(whole, q) == []
        assert not [thread for thread in threading.enumerate() if thread.name == "pyquant call"]
    assert list(tmp_path.iterdir()) == []


def test_each_block_runs_all_batches_before_the_next(tmp_path: Path) -> None:
    fp, data = family("qwen")  # text alone, an image, two images, text alone
    q = lifecycle.prepare(fp, Policy.preset("w8a8"), stream=Stream(tmp_path))
    ran: list[str] = []
    towers = {tower.path: tower.modules for tower in structure.blocks(q)}
    for path, blocks in towers.items():
        for number, block in enumerate(blocks):
            block.register_forward_hook(lambda *_, place=f"{path} {number}": ran.append(place))
    lifecycle.calibrate(q, data, progress=False)
    small, large = sorted(towers, key=lambda path: "language" in path)
    wanted = [f"{path} {number}" for path, count in ((small, 2), (large, 4)) for number in range(len(towers[path]))
              for _ in range(count)]  # fmt: skip
    assert ran == wanted


def test_hidden_states_of_waiting_calls_lie_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "_SMALL", 0)
    fp, data = family("llama")
    kept: list[tuple[int, ...]] = []
    keep = Stream.keep

    def seen(stream: Stream, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        kept.append(tuple(value.shape))
        return keep(stream, value, dtype)

    q = lifecycle.prepare(fp, Policy.preset("w8a8"), stream=Stream(tmp_path, cache_gb=1e-9))
    monkeypatch.setattr(Stream, "keep", seen)
    lifecycle.calibrate(q, data, progress=False)
    layers = len(structure.blocks(q)[0].modules)
    assert len([shape for shape in kept if len(shape) == 3]) == layers * len(data)


@pytest.mark.parametrize("wrong", ["id", "nan", "batch", "interrupt", "iterator"])
def test_errors_name_the_batch_and_end_all_calls(wrong: str, tmp_path: Path) -> None:
    fp, data = family("llama")
    q = lifecycle.prepare(fp, Policy.preset("w8a8"), stream=Stream(tmp_path))
    embeds = q.get_submodule("model.embed_tokens").get_parameter("weight")[:5][None].clone()

    def batches() -> Iterator[Any]:
        yield from data[:2]
        if wrong == "id":
            yield {"input_ids": torch.full((1, 3), 9999)}
        elif wrong == "nan":
            embeds[0, 2, 1] = float("nan")
            yield {"inputs_embeds": embeds}
        elif wrong == "batch":
            yield 3
        elif wrong == "interrupt":
            raise KeyboardInterrupt
        else:
            raise OSError("the disk")
        yield from data[2:]

    expected: Any = {"interrupt": KeyboardInterrupt, "iterator": OSError}.get(wrong, CalibrationError)
    text = {
        "id": "batch 2: the model raised InputError: id 9999",
        "nan": "batch 2 made NaN or Inf",
        "batch": "batch 2 is a int",
        "iterator": "the disk",
    }.get(wrong)
    with pytest.raises(expected, match=text):
        lifecycle.calibrate(q, batches(), progress=False)
    assert not [thread for thread in threading.enumerate() if thread.name == "pyquant call"]
    assert not [block for tower in structure.blocks(q) for block in tower.modules if block._forward_pre_hooks]
    assert q.state.broken is not None
    with pytest.raises(CalibrationError, match="the calibration of this tree is broken: "):
        lifecycle.convert(q)


def test_an_error_within_a_block_ends_the_others_where_they_wait(tmp_path: Path) -> None:
    fp, data = family("llama")
    q = lifecycle.prepare(fp, Policy.preset("w8a8"), stream=Stream(tmp_path))
    block = structure.blocks(q)[0].modules[1]
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("third")

    handle = block.register_forward_hook(fail)
    with pytest.raises(CalibrationError, match="batch 2: the model raised ValueError: third"):
        lifecycle.calibrate(q, data, progress=False)
    handle.remove()
    assert q.state.broken == "batch 2 failed with ValueError: third"
    assert not [thread for thread in threading.enumerate() if thread.name == "pyquant call"]


def test_what_cannot_go_block_by_block_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fp, data = family("llama")
    whole = lifecycle.prepare(fp, policy_of("ema"))
    lifecycle.calibrate(whole, data, progress=False)
    q = lifecycle.prepare(fp, policy_of("ema"), stream=Stream(tmp_path))
    with caplog.at_level(logging.WARNING):
        lifecycle.calibrate(q, data, progress=False)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "calibrate reads the whole model once for each batch"
    ]
    assert "the observer ema, as of 'model" in caplog.text
    assert differences(whole, q) == []
    part = lifecycle.prepare(nn.Linear(4, 4), Policy.preset("w8a8"))
    assert "declares no list of blocks" in str(lockstep.obstacle(part))


def test_a_run_that_was_ended_goes_on_after_its_last_wave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "MOST", 4)
    monkeypatch.setattr(pyquant.calibrated, "EVERY", 0.0)
    fp, data = data_of("llama")
    whole = lifecycle.prepare(fp, policy_of("minmax"))
    lifecycle.calibrate(whole, data, progress=False)
    (tmp_path / "run").mkdir()

    class Ends(list[Any]):
        reads = 0

        def __iter__(self) -> Iterator[Any]:
            Ends.reads += 1
            yield from data[:5]
            if Ends.reads == 2:  # the first time is for checksums
                raise KeyboardInterrupt
            yield from data[5:]

    q = lifecycle.prepare(fp, policy_of("minmax"), stream=Stream(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        lifecycle.calibrate(q, Ends(data), progress=False, resume=tmp_path / "run")
    q = lifecycle.prepare(fp, policy_of("minmax"), stream=Stream(tmp_path))
    ran: list[int] = []
    call = lifecycle._run
    monkeypatch.setattr(lifecycle, "_run", lambda q, batch, number: (ran.append(number), call(q, batch, number)))
    lifecycle.calibrate(q, Ends(data), progress=False, resume=tmp_path / "run")
    assert ran == [4, 5]
    assert differences(whole, q) == []


def test_keys_and_values_go_behind_each_block_and_those_of_a_caller_stay(tmp_path: Path) -> None:
    fp, data = family("llama")
    assert fp.config.use_cache
    cache = DynamicCache()
    trees = []
    for stream in (None, Stream(tmp_path)):
        q = lifecycle.prepare(fp, Policy.preset("w8a8"), stream=stream)
        held: list[int] = []

        def look(_: Any, args: Any, kwargs: Any, held: list[int] = held) -> None:
            held.append(sum(layer.get_seq_length() for layer in kwargs["cache"].layers))

        for block in structure.blocks(q)[0].modules:
            block.register_forward_pre_hook(look, with_kwargs=True)
        lifecycle.calibrate(q, [*data, {**data[0], "past_key_values": (cache := DynamicCache())}], progress=False)
        trees.append(q)
        length, layers = data[0]["input_ids"].shape[1], len(structure.blocks(q)[0].modules)
        assert cache.get_seq_length() == length
        if stream is not None:
            assert [count for count in held if count] == [length * n for n in range(1, layers)]
    assert differences(*trees) == []


def test_few_calls_at_a_time_where_the_processor_has_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp, _ = family("llama")
    q = lifecycle.prepare(fp, Policy.preset("w8a8"), stream=Stream(tmp_path))
    for threads, most in ((1, 128), (16, 32), (512, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert Lockstep(q, Stream(tmp_path))._most == most
