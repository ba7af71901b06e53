# SPDX-License-Identifier: Apache-2.0
"""Calibration and the quantized phase of the whole Gemma4: what padding, logits_to_keep and callers may not change."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gemma4_model_tiny as tiny
import gemma4_text_tiny as text_tiny
import pytest
import torch
from gemma4_model_tiny import inputs
from torch import Tensor

import pyquant
from pyquant.metrics import sqnr_db
from pyquant.wrap import QModule

A, LONG, SOUND = ("image", 4, 4), ("image", 8, 4), ("audio", 22)
ROWS = ((2, A, 4), (7,), (1, LONG, 2), (3,))


def calibrated(fp: Any, batches: list[dict[str, Any]], preset: str = "w8a8") -> QModule:
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    pyquant.calibrate(q, batches, progress=False)
    return q


def quantized(fp: Any, batches: list[dict[str, Any]], preset: str = "w8a8") -> QModule:
    q = calibrated(fp, batches, preset)
    pyquant.convert(q, unused=[site.path for site in q.uncalibrated_sites()])
    return q


def scales(q: QModule) -> dict[str, Tensor]:
    return {site.path: site.scale for site in q.all_sites() if site.scale is not None}


@pytest.fixture(scope="module")
def tree() -> tuple[Any, QModule]:
    fp = tiny.conditional("vision")
    return fp, quantized(fp, [inputs(*ROWS)])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["e2b", "vision", "experts"])
def test_a_padded_calibration_batch_is_its_rows(form: str, side: str) -> None:
    """No site observes padding: not the embedding, not per-layer inputs, not keys that other layers read."""
    fp = tiny.conditional(form)
    batch = inputs(*ROWS, side=side, extra=2)
    batch["input_ids"][batch["attention_mask"] == 0] = 29  # any token
    valid, first, rows = batch["attention_mask"].bool(), 0, []
    positions = (valid.cumsum(-1) - 1).clamp(min=0)
    for i, parts in enumerate(ROWS):
        row = {name: batch[name][i : i + 1, valid[i]] for name in ("input_ids", tiny_types())}
        if number := sum(isinstance(part, tuple) for part in parts):
            row |= {name: batch[name][first : first + number] for name in ("pixel_values", "image_position_ids")}
        first += number
        rows.append(row)
    together = scales(quantized(fp, [batch | {"position_ids": positions}]))
    apart = scales(quantized(fp, rows))
    assert together.keys() == apart.keys()
    for path, scale in apart.items():
        torch.testing.assert_close(together[path], scale, rtol=1e-5, atol=0, msg=path)


def tiny_types() -> str:
    return "mm_token_type_ids"


@pytest.mark.parametrize("keep", [0, 1, torch.tensor([2])], ids=["all", "last", "places"])
def test_layers_that_read_shared_keys_are_calibrated_on_all_places(keep: Any) -> None:
    """Trap 5: transformers computes them at the places of logits_to_keep only."""
    fp = text_tiny.causal_lm()
    batch = {"input_ids": text_tiny.ids(2, 12)}
    whole = scales(quantized(fp, [batch]))
    kept = scales(quantized(fp, [batch | {"logits_to_keep": keep}]))
    layers = [path for path in whole if path.startswith("model.layers.")]
    assert any(path.startswith("model.layers.6.") for path in layers)
    for path in layers:
        assert torch.equal(kept[path], whole[path]), path


def test_a_mapping_of_masks_calibrates_as_the_mask() -> None:
    fp = text_tiny.causal_lm()
    given = {"input_ids": text_tiny.ids(2, 9)}
    lowest, one = torch.finfo(torch.float32).min, torch.ones(9, 9, dtype=torch.bool)
    full = torch.zeros(2, 1, 9, 9).masked_fill(~one.tril(), lowest)
    sliding = full.masked_fill(~one.triu(1 - text_tiny.WINDOW), lowest)
    masks = {"full_attention": full, "sliding_attention": sliding}
    expected, got = (scales(quantized(fp, [given | more])) for more in ({}, {"attention_mask": masks}))
    assert all(torch.equal(got[path], scale) for path, scale in expected.items())


def test_callers_tensors_and_model_stay_as_they_are() -> None:
    fp = tiny.conditional("vision", audio=True)
    batch = inputs((1, A, 2, SOUND), (4,))
    given, state = copy.deepcopy(batch), copy.deepcopy(fp.state_dict())
    q = quantized(fp, [batch])
    with torch.no_grad():
        outputs: dict[str, Any] = {}
        q(**batch, mm_encoder_outputs=outputs)
    assert outputs == {}
    assert batch.keys() == given.keys()
    assert all(torch.equal(batch[name], value) for name, value in given.items())
    assert all(torch.equal(value, state[name]) for name, value in fp.state_dict().items())
    assert q.lm_head.weight is q.get_input_embeddings().weight is fp.lm_head.weight  # type: ignore[union-attr, operator]


@torch.no_grad()
def test_saved_and_loaded_is_equal(tree: tuple[Any, QModule], tmp_path: Path) -> None:
    _, q = tree
    pyquant.save_quantized(q, tmp_path / "q")
    loaded = pyquant.load_quantized(tmp_path / "q")
    batch = inputs(*ROWS)
    assert torch.equal(loaded(**batch).logits, q(**batch).logits)
    given = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None}
    assert torch.equal(loaded.generate(**batch, **given), q.generate(**batch, **given))  # type: ignore[operator]


@torch.no_grad()
def test_state_dicts_copies_and_pickles(tree: tuple[Any, QModule]) -> None:
    fp, q = tree
    batch = inputs(*ROWS)
    expected = q(**batch).logits
    other = quantized(fp, [inputs((5,), (2, A))])
    assert not torch.equal(other(**batch).logits, expected)
    other.load_state_dict(q.state_dict())
    for same in (other, copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(same(**batch).logits, expected)
    half = copy.deepcopy(q).to(torch.bfloat16)
    pixels = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
    out = half(**pixels).logits
    assert out.dtype == torch.bfloat16
    assert sqnr_db(expected[batch["attention_mask"].bool()], out.float()[batch["attention_mask"].bool()]) > 8


@pytest.mark.parametrize(("preset", "least"), [("w8a8", 10), ("w8a16", 22), ("w4a16", 4)])
@torch.no_grad()
def test_quantized_is_near(preset: str, least: float) -> None:
    fp, batch = tiny.conditional(audio=True), inputs((1, A, 2, SOUND), (6,))
    q = quantized(fp, [batch], preset)
    valid = batch["attention_mask"].bool()
    assert sqnr_db(fp(**batch).logits[valid], q(**batch).logits[valid]) > least


@torch.no_grad()
def test_a_quantized_prompt_in_steps_and_in_padded_rows(tree: tuple[Any, QModule]) -> None:
    """Quantized, too, a cache changes nothing: tokens one by one give the logits of the whole."""
    _, q = tree
    ids = inputs((11,), mask=False)["input_ids"]
    whole = q(input_ids=ids).logits
    out = q(input_ids=ids[:, :7], use_cache=True)
    parts = [out.logits]
    for i in range(7, 11):
        out = q(input_ids=ids[:, i : i + 1], past_key_values=pyquant.wrap.hf.cache_of(out))
        parts.append(out.logits)
    got = torch.cat(parts, dim=1)
    assert sqnr_db(whole, got) > 40
