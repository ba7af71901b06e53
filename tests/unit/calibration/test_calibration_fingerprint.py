# SPDX-License-Identifier: Apache-2.0
"""Checksums of calibration samples: equal samples, other cuts of the same text, templates, images, the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pyquant.calibration import Fingerprint, fingerprint
from pyquant.calibration.fingerprint import FILE, prints
from pyquant.errors import CalibrationError
from pyquant.evaluation import overlap

DRAW = torch.Generator().manual_seed(2)


def ids(count: int) -> torch.Tensor:
    return torch.randint(0, 50_000, (count,), generator=DRAW)


def test_equal_samples_are_found_with_and_without_padding() -> None:
    rows = [ids(20), ids(30)]
    padded = torch.zeros(2, 30, dtype=torch.int64)
    padded[0, 10:], padded[1] = rows[0], rows[1]
    mask = (torch.arange(30) >= torch.tensor([[10], [0]])).long()
    known = fingerprint([{"input_ids": padded, "attention_mask": mask}])
    found = overlap(known, [{"input_ids": row[None].int()} for row in (*rows, ids(20))])
    assert (found.units, found.equal, found.of) == (2, 2, 3)


def test_another_cut_of_the_same_text_is_found_by_its_runs() -> None:
    text, other = ids(4000), ids(2000)
    known = fingerprint([{"input_ids": row[None]} for row in text.split(250)])
    shifted = [{"input_ids": row[None]} for row in text[100:3100].split(300)]
    found = overlap(known, shifted)
    assert (found.units, found.equal, found.of) == (10, 0, 10)
    assert found.runs > 0.9  # all but those over an end of a calibration sample
    assert overlap(known, [{"input_ids": other[None]}]).runs == 0
    half = torch.cat([text[:30], other[:270]])  # a tenth of its runs is known
    assert overlap(known, [{"input_ids": half[None]}]).units == 0


def test_a_template_is_no_overlap_but_a_text_that_two_samples_share_is() -> None:
    template, shared = ids(60), ids(200)
    samples = [torch.cat([template, ids(40)]) for _ in range(8)]
    known = fingerprint([{"input_ids": each[None]} for each in [*samples, shared, shared]])
    assert overlap(known, [{"input_ids": torch.cat([template, ids(40)])[None]}]).units == 0
    assert overlap(known, [{"input_ids": shared[3:150][None]}]).units == 1


def test_images_are_found_by_themselves_and_the_same_words_are_not() -> None:
    question = ids(40)
    images = [torch.rand(16, 24, generator=DRAW) for _ in range(3)]
    known = fingerprint([{"input_ids": question[None], "pixel_values": image} for image in images[:2]])
    same, words, image, neither = (
        {"input_ids": question[None], "pixel_values": images[0]},
        {"input_ids": question[None], "pixel_values": images[2]},
        {"input_ids": ids(40)[None], "pixel_values": images[1]},
        {"input_ids": ids(40)[None], "pixel_values": images[2]},
    )
    found = overlap(known, [same, words, image, neither])
    assert (found.units, found.equal, found.images, found.of) == (2, 1, 2, 4)


def test_a_batch_without_tokens_is_one_sample() -> None:
    image = torch.rand(16, 24, generator=DRAW)
    (first,), (second,) = list(prints({"pixel_values": image})), list(prints({"pixel_values": image + 1}))
    assert first.digest != second.digest
    assert first.media != second.media


def test_the_file_holds_all_of_it(tmp_path: Path) -> None:
    known = fingerprint([{"input_ids": ids(400)[None], "pixel_values": torch.rand(3)}, {"input_ids": ids(400)[None]}])
    known.save(tmp_path)
    assert Fingerprint.load(tmp_path) == known
    assert Fingerprint.load(tmp_path / "elsewhere") is None
    assert len(known.runs) > 20
    assert (known | known) == known
    data = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(data | {"version": 9}))
    with pytest.raises(CalibrationError, match="no record of calibration data that this pyquant reads"):
        Fingerprint.load(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(CalibrationError, match="remove it, or quantize again"):
        Fingerprint.load(tmp_path)
