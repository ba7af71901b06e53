# SPDX-License-Identifier: Apache-2.0
"""A whole Qwen3-VL bundle on the real runtime onert: from pictures and a question to tokens, against transformers.

Float graphs end to end and one by one; weight-only formats against what onert's own arithmetic makes of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

import qwen_model_tiny as tiny

import pyquant
from pyquant import Policy
from pyquant.models import qwen3_vl
from pyquant.verify import Session
from pyquant.verify.runtimes import native, onert
from pyquant.verify.runtimes.onert_expected import expected
from tests.onert_blocks import presets

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")

LONGEST, NEW = 32, 5
GRIDS = (tiny.A, tiny.B, tiny.C, (1, 4, 2))
# Every input dimension is a multiple of 32, as blocks want it.
BLOCKS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vision_config": {"intermediate_size": 64, "out_hidden_size": 32, "depth": 2, "deepstack_visual_indexes": [1]},
}
ROWS = {
    "one": (tiny.ROWS["images_apart"], tiny.ROWS["video"], tiny.ROWS["text"]),
    "two": (((3, tiny.A, 2), (2, tiny.B, 1, tiny.C, 1)), ((5,), (2, ("video", tiny.V), 1))),
}


def prepared(policy: str, **overrides: Any) -> tuple[Any, Any]:
    fp = tiny.model(**overrides)
    q = pyquant.prepare(fp, Policy.preset(policy))
    pyquant.calibrate(q, tiny.calibration()[:3], progress=False)
    pyquant.convert(q)
    return fp, q


def profile(rows: str, **changes: Any) -> qwen3_vl.Profile:
    given = {"max_seq_len": LONGEST, "prefill_lengths": (20, 26), "image_grids": GRIDS}
    return qwen3_vl.Profile(batch_size={"one": 1, "two": 2}[rows], **{**given, **changes})


class Recorder:
    """Greedy, and records the logits of every step."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        self.logits.append(logits)
        return logits.argmax(-1)


