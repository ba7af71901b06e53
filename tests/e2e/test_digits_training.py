# SPDX-License-Identifier: Apache-2.0
"""Owns the proof that the committed digits classifier is real: size, shape, accuracy, and that it can be made again.
Leaves what quantization does to it to the other end-to-end tests.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.digits import data, train_classifier
from examples.digits.model import CHECKPOINT, DigitsClassifier, DigitsConfig, accuracy, predict

TINY = DigitsConfig()


@pytest.fixture(scope="module")
def classifier() -> DigitsClassifier:
    return DigitsClassifier.load()


def logits_on(model: DigitsClassifier, split: str) -> tuple[Tensor, Tensor]:
    part = data.load_split(split)
    return predict(model, data.patchify(part.images, model.config)), part.labels


def test_the_splits_are_whole_disjoint_and_stratified() -> None:
    train, heldout, fit, validation = (data.load_split(name) for name in ("train", "heldout", "fit", "validation"))
    assert len(train) + len(heldout) == 1797
    assert len(fit) + len(validation) == len(train)
    assert len(heldout) >= 360
    for part in (train, heldout, fit, validation):
        assert part.images.min() == 0.0
        assert part.images.max() == 1.0
        shares = torch.bincount(part.labels, minlength=10) / len(part)
        assert torch.all((shares - 0.1).abs() < 0.02)

    def keys(part: data.Digits) -> set[bytes]:
        return {image.numpy().tobytes() for image in part.images}

    assert keys(train).isdisjoint(keys(heldout))
    assert keys(fit).isdisjoint(keys(validation))
    assert keys(fit) | keys(validation) == keys(train)


def test_an_unknown_split_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no split 'test' .* train, validation, fit, heldout"):
        data.load_split("test")


def test_patchify_keeps_every_pixel_where_its_position_says() -> None:
    images = data.load_split("heldout").images[:3]
    inputs = data.patchify(images, TINY)
    values, ids = inputs["pixel_values"], inputs["pixel_position_ids"]
    assert values.shape == (3, 64, 12)
    assert values.dtype == torch.float32
    assert ids.shape == (3, 64, 2)
    assert ids.dtype == torch.int64
    assert values.min() >= 0
    assert values.max() <= 1
    whole = data.resample(images, 16)
    for patch, (x, y) in enumerate(ids[1].tolist()):
        square = whole[1, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert torch.equal(values[1, patch].view(2, 2, 3), square[..., None].expand(2, 2, 3))
    assert torch.allclose(data.resample(images, 8), images, atol=1e-6)


def test_batches_are_the_split_in_order() -> None:
    part = data.load_split("heldout")[:70]
    found = list(data.batches(part, TINY, batch_size=32))
    assert [len(batch["pixel_values"]) for batch in found] == [32, 32, 6]
    joined = torch.cat([batch["pixel_values"] for batch in found])
    assert torch.equal(joined, data.patchify(part.images, TINY)["pixel_values"])


def test_the_checkpoint_is_small_and_is_the_model_that_was_asked_for(classifier: DigitsClassifier) -> None:
    assert sorted(path.name for path in CHECKPOINT.iterdir()) == ["config.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 2_000_000
    config = classifier.vision.config
    assert type(classifier.vision).__name__ == "Gemma4VisionModel"
    assert isinstance(classifier.head, nn.Linear)
    assert config.num_hidden_layers >= 3
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.pooling_kernel_size >= 2
    assert config.standardize is True
    assert config._attn_implementation == "eager"
    assert not classifier.training


def test_the_checkpoint_reads_digits_that_it_never_saw(classifier: DigitsClassifier) -> None:
    logits, labels = logits_on(classifier, "heldout")
    assert torch.isfinite(logits).all()
    assert accuracy(logits, labels) >= 0.97


def test_the_standardization_buffers_are_statistics_of_the_pooled_tokens(classifier: DigitsClassifier) -> None:
    fit = data.load_split("fit")
    inputs = data.patchify(fit.images, classifier.config)
    with torch.no_grad():
        tokens = classifier.vision(**inputs).last_hidden_state
    assert tokens.shape == (len(fit) * 16, 64)
    assert torch.allclose(tokens.mean(dim=0), torch.zeros(64), atol=1e-2)
    assert torch.allclose(tokens.std(dim=0), torch.ones(64), atol=1e-2)
    assert classifier.vision.std_bias.std() > 0.1
    assert (classifier.vision.std_scale - 1).abs().min() > 0
    assert classifier.vision.std_scale.max() / classifier.vision.std_scale.min() > 1.2


def test_every_parameter_was_trained(classifier: DigitsClassifier) -> None:
    for name, parameter in classifier.named_parameters():
        assert parameter.std() > 1e-3, f"{name} is constant"


def test_saving_and_loading_gives_the_same_bits(classifier: DigitsClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    again = DigitsClassifier.load(tmp_path)
    for (name, ours), (other, theirs) in zip(classifier.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
    assert again.config == classifier.config
    assert (tmp_path / "model.safetensors").read_bytes() == (CHECKPOINT / "model.safetensors").read_bytes()


def test_loading_says_what_is_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json and no model\.safetensors; make one with examples"):
        DigitsClassifier.load(tmp_path)
    for path in CHECKPOINT.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"model_type 'bert', expected 'digits_classifier'"):
        DigitsClassifier.load(tmp_path)


def test_standardizing_changes_the_buffers_but_not_the_answer() -> None:
    model = DigitsClassifier()
    generator = torch.Generator().manual_seed(7)
    model.initialize_(generator)
    nn.init.normal_(model.head.weight, generator=generator)
    inputs = data.patchify(data.load_split("fit").images[:96], model.config)
    before = predict(model, inputs)
    model.standardize_(inputs)
    assert model.vision.std_bias.abs().max() > 0
    assert torch.allclose(predict(model, inputs), before, atol=1e-3, rtol=1e-4)


def test_training_lowers_the_loss_and_a_seed_fixes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_classifier, "load_split", lambda name: data.load_split(name)[:192])
    monkeypatch.setattr(train_classifier, "VIEWS", 1)
    recipe = train_classifier.Recipe(seed=3, epochs=8, warmup_epochs=0, rise_epochs=0.1, batch_size=32, lr=2e-3)
    first = train_classifier.train(recipe, max_steps=24, quiet=True).losses
    again = train_classifier.train(recipe, max_steps=4, quiet=True).losses
    assert len(first) == 24
    assert again == first[:4]
    assert sum(first[-4:]) < 0.9 * sum(first[:4])


def test_a_recipe_that_cannot_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs < epochs.*warmup_epochs=5"):
        train_classifier.Recipe(epochs=5)


def test_the_script_refuses_to_save_a_bad_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = train_classifier.Trained(DigitsClassifier(), [2.3], 0.1, 0.1)
    monkeypatch.setattr(train_classifier, "train", lambda recipe: bad)
    threads = torch.get_num_threads()
    assert train_classifier.main(["--out", str(tmp_path / "x"), "--threads", str(threads)]) == 1
    assert not (tmp_path / "x").exists()
    assert "below --at-least 0.97" in capsys.readouterr().err
    assert train_classifier.main(["--out", str(tmp_path / "x"), "--threads", str(threads), "--at-least", "0"]) == 0
    assert (tmp_path / "x" / "config.json").is_file()
