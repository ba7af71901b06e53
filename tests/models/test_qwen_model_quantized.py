# SPDX-License-Identifier: Apache-2.0
"""The whole Qwen3-VL calibrated and converted: what is observed, how near it is, checkpoints, and torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_model_tiny import ROWS, A, B, C, V, batch, calibration, model, quantized
from torch import Tensor

import pyquant
from pyquant.errors import CalibrationError
from pyquant.models import qwen3_vl
from pyquant.verify import compare, peir, sqnr_db
from pyquant.verify.tolerance import op_faults
from pyquant.wrap import Phase, phase

PRESETS = ("w8a8", "w8a16", "w4a16")


@pytest.fixture(scope="module")
def trees() -> dict[str, tuple[Any, Any]]:
    return {}


@pytest.fixture
def pair(trees: dict[str, tuple[Any, Any]], request: pytest.FixtureRequest) -> tuple[Any, Any]:
    preset = getattr(request, "param", "w8a8")
    if preset not in trees:
        trees[preset] = quantized(preset)
    return trees[preset]


every = pytest.mark.parametrize("pair", PRESETS, indirect=True)


def calibrated(batches: list[dict[str, Any]], policy: str = "w8a16") -> Any:
    q = pyquant.prepare(model(), pyquant.Policy.preset(policy))
    pyquant.calibrate(q, batches, progress=False)
    return q


@every
def test_every_site_has_its_numbers(pair: tuple[Any, Any]) -> None:
    for site in pair[1].all_sites():
        assert site.scale is not None, site.path
        assert bool((site.scale > 0).all()), site.path
        assert bool(site.scale.isfinite().all()), site.path


@pytest.mark.parametrize(("pair", "most"), [("w8a8", 0.2), ("w8a16", 0.08), ("w4a16", 0.4)], indirect=["pair"])
@torch.no_grad()
def test_near_the_float_model(pair: tuple[Any, Any], most: float) -> None:
    fp, q = pair
    for case in ("text", "images_apart", "image_and_video"):
        given = batch(*ROWS[case], seed=50)
        error = peir(fp(**given).logits, q(**given).logits)
        assert 0 < error < most, case


@torch.no_grad()
def test_each_row_of_a_padded_batch_is_the_row_alone(pair: tuple[Any, Any]) -> None:
    """Padding changes nothing but the order of float sums, which may flip a rounding here and there."""
    _, q = pair
    prompts = [(3, A, 2), (5,), (2, C, C)]
    for side in ("left", "right"):
        given = batch(*prompts, side=side)
        logits = q(**given).logits
        first = 0
        for row, keep in enumerate(given["attention_mask"].bool()):
            count = sum(h * w for piece in prompts[row] if not isinstance(piece, int) for _, h, w in [piece])
            alone: dict[str, Any] = {"input_ids": given["input_ids"][row : row + 1, keep]}
            if count:
                grids = [piece for piece in prompts[row] if not isinstance(piece, int)]
                alone["pixel_values"] = given["pixel_values"][first : first + count]
                alone["image_grid_thw"] = torch.tensor(grids)
            first += count
            assert peir(q(**alone).logits[0], logits[row, keep]) < 0.03


def test_padding_is_not_observed() -> None:
    """Rows of a padded batch teach what they teach one by one; padding is the largest token of the table."""
    rows = [(3, A, 2), (6,), (2, C, 1, B)]
    together = batch(*rows, side="left", seed=4)
    loud = model()
    with torch.no_grad():
        loud.get_input_embeddings().weight[66] = 50.0
    q = pyquant.prepare(loud, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [together], progress=False)
    alone = pyquant.prepare(loud, pyquant.Policy.preset("w8a16"))
    mask, pixels, grids = together["attention_mask"].bool(), together["pixel_values"], together["image_grid_thw"]
    patches = grids.prod(dim=1).tolist()
    parts, per_row = torch.split(pixels, patches), [1, 0, 2]
    first = 0
    for row, images in enumerate(per_row):
        given: dict[str, Any] = {"input_ids": together["input_ids"][row : row + 1, mask[row]]}
        if images:
            given["pixel_values"] = torch.cat(parts[first : first + images])
            given["image_grid_thw"] = grids[first : first + images]
        first += images
        pyquant.calibrate(alone, [given], progress=False)
    for site in (q.model.site("fused"), q.get_input_embeddings().site("act_out")):
        assert site.observer is not None
        assert float(site.observer.range()[1]) < 50
    for mine, theirs in zip(q.all_sites(), alone.all_sites(), strict=True):
        if mine.observer is not None and mine.observer.needs_data:
            for ours, others in zip(mine.observer.range(), theirs.observer.range(), strict=True):
                torch.testing.assert_close(ours, others, rtol=1e-5, atol=1e-6)


def test_calibrating_with_text_alone() -> None:
    """`fused` sees text; the tower and what follows it see nothing, and convert names these sites."""
    q = calibrated([batch((6,)), batch((9,), seed=1)])
    with pytest.raises(CalibrationError) as raised:
        pyquant.convert(q)
    message = str(raised.value)
    assert "model:fused" not in message
    assert "model.visual.blocks.0:act_in" in message
    assert "language_model:deepstack_0" in message
    assert "self_attn:key" not in message
    pyquant.convert(q, unused=["model.visual*", "*:deepstack_?"])
    given = batch((6,))
    with torch.no_grad():
        assert q(**given).logits.isfinite().all()


@pytest.mark.parametrize("embedded", [False, True], ids=["ids", "embeds"])
def test_calibrating_with_placeholders_and_no_pixels(embedded: bool) -> None:
    """HF takes such a prompt for text; its ranges would be those of a row that no device ever reads."""
    given = {name: value for name, value in batch((2, A, 3)).items() if "pixel" not in name and "grid" not in name}
    if embedded:
        given["inputs_embeds"] = model().get_input_embeddings()(given.pop("input_ids"))
    q = pyquant.prepare(model(), pyquant.Policy.preset("w8a8"))
    with pytest.raises(CalibrationError, match=r"batch 1: .*has 4 image or video placeholder tokens and nothing"):
        pyquant.calibrate(q, [batch((6,)), given], progress=False)


def test_calibrating_in_any_order_and_through_generate() -> None:
    batches = calibration()
    q = calibrated(batches)
    other = calibrated(batches[::-1])
    for mine, theirs in zip(q.all_sites(), other.all_sites(), strict=True):
        if mine.observer is not None and mine.observer.needs_data:
            assert torch.equal(mine.observer.range()[0], theirs.observer.range()[0])
    q.generate(**batch((2, A, 3)), max_new_tokens=3, do_sample=False)
    pyquant.convert(q)


@torch.no_grad()
def test_text_alone_does_not_pass_the_join(pair: tuple[Any, Any]) -> None:
    """A token of an answer is as fine as its embedding, however wide the grid that it would share with images."""
    _, q = pair
    calls = []
    handle = q.model.sites["fused"].register_forward_hook(lambda *_: calls.append(1))
    q(**batch((5,)))
    assert calls == []
    q(**batch((2, A)))
    assert calls == [1]
    handle.remove()


@every
@torch.no_grad()
def test_decoding_is_the_full_forward(pair: tuple[Any, Any]) -> None:
    """A key is quantized once: over a cache the logits are those of one forward over all tokens."""
    _, q = pair
    given = batch((2, A, 3), mask=False)
    more = torch.tensor([[5, 9, 1]])
    whole = given | {"input_ids": torch.cat([given["input_ids"], more], dim=1)}
    del whole["mm_token_type_ids"]
    expected = q(**whole).logits[:, -3:]
    out = q(**given, use_cache=True)
    got = []
    for token in more.T:
        out = q(input_ids=token[None], past_key_values=out.past_key_values)
        got.append(out.logits)
    assert peir(expected, torch.cat(got, dim=1)) < 0.02


@every
def test_checkpoint(pair: tuple[Any, Any], tmp_path: Path) -> None:
    _, q = pair
    pyquant.save_quantized(q, tmp_path / "q")
    given = batch((2, A, 3, ("video", V)), (4, B), side="left")
    for loaded in (pyquant.load_quantized(tmp_path / "q"), pyquant.load_quantized(tmp_path / "q", model(seed=9))):
        with torch.no_grad():
            assert torch.equal(loaded(**given).logits, q(**given).logits)
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 65, "pad_token_id": 66}
        assert torch.equal(loaded.generate(**given, **options), q.generate(**given, **options))
        assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


# --- torch.export of the tree itself ---


class Text(torch.nn.Module):
    """The quantized tree over ids and positions, as an exported program takes it."""

    def __init__(self, q: Any) -> None:
        super().__init__()
        self.q = q

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        out: Tensor = self.q(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
        return out


@every
@torch.no_grad()
def test_torch_export_with_an_open_length(pair: tuple[Any, Any]) -> None:
    _, q = pair
    length = torch.export.Dim("length", min=2, max=64)
    ids = torch.randint(0, 60, (1, 7), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7).expand(3, 1, -1)
    shapes = {"input_ids": {1: length}, "position_ids": {2: length}}
    program = torch.export.export(Text(q), (ids, positions), dynamic_shapes=shapes, strict=False).module()
    for size in (2, 7, 33):
        ids = torch.randint(0, 60, (1, size), generator=torch.Generator().manual_seed(size))
        positions = torch.stack([torch.arange(size), torch.arange(size) // 2, torch.arange(size)])[:, None]
        expected = q(input_ids=ids, position_ids=positions, use_cache=False).logits
        assert torch.equal(program(ids, positions), expected)


def test_phases(pair: tuple[Any, Any]) -> None:
    fp, q = pair
    given = batch((2, C, 2))
    with phase(q, Phase.FLOAT), torch.no_grad():
        torch.testing.assert_close(q(**given).logits, fp(**given).logits, rtol=1e-5, atol=1e-5)


def test_small_text_beside_large_images() -> None:
    """On one 8-bit grid with visual rows, text rows that are 100 times smaller are lost; the stream at 16 bits keeps
    them, and every tensor has a grid all the same."""
    fp = model(num_hidden_layers=2)
    with torch.no_grad():
        fp.get_input_embeddings().weight.mul_(0.1)
    given = batch(*ROWS["images_apart"], seed=70)
    text = given["input_ids"] < 60
    quality = {}
    for preset in ("w8a8", "w8a8_stream16"):
        q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
        pyquant.calibrate(q, calibration(), progress=False)
        pyquant.convert(q)
        with torch.no_grad():
            quality[preset] = sqnr_db(fp(**given).logits[text], q(**given).logits[text])
    assert quality["w8a8"] < 3
    assert quality["w8a8_stream16"] > 12
    layers = {site.path: site.spec.dtype.bits for site in q.all_sites() if site.spec is not None}
    assert layers["model:fused"] == layers["model.language_model.layers.0:act_out"] == 16
    assert layers["model.language_model.layers.0.self_attn:key"] == layers["model.visual:pos_add"] == 8
    profile = qwen3_vl.TextProfile(1, 6, deepstack=2, layer=0)
    program = pyquant.export(q.model.language_model, profile)
    assert program.missing_qparams() == []
    generator = torch.Generator().manual_seed(0)
    specs = program.adapter.input_specs
    inputs = {name: torch.rand(spec.shape, generator=generator) - 0.5 for name, spec in specs.items()}
    inputs["attention_mask"] = torch.full((6, 6), -1e4).triu(1)[None, None]
    report = compare(program, q.model.language_model, inputs)
    assert op_faults(report) == [], report
