# SPDX-License-Identifier: Apache-2.0
"""lm-eval runs a quantized tree as the model that it replaces, offline, on a task of our own: digits questions.

What is compared are its likelihoods with those that examples/digits/demo.py computes itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

import pyquant
from examples.digits import demo, vlm, vlm_data
from examples.digits.vlm_data import TOKEN, WORDS, Question
from pyquant.models import by_name
from tests import checkpoints

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is the extra `eval`: 40 packages that no other test needs")
pytest.importorskip("accelerate", reason="lm-eval's model class for transformers imports it")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def digits_tokenizer() -> Any:
    """The words of the digits' questions, each a token."""
    inner = Tokenizer(models.WordLevel(dict(TOKEN), unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def spelled(ids: Sequence[int]) -> str:
    return " ".join(WORDS[number] for number in ids)


def task(folder: Path, rows: list[dict[str, Any]], **more: Any) -> TaskManager:
    """A task "digits" of `rows`, read from a .jsonl file beside its .yaml."""
    checkpoints.lines(folder / "digits.jsonl", *rows)
    entry = {
        "task": "digits",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "digits.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": " {{answer}}",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
        "output_type": "loglikelihood",
        **more,
    }
    (folder / "digits.yaml").write_text(yaml.safe_dump(entry))
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(model: HFLM, manager: TaskManager) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(model, tasks=["digits"], task_manager=manager, log_samples=True, bootstrap_iters=0)
    assert found is not None
    return found


class WithPictures(HFLM):
    """lm-eval's own tokens and scores, for a model that also looks at the pictures of each question; as the wrappers of
    lmms-eval do."""

    def __init__(self, asked: Sequence[Question], **given: Any) -> None:
        super().__init__(**given)
        self.asked, self.shown = asked, {}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        scores = []
        for request in requests:
            batch = vlm_data.inputs([self.asked[request.doc["number"]]])
            self.shown = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
            scores += super().loglikelihood([request], disable_tqdm=True)
        return scores

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
        types = (inps == TOKEN["<image>"]).long()
        with torch.no_grad():
            return self.model(inps, mm_token_type_ids=types, **self.shown).logits


def test_likelihoods_of_the_digits_are_those_of_the_demo(tmp_path: Path) -> None:
    """The trained Qwen3-VL in w8a16, with pictures: each answer's likelihood, and the share of exact answers."""
    asked = vlm.heldout_questions(24)
    q = demo.quantize(vlm.load_model(), "w8a16", 96)
    rows = [{"number": n, "prompt": spelled(a.prompt), "answer": spelled(a.answer)} for n, a in enumerate(asked)]
    model = WithPictures(asked, pretrained=q, tokenizer=digits_tokenizer(), batch_size=1)
    found = evaluate(model, task(tmp_path, rows))
    samples = sorted(found["samples"]["digits"], key=lambda sample: sample["doc"]["number"])
    expected = demo.by_model(q, asked, 1)
    for sample, log_probs, chosen in zip(samples, expected.log_probs, expected.chosen, strict=True):
        likelihood, greedy = sample["filtered_resps"][0]
        assert likelihood == pytest.approx(float(log_probs.sum()), abs=2e-3)
        assert greedy == bool(chosen.all())
    assert found["results"]["digits"]["acc,none"] == pytest.approx(expected.exact)
    assert expected.exact > 0.9


def tree() -> Any:
    tokenizer = checkpoints.tokenizer()
    fp = by_name("llama").example.tiny_model()
    fp.resize_token_embeddings(len(tokenizer))
    fp.generation_config.eos_token_id = tokenizer.eos_token_id
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [tokenizer("what is this ? read the digits", return_tensors="pt")["input_ids"]])
    pyquant.convert(q)
    return q


@pytest.mark.parametrize("batch_size", [1, 4])
def test_choices_of_a_llama_with_a_tokenizer(batch_size: int, tmp_path: Path) -> None:
    """HFLM as it is, several rows of unequal length in one call."""
    q, tokenizer, choices = tree(), checkpoints.tokenizer(), ["one", "the digits", "what ?"]
    rows = [{"number": n, "prompt": prompt, "answer": 1} for n, prompt in enumerate(("read", "what is this", "? is"))]
    manager = task(tmp_path, rows, output_type="multiple_choice", doc_to_choice=choices, doc_to_target="{{answer}}")
    model = HFLM(pretrained=q, tokenizer=tokenizer, batch_size=batch_size)
    assert model.max_length == q.config.max_position_embeddings
    assert model.get_model_info()["model_num_parameters"] == q.num_parameters()
    found = evaluate(model, manager)
    for sample in found["samples"]["digits"]:
        for choice, (likelihood, _) in zip(choices, sample["filtered_resps"], strict=True):
            context = tokenizer(sample["doc"]["prompt"])["input_ids"]
            ids = tokenizer(f"{sample['doc']['prompt']} {choice}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                log_probs = q(ids).logits[0].double().log_softmax(-1)
            at = range(len(context), ids.shape[1])
            expected = sum(float(log_probs[place - 1, ids[0, place]]) for place in at)
            assert likelihood == pytest.approx(expected, abs=2e-3)


def test_answers_are_generated_as_the_tree_does(tmp_path: Path) -> None:
    q, tokenizer = tree(), checkpoints.tokenizer()
    rows = [{"number": 0, "prompt": "what is this", "answer": "x"}]
    options = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    manager = task(
        tmp_path,
        rows,
        output_type="generate_until",
        generation_kwargs=options,
        metric_list=[{"metric": "bypass"}],
    )
    found = evaluate(HFLM(pretrained=q, tokenizer=tokenizer), manager)
    ids = tokenizer("what is this", return_tensors="pt")["input_ids"]
    expected = q.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert json.dumps(found["samples"]["digits"][0]["resps"][0][0]) == json.dumps(text)
