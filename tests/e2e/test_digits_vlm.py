# SPDX-License-Identifier: Apache-2.0
"""The main job on the trained Qwen3-VL: what each recipe loses, and that a bundle answers as the quantized tree does.
Single operators and wrappers are tested in tests/models; the checkpoint itself in test_digits_vlm_training.py.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyquant
from examples.digits import demo, vlm, vlm_data
from examples.digits.vlm_data import MAX_ANSWER
from pyquant.models import qwen3_vl
from pyquant.verify import Session, sqnr_db

QUESTIONS = 600
FEW = 200
BATCH = 8
# what a recipe may lose against float, as a share of the questions: half a point, one point with 4-bit weights
LOST = {"w8a8": 0.005, "w8a16": 0.005, "w4a16": 0.01}
every_recipe = pytest.mark.parametrize("recipe", ["w8a8", pytest.param("w8a16", marks=pytest.mark.slow), "w4a16"])


@functools.cache
def fp():
    return vlm.load_model()


@functools.cache
def quantized(recipe: str):
    return demo.quantize(fp(), recipe, 96)


@functools.cache
def asked():
    return vlm.heldout_questions(QUESTIONS)


@functools.cache
def float_answers(count: int) -> demo.Answers:
    return demo.by_model(fp(), asked()[:count], 100)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")

    @functools.cache
    def bundle(recipe: str) -> Path:
        pyquant.export_bundle(quantized(recipe), root / recipe, demo.profile(BATCH))
        return root / recipe

    return bundle


@every_recipe
@pytest.mark.parametrize("count", [FEW, pytest.param(QUESTIONS, marks=pytest.mark.slow)])
def test_accuracy_is_kept(recipe, count):
    found = demo.by_model(quantized(recipe), asked()[:count], 100)
    assert float_answers(count).exact - found.exact <= LOST[recipe] + 1e-9
    assert abs(found.nll - float_answers(count).nll) < 0.01  # nats a token


def test_teacher_forcing_judges_what_generate_says():
    """`exact` of the demo is greedy exact match, from one run."""
    some = asked()[:60]
    right = [answer == q.answer for q, answer in zip(some, vlm.answer(fp(), some), strict=True)]
    assert [bool(row.all()) for row in demo.by_model(fp(), some, 30).chosen] == right


@every_recipe
def test_the_bundle_answers_as_the_tree_does(recipe, bundles):
    some = asked()[: 2 * BATCH]
    q = quantized(recipe)
    with Session(bundles(recipe)) as session:
        for part in (some[:BATCH], some[BATCH:]):
            prompt = vlm_data.inputs(part)
            tokens = session.generate(**prompt, max_new_tokens=MAX_ANSWER)
            expected = q.generate(**prompt, max_new_tokens=MAX_ANSWER, do_sample=False)
            assert torch.equal(tokens, expected)
        forced = demo.by_session(session, some, BATCH)
    eager = demo.by_model(q, some, BATCH)
    assert all(map(torch.equal, forced.chosen, eager.chosen))
    # Steps of the last grid, and of grids before it: a flip there moves a log probability, and no answer.
    apart = max(float((a - b).abs().max()) for a, b in zip(forced.log_probs, eager.log_probs, strict=True))
    assert apart < {"w8a8": 0.5, "w8a16": 0.01, "w4a16": 0.01}[recipe]


@every_recipe
def test_every_tensor_of_the_bundle_is_quantized_and_every_file_sound(recipe, bundles):
    folder = bundles(recipe)
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    assert {graph["kind"] for graph in graphs.values()} == {
        *("vision", "token_embedding", "fusion", "prefill", "decode", "lm_head")
    }
    for graph in graphs.values():
        path = folder / graph["file"]
        assert pyquant.circle.check(path) == []
        tensors = pyquant.circle.read(path).tensors
        assert [tensor.name for tensor in tensors if tensor.dtype == "float32"] == []


@pytest.mark.slow
@every_recipe
def test_many_questions_by_the_bundle(recipe, bundles):
    with Session(bundles(recipe)) as session:
        circle = demo.by_session(session, asked()[:296], BATCH)
    eager = demo.by_model(quantized(recipe), asked()[:296], 100)
    same = sum(map(torch.equal, circle.chosen, eager.chosen))
    assert same >= 294  # of 296
    assert abs(circle.nll - eager.nll) < 0.005


@pytest.mark.slow
def test_sensitivity_spends_8_bits_better_than_w8a8():
    """Measured on three training questions, each alone: padding would be measured, too. Evaluated on held-out ones."""

    def logits(model) -> torch.Tensor:
        parts = [asked()[start : start + 50] for start in range(0, FEW, 50)]
        with torch.no_grad():
            return torch.cat(
                [
                    model(**vlm_data.inputs(part, answers=True)).logits[vlm_data.labels(part) != vlm_data.IGNORE]
                    for part in parts
                ]
            )

    def quantized_by(policy: pyquant.Policy):
        q = pyquant.prepare(fp(), policy)
        pyquant.calibrate(q, list(vlm_data.calibration_batches(48)), progress=False)
        pyquant.convert(q)
        return q

    batches = [vlm_data.inputs([question], answers=True) for question in vlm_data.questions("train", 3, 5)]
    found = pyquant.trace.sensitivity(quantized_by(pyquant.Policy.preset("w4a8")), batches, progress=False)
    widths = found.choose(budget=8.0, widths=(8, 16))
    assert found.bits(widths).mean <= 8.0
    uniform = sqnr_db(logits(fp()), logits(quantized_by(pyquant.Policy.preset("w8a8"))))
    mixed = sqnr_db(logits(fp()), logits(quantized_by(found.policy_of(widths))))
    print(f"\nheld-out logits at 8.0 bits: uniform w8a8 {uniform:.1f} dB, mixed {mixed:.1f} dB")
    assert mixed > uniform + 5


def test_the_demo_runs_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "examples.digits.demo", "--limit", "8", "--calibration", "16"]
    command += ["--recipe", "w4a16", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tokens of the bundle and of the quantized tree are equal" in done.stdout
    assert "0 faults; 0 tensors without qparams" in done.stdout
    assert (tmp_path / "digits_vlm" / "manifest.json").is_file()


def test_qwen_is_whole():
    """The features that the issue names are all in the trained model."""
    config = fp().config
    text, vision = config.text_config, config.vision_config
    assert 1e6 < sum(p.numel() for p in fp().parameters()) < 2e6
    assert text.num_key_value_heads < text.num_attention_heads
    assert text.rope_parameters["mrope_interleaved"]
    assert len(vision.deepstack_visual_indexes) == 2
    assert vision.spatial_merge_size == 2
    assert isinstance(quantized("w8a8"), qwen3_vl.QuantQwen3VLForConditionalGeneration)
