# SPDX-License-Identifier: Apache-2.0
"""docs/from-tico.md has no name that does not exist: pyquant's names, sites, options, verbs and graphs, one by one.

Its two facts about decode are measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import pyquant
from pyquant._launch import program
from pyquant.cli import main as cli
from pyquant.cli import quantize
from pyquant.models import gemma4, qwen3_vl
from pyquant.verify import Session
from tests import checkpoints

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from-tico.md").read_text(encoding="utf-8")
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))
OURS = [row.split("|")[2] for row in PAGE.splitlines() if row.startswith("| ") and row.count("|") == 3]
"""The right columns of the tables, where every tick is a name of ours."""


def ours(pattern: str) -> list[str]:
    cells = [span for row in OURS for span in re.findall(r"`([^`\n]+)`", row)]
    prose = re.findall(r"`([^`\n]+)`", "\n".join(line for line in PAGE.splitlines() if not line.startswith("|")))
    return sorted({span for span in [*cells, *prose] if re.fullmatch(pattern, span)})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL, quantized after prompts alone: `bundle` has its prefill and decode graphs."""
    place = tmp_path_factory.mktemp("docs")
    checkpoints.qwen3_vl(place / "qwen")
    checkpoints.gemma4_vision(place / "gemma")
    checkpoints.picture(place / "a.png", 16, 24)
    return place


@pytest.fixture(scope="module")
def trees(place: Path) -> list[Any]:
    policy = pyquant.Policy.preset("w8a16")
    from pyquant.cli import checkpoints as loader

    return [pyquant.prepare(loader.load(str(place / name)), policy) for name in ("qwen", "gemma")]


@pytest.fixture(scope="module")
def bundle(place: Path, trees: list[Any]) -> Path:
    q = trees[0]
    lines = checkpoints.lines(place / "c.jsonl", {"image": "a.png", "prompt": "what is this ?"})
    pyquant.calibrate(q, pyquant.calibration.read(lines, place / "qwen"))
    pyquant.convert(q)
    profile = qwen3_vl.Profile(max_seq_len=40, image_grids=((1, 4, 6),), prefill_lengths=(32,))
    wanted = {"prefill_s32", "decode"}
    parts = {name: part for name, part in profile.graphs(q).items() if name in wanted}

    class Two:
        def graphs(self, q: Any) -> Any:
            return parts

        def manifest(self, q: Any) -> dict[str, Any]:
            written = profile.manifest(q)
            return {**written, "graphs": {name: written["graphs"][name] for name in parts}}

    pyquant.export_bundle(q, place / "bundle", Two())
    return place / "bundle"


@pytest.mark.parametrize("name", ours(r"pyquant(\.\w+)+"))
def test_a_python_name_exists(name: str) -> None:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return
    pytest.fail(f"{name} cannot be imported")


def test_sites_exist(trees: list[Any]) -> None:
    paths = [site.path for tree in trees for site in tree.all_sites()]
    named = [span for span in ours(r"[\w.]+:\w+") if not span.startswith("module")]
    assert len(named) > 25
    missing = [span for span in named if not any(f".{path}".endswith(f".{span}") for path in paths)]
    assert missing == []


def test_a_decoder_layer_has_as_many_sites_as_the_page_says(trees: list[Any]) -> None:
    (written,) = re.findall(r"decoder layer has (\d+) sites", PAGE)
    assert int(written) == sum(site.path.startswith("model.language_model.layers.0") for site in trees[0].all_sites())


def test_graphs_exist(trees: list[Any]) -> None:
    named = {
        span for row in OURS for span in re.findall(r"`([^`\n]+)`", row) if re.search(r"\{|^lm_head$|^decode$", span)
    }
    named |= {"token_embedding"}
    made: set[str] = set()
    for layers in ("stack", "per_layer"):
        profile = qwen3_vl.Profile(
            max_seq_len=40, image_grids=((1, 4, 6),), prefill_lengths=(32,), layers=layers, token_embedding="both"
        )
        made |= set(profile.graphs(trees[0]))
    numbers = {"{S}": "32", "{t}": "1", "{h}": "4", "{w}": "6", "{i}": "0"}
    for name in sorted(named):
        assert re.sub(r"\{\w\}", lambda found: numbers[found[0]], name) in made, (name, made)


def test_options_and_arguments_exist() -> None:
    parser = argparse.ArgumentParser()
    quantize.add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings}
    assert set(ours(r"--[\w-]+")) <= options
    fields = {field.name: field for field in dataclasses.fields(qwen3_vl.Profile)}
    calls = ours(r"Profile\(.*\)")
    assert len(calls) >= 4
    for span in calls:
        name, value = re.fullmatch(r"Profile\((\w+)=(.*)\)", span).groups()  # type: ignore[union-attr]
        assert name in fields
        if value != "...":
            qwen3_vl.Profile(max_seq_len=8, **{name: json.loads(value)})
    for layers in re.findall(r'`"(\w+)"`', PAGE):
        qwen3_vl.Profile(max_seq_len=8, layers=layers)
    assert gemma4.VisionProfile(grid=(2, 2)).shape == (1, 4)


def test_verbs_exist() -> None:
    for verb in ours(r"pyquant [a-z]+"):
        assert verb.split()[1] in cli.VERBS
    helped = subprocess.run([program(), "--help"], capture_output=True, text=True, check=True)
    for verb in ours(r"pyquant-circle [a-z]+"):
        assert f"{verb} " in helped.stdout
    for preset in ours(r"w\d+a\d+"):
        pyquant.Policy.preset(preset)


def test_past_and_new_share_their_grid(bundle: Path) -> None:
    graphs = json.loads((bundle / "manifest.json").read_text())["graphs"]

    def grid(graph: str, side: str, name: str) -> Any:
        return next(tensor["quant"] for tensor in graphs[graph][side] if tensor["name"] == name)

    for name in ("key_0", "value_0", "key_1", "value_1"):
        past = grid("decode", "inputs", f"past_{name}")
        assert past == grid("prefill_s32", "outputs", f"new_{name}") == grid("decode", "outputs", f"new_{name}")
        assert 0 < past["scale"][0] < 1


def test_the_decode_graph_reads_the_past(bundle: Path) -> None:
    session = Session(bundle)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        tensor["name"]: torch.randn(tensor["shape"], generator=generator) * 0.5
        for tensor in session.graphs["decode"]["inputs"]
    }
    inputs["attention_mask"].zero_()
    one = session.run("decode", inputs)["hidden_states"]
    other = session.run("decode", {k: -v if k.startswith("past_value") else v for k, v in inputs.items()})
    assert (one - other["hidden_states"]).abs().max() > 0.05
