# SPDX-License-Identifier: Apache-2.0
"""The table of per-layer embeddings in one graph, split by layers or rows, and beside the graphs for the host."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant import Policy, QuantSpec, Rule, models, wrap
from pyquant.decoder import row_table
from pyquant.decoder.row_table import RowTable
from pyquant.errors import CircleError, InputError, ProfileError
from pyquant.models import gemma4
from pyquant.models.gemma4 import table
from pyquant.models.request import Request, Sizes
from pyquant.spec import INT4, INT8, PerAxis, PerGroup, PerTensor
from pyquant.verify import Session
from pyquant.wrap import Phase, Role
from tests.models.gemma4_bundle_tiny import A, for_release, given, profile, tree

BEHIND = "per_layer_projection_s1"
OPTIONS = ("graph", "layers", "rows", "host")
TABLES: dict[str, QuantSpec] = {
    "tensor8": QuantSpec(INT8, symmetric=True, granularity=PerTensor()),
    "tensor4": QuantSpec(INT4, symmetric=True, granularity=PerTensor()),
    "row4": QuantSpec(INT4, symmetric=True, granularity=PerAxis(0)),
}


def text_of(q: Any) -> Any:
    return q.model.language_model


@pytest.fixture(scope="module")
def trees() -> dict[str, Any]:
    """Trees with per-layer tables of several formats; the rest is w8a16."""
    fp, first = tree("w8a16")
    made = {"tensor8": first}
    for name, spec in TABLES.items():
        if name not in made:
            rule = Rule("*embed_tokens_per_layer:weight", role=Role.EMBEDDING, spec=spec)
            q = pyquant.prepare(fp, Policy([*Policy.preset("w8a16").rules, rule]))
            pyquant.calibrate(q, [for_release(given("all", 1))], progress=False)
            pyquant.convert(q)
            made[name] = q
    return made


class TablesOnly:
    """A profile's graphs of the per-layer table, and the one behind it: what a bundle needs at least."""

    def __init__(self, option: Any, **more: Any) -> None:
        self.profile = profile(per_layer_table=option, **more)

    def graphs(self, q: Any) -> dict[str, Any]:
        graphs = self.profile.graphs(q)
        return {name: part for name, part in graphs.items() if name.startswith(table.NAME) or name == BEHIND}

    def manifest(self, q: Any) -> dict[str, Any]:
        entries = self.profile.manifest(q)
        return {**entries, "graphs": {name: entries["graphs"][name] for name in self.graphs(q)}}

    def files(self, q: Any) -> Any:
        return self.profile.files(q)


def rows_by_host(session: Session, ids: Tensor) -> Tensor:
    """What the host takes for the rows of `ids`."""
    host = SimpleNamespace(graphs=session.graphs, manifest=session.manifest)
    return gemma4.host.Gemma4Host.per_layer_tokens(host, session.run, ids)  # type: ignore[arg-type]


# A table with a scale a row has no form in a graph: its rows have no common grid.
CASES = [(name, option) for name in TABLES for option in OPTIONS if name != "row4" or option == "host"]


