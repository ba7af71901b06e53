# SPDX-License-Identifier: Apache-2.0
"""Bundles of Qwen3-VL on disk: every graph Circle = eager, the manifest, and Session's tokens = those of the tree."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_bundle_tiny import profile, tree
from qwen_model_tiny import A, C, batch
from torch import Tensor

import pyquant
from pyquant import circle
from pyquant.errors import CircleError, InputError
from pyquant.exporter import CircleProgram
from pyquant.exporter.registry import is_fake_quantize
from pyquant.models import qwen3_vl
from pyquant.verify import Session, compare
from pyquant.verify.tolerance import deep_faults, op_faults

POLICIES = ("w8a8", "w8a16", "w4a16")
GIVEN = {"image_grids": (A, C), "prefill_lengths": (14,), "max_seq_len": 18, "token_embedding": "both"}
SAID = {"text": (6,), "image_last": (3, A), "apart": (C, 3, A)}


@dataclass
class Bundle:
    """What export_bundle wrote and returned, and the inputs that a session gave each graph last."""

    q: Any
    fp: Any
    folder: Path
    profile: qwen3_vl.Profile
    programs: dict[str, CircleProgram]
    seen: dict[str, dict[str, Tensor]]

    def session(self) -> Session:
        return Session(self.folder, runtime="tico")

    def tokens(self, session: Session, given: dict[str, Any], **options: Any) -> Tensor:
        def run(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            self.seen[name] = inputs
            return session.run(name, inputs)

        found: Tensor = session.host.generate(run, **given, **options)
        return found


def write(folder: Path, policy: str, **changes: Any) -> Bundle:
    fp, q = tree(policy)
    own = profile(**{**GIVEN, **changes})
    return Bundle(q, fp, folder, own, pyquant.export_bundle(q, folder, own), {})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {policy: write(tmp_path_factory.mktemp(policy), policy) for policy in POLICIES}


@pytest.fixture(params=POLICIES)
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Bundle]) -> Bundle:
    return bundles[request.param]


def test_every_tensor_has_a_grid(bundle: Bundle) -> None:
    for name, program in bundle.programs.items():
        assert program.missing_qparams() == [], name
        file = circle.read(bundle.folder / f"{name}.circle")
        for tensor in file.tensors:
            if tensor.quantized:
                assert all(math.isfinite(scale) and scale > 0 for scale in tensor.scale), (name, tensor.name)
            else:
                assert tensor.dtype.lower() in ("int32", "int64", "bool"), (name, tensor.name, tensor.dtype)


def test_tokens_and_graphs(bundle: Bundle) -> None:
    """Session gives the tokens of the tree; and every graph, on its inputs, computes what its eager adapter does."""
    with bundle.session() as session:
        for prompt, pieces in SAID.items():
            given = batch(pieces)
            expected = bundle.q.generate(**given, max_new_tokens=4, do_sample=False)
            assert torch.equal(bundle.tokens(session, given, max_new_tokens=4), expected), prompt
    assert set(bundle.seen) | {"token_embedding"} == set(bundle.programs)
    bundle.seen["token_embedding"] = {"input_ids": torch.tensor([[1, 5, 66]], dtype=torch.int32)}
    parts = bundle.profile.graphs(bundle.q)
    for name, inputs in bundle.seen.items():
        part, _ = parts[name]
        report = compare(bundle.programs[name], part, inputs)
        assert op_faults(report) == [], f"{name}\n{report}"
        with qwen_float(bundle.q):
            adapter = bundle.programs[name].adapter
            out = adapter(*(inputs[key] for key in adapter.input_specs))
        reference = dict(zip(adapter.output_names, out if isinstance(out, tuple) else (out,), strict=True))
        assert deep_faults(bundle.programs[name], part, inputs, reference, report) == [], f"{name}\n{report}"


def test_sampling_over_the_files(bundles: dict[str, Bundle]) -> None:
    made, given = bundles["w8a16"], batch(SAID["apart"])
    options = {"do_sample": True, "top_k": 8, "temperature": 1.4, "repetition_penalty": 1.3, "eos_token_id": [65, 2]}
    with made.session() as session:
        for seed in (1, 2):
            torch.manual_seed(seed)
            expected = made.q.generate(**given, max_new_tokens=5, **options)
            assert torch.equal(session.generate(**given, max_new_tokens=5, seed=seed, **options), expected)
        with pytest.raises(InputError, match="cannot do this: num_beams=2"):
            session.generate(**given, num_beams=2)


class qwen_float:  # noqa: N801
    """The tree in its float phase, without gradients."""

    def __init__(self, q: Any) -> None:
        self.q = q

    def __enter__(self) -> None:
        self.before = self.q.phase
        self.no_grad = torch.no_grad()
        self.no_grad.__enter__()
        pyquant.wrap.set_phase(self.q, pyquant.wrap.Phase.FLOAT)

    def __exit__(self, *_: object) -> None:
        pyquant.wrap.set_phase(self.q, self.before)
        self.no_grad.__exit__(None, None, None)


def test_manifest(bundle: Bundle) -> None:
    written = json.loads((bundle.folder / "manifest.json").read_text())
    assert written["family"] == "qwen3_vl"
    assert written["cache"] == {
        "capacity": 17,
        "layout": "batch, kv_heads, tokens, head_dim",
        "layers": [{"kv_heads": 2, "head_dim": 16}] * 2,
    }
    assert written["rotary"]["mrope_section"] == [4, 3, 1]
    assert written["generation"] == {"eos_token_id": 65, "pad_token_id": 66}
    assert written["host"]
    assert set(written["graphs"]) == {path.stem for path in bundle.folder.glob("*.circle")}
    for name, graph in written["graphs"].items():
        assert graph["kind"] in ("vision", "token_embedding", "fusion", "prefill", "decode", "lm_head")
        for tensor in (*graph["inputs"], *graph["outputs"]):
            assert tensor["meaning"], (name, tensor)
            assert ("quant" in tensor) != (tensor["dtype"] == "int32"), (name, tensor)
    for tensor in written["graphs"]["decode"]["inputs"]:  # a cached key has the grid that it had when it was new
        if tensor["name"].startswith("past"):
            same = tensor["name"].replace("past", "new")
            for graph in ("prefill_s14", "decode"):
                new = next(out for out in written["graphs"][graph]["outputs"] if out["name"] == same)
                assert new["quant"] == tensor["quant"]


def test_what_one_graph_gives_the_next_takes(bundle: Bundle) -> None:
    """No host has to quantize again between the tower, the table, the join and what they are joined for."""
    graphs = json.loads((bundle.folder / "manifest.json").read_text())["graphs"]

    def quant(graph: str, name: str) -> Any:
        sides = graphs[graph]["inputs"] + graphs[graph]["outputs"]
        return next(t["quant"] for t in sides if t["name"] == name)

    fusion, prefill = "fusion_s14", "prefill_s14"
    assert quant(fusion, "text_embeds") == quant("token_embedding", "inputs_embeds")
    assert quant(fusion, "visual_embeds") == quant("vision_t1_h4_w4", "image_embeds")
    assert quant(prefill, "inputs_embeds") == quant(fusion, "inputs_embeds") == quant("decode", "inputs_embeds")
    for k in range(2):
        assert quant(fusion, f"visual_deepstack_{k}") == quant("vision_t1_h2_w2", f"deepstack_{k}")
        assert quant(prefill, f"deepstack_{k}") == quant(fusion, f"deepstack_{k}")
    assert quant("lm_head", "hidden_states") == quant("decode", "hidden_states")


def test_same_bytes(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    first = bundles["w8a16"]
    part, own = first.profile.graphs(first.q)["fusion_s14"]
    pyquant.export(part, own, name="fusion_s14").save(tmp_path / "again.circle")
    assert (tmp_path / "again.circle").read_bytes() == (first.folder / "fusion_s14.circle").read_bytes()


@pytest.mark.slow
def test_one_file_per_layer_and_several_rows(tmp_path: Path) -> None:
    changes = {"layers": "per_layer", "attention": "per_head", "batch_size": 2, "prefill_lengths": (10,)}
    made = write(tmp_path, "w8a16", **changes, image_grids=(C,), token_embedding="dynamic")
    names = {path.stem for path in tmp_path.glob("*.circle")}
    assert {"prefill_s10_layer0", "prefill_s10_layer1", "decode_layer0", "decode_layer1"} <= names
    given = batch((1, C, 2), (C, 2, C), side="left")
    expected = made.q.generate(**given, max_new_tokens=3, do_sample=False)
    with made.session() as session:
        assert torch.equal(made.tokens(session, given, max_new_tokens=3), expected)
    parts = made.profile.graphs(made.q)
    for name in ("prefill_s10_layer0", "decode_layer1", "fusion_s10"):
        report = compare(made.programs[name], parts[name][0], made.seen[name])
        assert op_faults(report) == [], f"{name}\n{report}"


def test_the_whole_model_in_one_file(tmp_path: Path) -> None:
    made = write(tmp_path, "w8a8", layers="whole", prefill_lengths=(), max_seq_len=12, image_grids=(A, C))
    program = made.programs["model"]
    assert program.missing_qparams() == []
    nodes = [node for node in program.traced.nodes if is_fake_quantize(node)]
    used = Counter(program.traced.lifted[str(node.args[1])][1].data_ptr() for node in nodes)
    for site in made.q.model.all_sites():
        assert site.scale is not None
        count = used.pop(site.scale.data_ptr(), 0)
        if site.path.startswith("model.language_model.norm:"):
            assert not count  # it is in lm_head
            continue
        frames = ".attn.core:" in site.path  # attention runs once for each length of a frame, and without a mask
        expected = 0 if frames and "mask" in site.path else 2 if frames else 1
        assert count == expected, f"{site.path} has {count} nodes"
    assert not used
    adapter = made.q.model.as_export_module(program.profile)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.randint(0, 60, (1, 12), generator=generator, dtype=torch.int32),
        "pixel_values": torch.randn(adapter.input_specs["pixel_values"].shape, generator=generator),
        "visual_index": torch.tensor([[0, 1, 12, 13, 14, 15, 6, 16, 8, 9, 10, 11]], dtype=torch.int32),
        "attention_mask": torch.full((12, 12), -1e4).triu(1)[None, None],
        "cos": torch.rand(1, 12, 16, generator=generator) * 2 - 1,
        "signed_sin": torch.rand(1, 12, 16, generator=generator) * 2 - 1,
    }
    report = compare(program, made.q.model, inputs)
    assert op_faults(report) == [], report
    assert made.programs["lm_head"].missing_qparams() == []
    given = batch((1, A, C))
    expected = made.q.generate(**given, max_new_tokens=3, do_sample=False)
    with made.session() as session:
        assert session.manifest["host"][-1].startswith("the new token stands at the next place")
        assert torch.equal(session.generate(**given, max_new_tokens=3), expected)


# --- what a session refuses ---


def test_session_refuses(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    made = bundles["w8a16"]
    with pytest.raises(InputError, match="'luci' is not known"):
        Session(made.folder, runtime="luci")  # type: ignore[arg-type]
    with pytest.raises(CircleError, match="is no bundle"):
        Session(tmp_path)
    session = made.session()
    with pytest.raises(InputError, match=r"no vision graph for the grid \(1, 2, 6\)"):
        session.generate(**batch((2, (1, 2, 6))), max_new_tokens=2)
    with pytest.raises(InputError, match="no graph 'prefill_s9'"):
        session.run("prefill_s9", {})
    with pytest.raises(InputError, match=r"takes the inputs \['hidden_states'\]"):
        session.run("lm_head", {"hidden": torch.zeros(1, 1, 24)})
    with pytest.raises(InputError, match=r"expected torch.float32 \[1, 1, 24\]"):
        session.run("lm_head", {"hidden_states": torch.zeros(1, 2, 24)})
    with pytest.raises(InputError, match=r"expected torch.int32 \[1, 'any'\]"):
        session.run("token_embedding", {"input_ids": torch.zeros(2, 2, dtype=torch.int32)})
    specs = made.programs["fusion_s14"].adapter.input_specs
    inputs = {name: spec.example() for name, spec in specs.items()}
    inputs["visual_index"] += 28
    with pytest.raises(InputError, match=r"'visual_index' has the value 28 at .*, out of the range 0 to 27"):
        session.run("fusion_s14", inputs)


def test_a_file_that_is_not_the_one(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    for path in bundles["w8a16"].folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Session(tmp_path)
    broken = tmp_path / "decode.circle"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    with pytest.raises(CircleError, match="is not the file that was exported"):
        Session(tmp_path)
    broken.unlink()
    with pytest.raises(CircleError, match="graph 'decode' of the bundle is missing"):
        Session(tmp_path)
    manifest = tmp_path / "manifest.json"
    written = json.loads(manifest.read_text())
    for outside in ("../decode.circle", str(bundles["w8a16"].folder / "decode.circle"), "x/decode.circle"):
        written["graphs"]["decode"]["file"] = outside
        manifest.write_text(json.dumps(written))
        with pytest.raises(CircleError, match="which is no file of its folder"):
            Session(tmp_path)
    for edit in ({"files": 3}, {"tables": {"t": {}}}, {"tables": []}, {"graphs": {"decode": {}}}, {"graphs": {"a": 1}}):
        manifest.write_text(json.dumps({**written, "graphs": {}, **edit}))
        with pytest.raises(CircleError, match="does not say which files the bundle has"):
            Session(tmp_path)
    manifest.write_text("{}")
    with pytest.raises(CircleError, match="no manifest"):
        Session(tmp_path)
    manifest.write_text("{")
    with pytest.raises(CircleError, match="cannot be read"):
        Session(tmp_path)


def test_a_bundle_of_another_family(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    for path in bundles["w8a16"].folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = tmp_path / "manifest.json"
    written = json.loads(manifest.read_text())
    for family in ("nobody", "../x", ""):
        manifest.write_text(json.dumps(written | {"family": family}))
        session = Session(tmp_path)
        with pytest.raises(InputError, match="no host side"):
            session.generate(torch.zeros(1, 3, dtype=torch.int64))
        assert session.run("token_embedding", {"input_ids": torch.zeros(1, 3, dtype=torch.int32)})


@pytest.mark.parametrize("edit", [{"rotary": None}, {"batch_size": "two"}, {"cache": {}}])
def test_a_manifest_that_says_nonsense(bundles: dict[str, Bundle], tmp_path: Path, edit: dict[str, Any]) -> None:
    for path in bundles["w8a16"].folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | edit))
    with pytest.raises(CircleError, match=r"manifest\.json' does not say what a host has to know"):
        Session(tmp_path).generate(torch.zeros(1, 3, dtype=torch.int64))
