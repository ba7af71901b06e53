# SPDX-License-Identifier: Apache-2.0
"""Block by block: the same statistics as one pass of the whole model, without padding, and a run that goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant import ops
from pyquant.algorithms.block_inputs import record
from pyquant.algorithms.blocks import Block, run_blocks
from pyquant.algorithms.statistics import Moment, Moments
from pyquant.decision import Decision
from pyquant.errors import CalibrationError, CheckpointError, InputError, PhaseError
from pyquant.models.llama import example as llama
from pyquant.models.qwen3_vl import example as qwen
from pyquant.qparams import QParams
from pyquant.spec import BlockSpec
from pyquant.weight import Weight, weights
from pyquant.wrap import Phase, QModule, phase, structure
from tests.models import gemma4_model_tiny as gemma

torch.set_num_threads(1)
W4 = pyquant.Policy.preset("w4a16")


def llama_tree() -> tuple[QModule, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 256, (2, 9), generator=generator)} for _ in range(3)]
    return pyquant.prepare(llama.tiny_model(), W4), batches


def qwen_tree() -> tuple[QModule, list[Any]]:
    fp = qwen.tiny_model()
    images = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    text = {"input_ids": torch.arange(7)[None]}
    batches = [qwen.example_inputs(fp, images[:count]) for count in (1, 2)]
    return pyquant.prepare(fp, W4), [*batches, text]


def gemma_tree() -> tuple[QModule, list[Any]]:
    fp = gemma.conditional("e2b", audio=True)
    first = gemma.inputs([3, ("image", 2, 4), 2, ("audio", 18), 3], [9, ("image", 4, 4)], extra=2, patches=20)
    second = gemma.inputs([8], [5], seed=3)
    return pyquant.prepare(fp, W4), [first, second]


TREES: dict[str, Callable[[], tuple[QModule, list[Any]]]] = {
    "llama": llama_tree,
    "qwen": qwen_tree,
    "gemma4": gemma_tree,
}


def linears(q: QModule) -> list[Weight]:
    return [w for w in weights(q) if w.open and w.is_linear]


def whole_pass(q: QModule, batches: Sequence[Any]) -> dict[str, list[Moment | None]]:
    chosen = linears(q)
    moments = Moments(q, chosen)
    with torch.no_grad(), phase(q, Phase.FLOAT), moments.watching():
        for batch in batches:
            q(**batch)
    return {w.path: moments.of(w) for w in chosen}


class Nearest:
    """A solver: the grid of the largest value, and every integer up by one where it can, so that values change."""

    def __init__(self, fails_at: int = -1) -> None:
        self.seen: dict[str, list[Moment | None]] = {}
        self.blocks: list[str] = []
        self.fails_at = fails_at

    def __call__(self, block: Block) -> list[Decision]:
        if len(self.blocks) == self.fails_at:
            raise KeyboardInterrupt
        self.blocks.append(block.path)
        log = []
        for weight in block.weights:
            self.seen[weight.path] = block.moments.of(weight)
            spec = weight.spec
            assert isinstance(spec, pyquant.QuantSpec)
            rows = weight.value.float().abs().amax(dim=1) / spec.qmax
            grid = QParams(spec, rows.clamp(min=1e-6), torch.zeros(len(rows), dtype=torch.int32))
            whole = (weight.value.float() / grid.scale[:, None]).round().clamp(spec.qmin, spec.qmax - 1) + 1
            weight.decide(grid, "test", whole)
            log.append(Decision(weight.path, "test", 4, loss=0.5))
        return log


def bits(q: QModule) -> dict[str, Tensor]:
    return {w.path: w.integers for w in weights(q) if w.how}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_float_propagation_gives_the_statistics_of_one_pass(tree: Any) -> None:
    q, batches = tree()
    expected, solve = whole_pass(q, batches), Nearest()
    log = run_blocks(q, batches, solve)
    assert solve.seen.keys() == expected.keys()
    assert [entry.path for entry in log] == list(solve.seen)
    assert not linears(q)
    for path, moments in expected.items():
        for own, one in zip(solve.seen[path], moments, strict=True):
            assert (own is None) == (one is None), path
            if own is not None and one is not None:
                assert own.rows == one.rows, path
                torch.testing.assert_close(own.gram, one.gram, rtol=1e-4, atol=1e-5 * float(one.gram.abs().max()))
    assert q.phase is Phase.CALIBRATE
    assert not q.state.collects


def test_towers_are_solved_before_what_reads_them() -> None:
    q, batches = gemma_tree()
    solve = Nearest()
    run_blocks(q, list(reversed(batches)), solve, propagate="quantized")
    kinds = [path.split(".layers")[0] for path in solve.blocks]
    assert list(dict.fromkeys(kinds)) == [
        "model.vision_tower.encoder", "model.audio_tower", "model.language_model", "",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gemma4"])
def test_rows_of_padding_are_no_part_of_the_statistics(name: str) -> None:
    if name == "llama":
        q, _ = llama_tree()
        rows = [torch.arange(5), torch.arange(20, 29)]
        ids = torch.stack([torch.nn.functional.pad(row, (9 - len(row), 0), value=7) for row in rows])
        mask = torch.stack([torch.arange(9) >= 9 - len(row) for row in rows]).long()
        padded: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
        alone: list[dict[str, Tensor]] = [{"input_ids": row[None]} for row in rows]
    else:
        q, _ = gemma_tree()
        parts: list[list[Any]] = [[3, ("image", 2, 4), 2], [4, ("image", 2, 4)]]
        padded = gemma.inputs(*parts, extra=3, patches=12)
        keep = padded["attention_mask"].bool()
        alone = [
            {
                "input_ids": padded["input_ids"][n][keep[n]][None],
                "mm_token_type_ids": padded["mm_token_type_ids"][n][keep[n]][None],
                "pixel_values": padded["pixel_values"][n : n + 1, :8],
                "image_position_ids": padded["image_position_ids"][n : n + 1, :8],
            }
            for n in range(2)
        ]
    expected, solve = whole_pass(q, alone), Nearest()
    run_blocks(q, [padded], solve)
    compared = 0
    for path, moments in expected.items():
        for own, one in zip(solve.seen[path], moments, strict=True):
            if one is not None:
                assert own is not None
                if path != "lm_head:weight" and "patch_embedder" not in path:  # zeros there
                    assert own.rows == one.rows, path
                torch.testing.assert_close(own.gram, one.gram, rtol=1e-4, atol=1e-5 * float(one.gram.abs().max()))
                compared += 1
    assert compared >= 15


def first_output(into: dict[str, Tensor]) -> Any:
    def hook(module: Any, _: Any, out: Tensor) -> None:
        into.setdefault(module.path, out)

    return hook


@pytest.mark.parametrize("name", TREES)
def test_quantized_propagation_gives_what_the_decided_blocks_make(name: str) -> None:
    q, batches = TREES[name]()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    solve = Nearest()

    def both(block: Block) -> list[Decision]:
        if block.samples is not None:
            floats = block.samples.output(
                0,
                {w.path.rpartition(":")[0].removeprefix(f"{block.path}.") + ".weight": w.value for w in block.weights},
            )
            assert torch.equal(floats, block.samples.output(0))
            seen[block.path] = (block.samples.target(0), torch.zeros(0))
        log = solve(block)
        if block.samples is not None:
            seen[block.path] = (seen[block.path][0], block.samples.output(0))
        return log

    inside = tuple(f"{block.path}." for tower in structure.blocks(q) for block in tower.modules)
    run_blocks(
        q, batches, both, propagate="quantized", statistics="cross",
        choose=lambda w: w.open and w.is_linear and w.path.startswith(inside),
    )  # fmt: skip
    moments = [m for path in solve.seen if "layers.0" not in path for m in solve.seen[path] if m is not None]
    assert any(m.cross is not None and not torch.allclose(m.cross, m.gram) for m in moments)
    again, _ = TREES[name]()
    with (
        torch.no_grad(),
        phase(q, Phase.FLOAT),
        phase(again, Phase.FLOAT),
        q.state.collecting(),
        again.state.collecting(),
    ):
        for tree, which in ((again, 0), (q, 1)):
            captured: dict[str, Tensor] = {}
            handles = [
                module.register_forward_hook(first_output(captured))
                for module in tree.all_qmodules()
                if module.path in seen
            ]
            for batch in batches:
                tree(**batch)
            for handle in handles:
                handle.remove()
            last = {path.rpartition(".")[0]: path for path in seen}.values()
            for path in last:  # nothing is added after the last block
                torch.testing.assert_close(seen[path][which], captured[path], rtol=1e-4, atol=1e-4)


def test_cross_moments_are_float_rows_times_quantized_rows() -> None:
    q, batches = llama_tree()
    rows: dict[str, dict[str, list[Tensor]]] = {"float": {}, "quantized": {}}
    path = "model.layers.1.self_attn.q_proj:weight"
    solve = Nearest()
    run_blocks(q, batches, solve, propagate="quantized", statistics="cross")
    fresh, _ = llama_tree()
    first = {w.path: w for w in weights(q) if ".layers.0." in w.path}
    for kind in rows:
        with torch.no_grad(), phase(fresh, Phase.FLOAT):
            watched = next(w for w in weights(fresh) if w.path == path)
            handle = watched.watch(lambda _, seen: rows[kind].setdefault("x", []).append(seen))  # noqa: B023
            for batch in batches:
                fresh(**batch)
            handle.remove()
        for weight in weights(fresh):
            if weight.path in first:
                weight.replace(first[weight.path].value)
    f, x = (torch.cat(rows[kind]["x"]) for kind in rows)
    moment = solve.seen[path][0]
    assert moment is not None
    assert moment.cross is not None
    torch.testing.assert_close(moment.gram, x.T @ x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moment.cross, f.T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("propagate", "tree"), [("float", qwen_tree), ("quantized", llama_tree)])
def test_a_run_that_was_killed_at_any_block_goes_on_with_the_same_bits(
    tmp_path: Path, propagate: Any, tree: Callable[[], tuple[QModule, list[Any]]]
) -> None:
    q, batches = tree()
    log = run_blocks(q, batches, Nearest(), propagate=propagate)
    expected = bits(q)
    blocks = Nearest()
    run_blocks(tree()[0], batches, blocks, propagate=propagate, resume=tmp_path / "whole")
    assert len(blocks.blocks) == sum(len(tower.modules) for tower in structure.blocks(q)) + 1
    for killed in range(len(blocks.blocks)):
        folder = tmp_path / str(killed)
        with pytest.raises(KeyboardInterrupt):
            run_blocks(tree()[0], batches, Nearest(fails_at=killed), propagate=propagate, resume=folder)
        again, rest = tree()[0], Nearest()
        assert run_blocks(again, batches, rest, propagate=propagate, resume=folder) == log
        assert rest.blocks == blocks.blocks[killed:]
        found = bits(again)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[path], expected[path]) for path in expected)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    q, batches = llama_tree()
    run_blocks(q, batches, Nearest(), resume=tmp_path / "run", settings={"damp": 0.01})
    changed = [*batches[:2], {"input_ids": batches[2]["input_ids"] + 1}]
    with pytest.raises(CheckpointError, match=r"of a run with another data .*name another folder"):
        run_blocks(llama_tree()[0], changed, Nearest(), resume=tmp_path / "run", settings={"damp": 0.01})
    with pytest.raises(CheckpointError, match=r'another settings \(settings was .*"damp": 0.01.* is .*"damp": 0.02'):
        run_blocks(llama_tree()[0], batches, Nearest(), resume=tmp_path / "run", settings={"damp": 0.02})
    other = llama_tree()[0]
    linears(other)[0].replace(linears(other)[0].value * 2)
    with pytest.raises(CheckpointError, match="another model"):
        run_blocks(other, batches, Nearest(), resume=tmp_path / "run", settings={"damp": 0.01})
    file = tmp_path / "run" / "block_001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of the last tensor
    with pytest.raises(CheckpointError, match=r"its tensors are not those that were written.*remove this file"):
        run_blocks(llama_tree()[0], batches, Nearest(), resume=tmp_path / "run", settings={"damp": 0.01})
    file.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match=r"block_001.safetensors' cannot be used .*remove this file"):
        run_blocks(llama_tree()[0], batches, Nearest(), resume=tmp_path / "run", settings={"damp": 0.01})
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"has block_000.safetensors and no run\.json"):
        run_blocks(llama_tree()[0], batches, Nearest(), resume=tmp_path / "run")


def test_data_that_cannot_be_used_is_named() -> None:
    q, batches = llama_tree()
    with pytest.raises(CalibrationError, match="blocks got no batches"):
        run_blocks(q, [], Nearest())
    with pytest.raises(CalibrationError, match="got str"):
        run_blocks(q, ["text"], Nearest())
    with pytest.raises(InputError, match="batch 0 has a KV cache"):
        run_blocks(q, [{**batches[0], "past_key_values": object()}], Nearest())
    assert linears(q)
    run_blocks(q, batches, Nearest())
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    with pytest.raises(PhaseError, match="blocks before the tree is ready"):
        run_blocks(q, batches, Nearest())


def test_equal_masks_and_tables_are_kept_once() -> None:
    q, batches = llama_tree()
    with torch.no_grad(), phase(q, Phase.FLOAT):
        calls = record(q, batches, structure.blocks(q))[0]["model"]
    masks = {id(call.arguments[n][1]["attention_mask"].values) for call in calls for n in range(2)}
    assert len(calls) == 3
    assert len(masks) == 1
    assert all("cache" not in call.arguments[0][1] for call in calls)


def test_parts_of_the_data_that_reach_no_tower_leave_its_weights_without_moments() -> None:
    q, batches = qwen_tree()
    solve = Nearest()
    run_blocks(q, batches[2:], solve)
    visual = [path for path in solve.seen if ".visual." in path]
    assert len(visual) > 10
    assert all(solve.seen[path] == [None] for path in visual)


def test_a_solver_that_decides_blocks_of_ggml_cannot_go_on_from_files(tmp_path: Path) -> None:
    rule = pyquant.Rule("*q_proj:weight", role="weight", spec=BlockSpec("q8_0"))
    q = pyquant.prepare(llama.tiny_model(), pyquant.Policy((rule,), "blocks"))

    def solve(block: Block) -> Sequence[Decision]:
        for weight in block.weights:
            assert isinstance(weight.site.spec, BlockSpec)
            weight.decide_blocks(weight.site.spec, ops.quantize_blocks(weight.value, weight.site.spec.bits), "mine")
        return []

    with pytest.raises(InputError, match=r"weight 'model.layers.0.*:weight' is decided as blocks \(mine\), which the"):
        run_blocks(q, llama_tree()[1], solve, choose=lambda w: w.spec is not None, resume=tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.json"]