@pytest.mark.parametrize(("name", "option"), CASES)
def test_rows_are_those_of_the_tree(name: str, option: str, trees: Mapping[str, Any], tmp_path: Path) -> None:
    q = trees[name]
    own = text_of(q).embed_tokens_per_layer
    programs = pyquant.export_bundle(q, tmp_path / "out", TablesOnly(option, prefill_lengths=(8,)))
    count = own.num_embeddings
    ids = torch.tensor([[0, count - 1, count // 2, count // 2 - 1, 3, 3, 1, 2]])
    with Session(tmp_path / "out") as session:
        found = rows_by_host(session, ids)
        first = rows_by_host(session, ids[:, :1])
    expected = own(ids)
    step = float(own.site("act_out").scale)
    assert len(programs) - 1 == {"graph": 1, "layers": 2, "rows": 2, "host": 0}[option]
    if option == "host":  # the float rows; the graph that takes them rounds
        found, first = own.q("act_out", found), own.q("act_out", first)
        assert torch.equal(found, expected)
    assert (found - expected).abs().max() <= 1.01 * step
    assert torch.equal(first, found[:, :1])


def test_a_part_holds_nothing_of_the_others(trees: Mapping[str, Any], tmp_path: Path) -> None:
    sizes = {}
    for option in OPTIONS:
        programs = pyquant.export_bundle(trees["tensor8"], tmp_path / option, TablesOnly(option))
        sizes[option] = [program.size for name, program in programs.items() if name != BEHIND]
        assert sum(sizes[option]) < 1.1 * sizes["graph"][0] + 200
    assert max(sizes["layers"] + sizes["rows"]) < 0.6 * sizes["graph"][0]
    whole = text_of(trees["tensor8"]).embed_tokens_per_layer.weight.numel()
    assert whole <= (tmp_path / "host" / table.FILE).stat().st_size < whole + 1000


def test_rows_of_a_float_table(tmp_path: Path, trees: Mapping[str, Any]) -> None:
    own = text_of(trees["tensor8"]).embed_tokens_per_layer
    ids = torch.tensor([[5, 0]])
    with wrap.phase(own, Phase.FLOAT):
        row_table.save(tmp_path / "t.safetensors", own)
        entry = row_table.entry(own, "t.safetensors", output="rows", factor=own.factor)
        expected = own(ids)
    assert entry["numbers"] == "float32"
    assert torch.equal(RowTable(tmp_path / "t.safetensors", entry).run({"input_ids": ids})["rows"], expected)


def test_auto_splits_what_passes_2_gib(monkeypatch: pytest.MonkeyPatch, trees: Mapping[str, Any]) -> None:
    own = text_of(trees["tensor8"]).embed_tokens_per_layer
    bytes_ = row_table.bytes_of(own)
    assert bytes_ == own.weight.numel()
    assert row_table.bytes_of(text_of(trees["row4"]).embed_tokens_per_layer) == bytes_ // 2
    assert table.chosen("auto", own) == "graph"
    monkeypatch.setattr(table, "LIMIT", bytes_ // 3)
    assert table.chosen("auto", own) == "layers"
    assert table.parts("layers", own, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    count = own.num_embeddings
    assert [start for start, _ in table.parts("rows", own, 4)] == [count * i // 4 for i in range(4)]
    names = [name for name in profile().graphs(trees["tensor8"]) if name.startswith(table.NAME)]
    assert names == [f"{table.NAME}_layers{i}_{i + 1}" for i in range(4)]


def test_a_graph_past_2_gib_says_who_reads_it(monkeypatch: pytest.MonkeyPatch, trees: Mapping[str, Any]) -> None:
    own = profile(per_layer_table="graph")
    assert "readers" not in own.manifest(trees["tensor8"])["graphs"][table.NAME]
    monkeypatch.setattr(table, "LIMIT", 100)
    said = own.manifest(trees["tensor8"])["graphs"][table.NAME]["readers"]
    assert "larger than 2 GiB" in said
    assert "TICO" in said


@pytest.mark.parametrize("option", ["host", pytest.param("rows", marks=pytest.mark.slow)])
def test_a_session_generates_what_the_tree_does(option: str, tmp_path: Path) -> None:
    _, q = tree("w8a16")
    own = profile(
        per_layer_table=option, image_shapes=(A,), audio_lengths=(), prefill_lengths=(8,), append_lengths=(),
        max_seq_len=14,
    )  # fmt: skip
    pyquant.export_bundle(q, tmp_path / "out", own)
    inputs = given("image_first")
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 4}
    with Session(tmp_path / "out") as session:
        tokens = session.generate(**inputs, **options)
    assert torch.equal(tokens, q.generate(**inputs, **options))
    again = profile(per_layer_table="layers", image_shapes=(A,), prefill_lengths=(8,), max_seq_len=14)
    assert (tmp_path / "out" / table.FILE).exists() is (option == "host")
    assert again.files(q) == {}


def test_what_is_wrong_with_a_table_file(tmp_path: Path, trees: Mapping[str, Any]) -> None:
    q = trees["tensor8"]
    pyquant.export_bundle(q, tmp_path / "out", TablesOnly("host"))
    file, entry = tmp_path / "out" / table.FILE, json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert entry["files"][table.FILE]["bytes"] == file.stat().st_size
    rows = RowTable(file, entry["tables"][table.NAME])
    with pytest.raises(InputError, match=r"input_ids of the table 'per_layer_embedding.safetensors' are 0 to \d+, got"):
        rows.run({"input_ids": torch.tensor([[10**6]])})
    with pytest.raises(InputError, match="takes input_ids, integers; got x"):
        rows.run({"x": torch.tensor([[1]])})
    with pytest.raises(InputError, match=r"has rows of \(\d+, \d+\), the manifest says \(7, \d+\)"):
        RowTable(file, {**entry["tables"][table.NAME], "rows": 7})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CircleError, match=r"per_layer_embedding.safetensors' is not the file that was exported"):
        Session(tmp_path / "out")
    with pytest.raises(InputError, match="is no table"):
        RowTable(file, entry["tables"][table.NAME])
    file.unlink()
    with pytest.raises(CircleError, match=r"file 'per_layer_embedding\.safetensors' of the bundle is missing"):
        Session(tmp_path / "out")


def test_an_old_table_goes_with_its_bundle(tmp_path: Path, trees: Mapping[str, Any]) -> None:
    q = trees["tensor8"]
    for option in ("host", "graph"):
        pyquant.export_bundle(q, tmp_path / "out", TablesOnly(option))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        f"{table.NAME}.circle",
        f"{BEHIND}.circle",
    ]


def test_ids_behind_the_last_row_of_a_split_table() -> None:
    split = {"by": "rows", "parts": [[0, 3], [3, 6]]}
    with pytest.raises(InputError, match=r"has rows 0 to 5, got ids \[2, 6\]"):
        table.joined(lambda *_: {}, str, split, torch.tensor([[2, 6]]))


def test_options_that_cannot_be() -> None:
    with pytest.raises(ProfileError, match="per_layer_table is one of auto, graph, layers, rows, host, got 'disk'"):
        profile(per_layer_table="disk")
    with pytest.raises(ProfileError, match='layers="whole" has the model in a single graph, the per-layer table too'):
        profile(per_layer_table="host", layers="whole", prefill_lengths=())


def test_the_command_line_says_where_the_table_goes() -> None:
    fp, _ = tree("w8a16")
    made = gemma4.request.choose(fp.config, Request(per_layer_table="host"), [Sizes(20)])
    assert made.profiles.per_layer_table == made.settings["per_layer_table"] == "host"
    assert gemma4.request.choose(fp.config, Request(), [Sizes(20)]).profiles.per_layer_table == "auto"
    config = copy.deepcopy(fp.config)
    config.text_config.hidden_size_per_layer_input = 0
    with pytest.raises(ProfileError, match="a model without per-layer embeddings has no per_layer_table; leave it out"):
        gemma4.request.choose(config, Request(per_layer_table="host"), [Sizes(20)])
    for family in ("llama", "qwen3_vl"):
        config = models.by_name(family).example.tiny_model().config
        with pytest.raises(ProfileError, match="has no per_layer_table; leave it out"):
            models.by_name(family).requests.choose(config, Request(per_layer_table="host"), [Sizes(20)])


@pytest.mark.parametrize("axis", [PerAxis(1), PerGroup(1, 4)], ids=["columns", "groups"])
def test_a_format_that_the_file_has_no_form_for(axis: Any) -> None:
    fp = torch.nn.Embedding(6, 8)
    spec = QuantSpec(INT4, symmetric=True, granularity=axis)
    q = pyquant.prepare(fp, Policy([Rule("*", role=Role.EMBEDDING, spec=spec)]))
    pyquant.calibrate(q, [torch.tensor([1])], progress=False)
    pyquant.convert(q)
    with pytest.raises(ProfileError, match=r"use PerTensor\(\) or PerAxis\(0\)"):
        row_table.entry(q, "x", output="y", factor=1.0)