@torch.no_grad()
def generate(fp: Any, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Tokens and logits of transformers' own greedy loop, which goes on past the end of a text."""
    out = fp.generate(
        **batch,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=None,
        pad_token_id=tiny.PAD,
    )
    return out.sequences, list(out.logits)


@pytest.fixture(scope="module")
def floating() -> tuple[Any, Any]:
    return prepared("float")


@pytest.mark.parametrize(("rows", "layers"), [("one", "per_layer"), ("two", "stack")])
def test_a_float_bundle_generates_what_transformers_does(
    floating: tuple[Any, Any], rows: str, layers: Any, tmp_path: Path
) -> None:
    fp, q = floating
    embedding = {"one": "dynamic", "two": "fixed"}[rows]
    lengths = {"stack": (20, 26), "per_layer": (26,)}[layers]
    made = profile(rows, layers=layers, token_embedding=embedding, prefill_lengths=lengths)
    pyquant.export_bundle(q, tmp_path / "out", made, target="onert")
    with Session(tmp_path / "out", runtime="onert") as session:
        for number, prompt in enumerate(ROWS[rows] if layers == "stack" else ROWS[rows][:1]):
            batch = tiny.batch(*prompt, side="left", seed=10 + number)
            recorder = Recorder()
            tokens = session.generate(**batch, max_new_tokens=NEW, eos_token_id=[], sampler=recorder)
            theirs, logits = generate(fp, batch)
            assert torch.equal(tokens, theirs)
            for actual, expected in zip(recorder.logits, logits, strict=True):
                assert float((actual - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_a_long_prompt_in_parts(floating: tuple[Any, Any], tmp_path: Path) -> None:
    """The longest prefill has 6 places: images begin in one part and end in another."""
    fp, q = floating
    made = profile("one", prefill_lengths=(6,), append_lengths=(8,), token_embedding="dynamic")
    pyquant.export_bundle(q, tmp_path / "out", made, target="onert")
    with Session(tmp_path / "out", runtime="onert") as session:
        batch = tiny.batch(*ROWS["one"][0], side="left", seed=10)
        assert batch["input_ids"].shape[1] > 14
        recorder = Recorder()
        tokens = session.generate(**batch, max_new_tokens=NEW, eos_token_id=[], sampler=recorder)
        theirs, logits = generate(fp, batch)
        assert torch.equal(tokens, theirs)
        for actual, expected in zip(recorder.logits, logits, strict=True):
            assert float((actual - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def test_float_vision_prefill_and_decode_one_by_one(floating: tuple[Any, Any]) -> None:
    fp, q = floating
    graphs = profile("two").for_target("onert").graphs(q)
    grid = torch.tensor([tiny.A])
    pixels = torch.randn(16, tiny.PIXELS)
    image = fp.model.visual(pixels, grid_thw=grid)
    want = {"image_embeds": image.pooler_output}
    want |= {f"deepstack_{k}": feature for k, feature in enumerate(image.deepstack_features)}
    agree(graphs["vision_t1_h4_w4"], {"pixel_values": pixels}, want)
    for name in ("prefill_s20", "decode", "fusion_s20", "lm_head", "token_embedding_s20"):
        part, part_profile = graphs[name]
        adapter = part.as_export_module(part_profile)
        given = {key: example(key, spec, seed) for seed, (key, spec) in enumerate(adapter.input_specs.items())}
        out = adapter(*given.values())  # equal to transformers by tests/models, to 1e-5
        agree(
            graphs[name], given, dict(zip(adapter.output_names, out if isinstance(out, tuple) else (out,), strict=True))
        )


@torch.no_grad()
def test_the_whole_model_in_one_graph(floating: tuple[Any, Any]) -> None:
    _, q = floating
    whole = qwen3_vl.Profile(max_seq_len=12, image_grids=(tiny.A, tiny.B), layers="whole", batch_size=2)
    part, part_profile = whole.graphs(q)["model"]
    adapter = part.as_export_module(part_profile)
    given = {key: example(key, spec, seed) for seed, (key, spec) in enumerate(adapter.input_specs.items())}
    given["visual_index"] %= 24 + tiny.tokens(tiny.A) + tiny.tokens(tiny.B)
    agree((part, part_profile), given, {"hidden_states": adapter(*given.values())})


def agree(graph: tuple[Any, Any], given: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    program = pyquant.export(*graph, target="onert")
    assert program.check("onert") == []
    got, ours = onert.run(program, given), native.run(program, given)
    assert set(got) == set(ours) == set(want)
    for name, value in want.items():
        assert float((got[name] - value).abs().max()) <= 1e-4 * max(1.0, float(value.abs().max())), name
        assert float((ours[name] - got[name]).abs().max()) <= 1e-4 * float(got[name].abs().max()), name


def example(name: str, spec: Any, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if spec.dtype is torch.int32:
        return torch.randint(0, 40, spec.shape, generator=generator, dtype=torch.int32)
    value = torch.randn(spec.shape, generator=generator)
    if name == "attention_mask":
        return torch.where(value > 1, -1e4, 0.0)
    return value.tanh() if name in ("cos", "signed_sin") else value


@pytest.fixture(scope="module", params=presets("w8_onert", "q8_onert", "w4_onert"))
def weights(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return (request.param, *prepared(request.param, **BLOCKS))


GRAPHS = ("vision_t1_h4_w4", "prefill_s20", "decode", "lm_head", "token_embedding_s20")


@torch.no_grad()
@pytest.mark.parametrize("name", GRAPHS)
def test_weight_only_graphs_are_what_onerts_arithmetic_makes_them(weights: tuple[str, Any, Any], name: str) -> None:
    """onert's own 8-bit rounding of activations is in `expected`; what is left between the two is float32's."""
    _, _, q = weights
    part, part_profile = profile("two").for_target("onert").graphs(q)[name]
    program = pyquant.export(part, part_profile, target="onert")
    assert program.check("onert") == []
    given = {key: example(key, spec, seed) for seed, (key, spec) in enumerate(program.adapter.input_specs.items())}
    seen = onert.run(program, given, trace=True)
    for key, want in expected(program, given, seen).items():
        assert float((seen[key] - want).abs().max()) <= 1e-4 * max(1.0, float(want.abs().max())), key


def test_weight_only_bundles_lose_what_their_rounding_loses(weights: tuple[str, Any, Any], tmp_path: Path) -> None:
    """Logits of a prompt: as far from float as the rounded weights alone are, and onert's 8-bit activations."""
    name, fp, q = weights
    small = profile("one", prefill_lengths=(20,), image_grids=(tiny.B,), token_embedding="dynamic")
    pyquant.export_bundle(q, tmp_path / "out", small, target="onert")
    batch, recorder = tiny.batch(*tiny.ROWS["image_middle"], seed=4), Recorder()
    with Session(tmp_path / "out", runtime="onert") as session:
        session.generate(**batch, max_new_tokens=1, sampler=recorder)
    with torch.no_grad():
        exact, rounded = fp(**batch).logits[:, -1], q(**batch).logits[:, -1]
    got = recorder.logits[0]
    of_weights, of_inputs, total = (rms(a - b) for a, b in ((rounded, exact), (got, rounded), (got, exact)))
    assert total <= 1.3 * (of_weights**2 + of_inputs**2) ** 0.5  # the two are independent
    assert of_inputs <= 0.03 * rms(exact)
    assert of_weights <= {"w8_onert": 0.04, "q8_onert": 0.02, "w4_onert": 0.5}[name] * rms(exact)


def rms(x: Tensor) -> float:
    return float(x.pow(2).mean().sqrt())
