# SPDX-License-Identifier: Apache-2.0
"""Circle = eager for the prefill and decode graphs of Qwen3-VL's text wrappers, judged by TICO's reference runtime."""

from __future__ import annotations

import pytest
import qwen_text_tiny as tiny
import torch
from hf_names import CACHE
from qwen_text_tiny import BATCHES, STATIC
from test_qwen_text_wrappers import adapter_and_inputs, quantized
from torch import Tensor

import pyquant
from pyquant.models.qwen3_vl import TextProfile
from pyquant.verify.tolerance import deep_faults, layer_faults, op_faults
from pyquant.wrap import Phase, phase
from tests.judges import judged

PRESETS = ("w8a8", "w8a16", "w4a16")
# At 16 bits one step is near float32's own rounding in a sum: flips of one operator reach the next, so that wrappers of
# several linears are judged as deep models there.
LEFT = BATCHES["left"]


def check_file(q, adapter, tensors: list[Tensor], *, deep: bool) -> None:
    program = pyquant.export(adapter)
    report = judged(program, None, tensors)
    assert op_faults(report) == []
    if not deep:
        assert layer_faults(report) == []
        return
    with phase(q, Phase.FLOAT), torch.no_grad():
        out = adapter(*tensors)
    flat = out if isinstance(out, tuple) else (out,)
    reference = dict(zip((tensor.name for tensor in program.outputs), flat, strict=True))
    assert deep_faults(program, None, tensors, reference, report) == []


PREFILL = [(name, "w8a8") for name in ("attention_biases", "attention_one_kv_head", "decoder_layer")]
PREFILL += [(name, preset) for name in ("attention", "decoder_layer_biases", "model_biases") for preset in PRESETS]
PREFILL += [("model_one_kv_head", "w8a8")]


@pytest.mark.parametrize(("name", "preset"), PREFILL, ids=["-".join(case) for case in PREFILL])
def test_prefill_computes_what_eager_computes(name, preset):
    fp, q = quantized(name, preset)
    adapter, tensors = adapter_and_inputs(name, LEFT, fp, q)
    shallow = preset == "w8a8" and not name.startswith("model")
    check_file(q, adapter, tensors, deep=not shallow)


DECODE = [(name, preset) for name in ("decoder_layer_biases", "model_biases") for preset in PRESETS]
DECODE += [("attention", "w8a8"), ("model_no_groups", "w8a8")]


def decode(name: str, q, attention: str = "batched") -> tuple[torch.nn.Module, list[Tensor]]:
    """A step over a cache of 9 tokens, of which two rows hold less; calibration saw neither cache nor single token."""
    rows, past = 3, 9
    adapter = q.as_export_module(TextProfile(rows, 1, past_len=past, attention=attention))
    batch = tiny.Batch((1,) * rows)
    given = {"position_embeddings": tuple(t + 0 for t in tiny.rotary(batch)), "hidden_states": tiny.states(batch)}
    tensors = tiny.graph_inputs(given, batch)
    if name.startswith("model"):
        tensors["inputs_embeds"] = tensors.pop("hidden_states")
    keep = torch.ones(rows, past + 1, dtype=torch.bool)
    keep[1, :4] = keep[2, 2:7] = False
    tensors["attention_mask"] = torch.zeros(rows, 1, 1, past + 1).masked_fill(~keep[:, None, None], tiny.FILL)
    for number, (key, spec) in enumerate(adapter.input_specs.items()):
        if key.startswith("past"):
            tensors[key] = tiny.randn(*spec.shape, seed=20 + number)
    return adapter, [tensors[key] for key in adapter.input_specs]


@pytest.mark.parametrize(("name", "preset"), DECODE, ids=["-".join(case) for case in DECODE])
def test_decode_computes_what_eager_computes(name, preset):
    _, q = quantized(name, preset)
    adapter, tensors = decode(name, q)
    check_file(q, adapter, tensors, deep=preset != "w8a8" or name.startswith("model"))


@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_one_product_per_head_computes_what_eager_computes(step):
    fp, q = quantized("decoder_layer_biases", "w8a8")
    if step == "decode":
        adapter, tensors = decode("decoder_layer_biases", q, "per_head")
    else:
        _, tensors = adapter_and_inputs("decoder_layer_biases", LEFT, fp, q)
        adapter = q.as_export_module(TextProfile(*LEFT.shape, attention="per_head"))
    check_file(q, adapter, tensors, deep=False)


def test_the_table_covers_every_static_wrapper():
    """Norm and MLP are in test_wrappers.py."""
    classes = {type(STATIC[name].build()) for name, _ in PREFILL}
    assert classes == {type(case.build()) for case in STATIC.values()}


@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_float_graphs_on_onert_are_transformers(step):
    """The real runtime, against HF's own forward: the prompt, or one token after a DynamicCache."""
    pytest.importorskip("onert", reason="0.1.0 has no wheel for this Python or platform")
    from pyquant.verify.runtimes.onert import Runtime

    fp = tiny.text(num_hidden_layers=2)
    q = pyquant.prepare(fp, pyquant.Policy.preset("float"))
    pyquant.convert(q)
    batch = tiny.Batch((8,))
    given = {**tiny.deepstacked(batch), "deepstack_visual_embeds": tiny.features(batch, 2)}
    with torch.no_grad():
        first = fp(**given)
        if step == "prefill":
            adapter = q.as_export_module(TextProfile(1, 8, deepstack=2))
            tensors, expected = tiny.graph_inputs(given, batch), first.last_hidden_state
        else:
            past = {
                f"past_{what}_{i}": (layer.keys if what == "key" else layer.values).clone()
                for i, layer in enumerate(first.past_key_values.layers)
                for what in ("key", "value")
            }
            at = torch.full((3, 1, 1), 9)
            token = tiny.randn(1, 1, tiny.D, seed=6)
            cos, sin = tiny.hf.Qwen3VLTextRotaryEmbedding(tiny.config())(token, at)
            rest = {"attention_mask": torch.zeros(1, 1, 1, 9), "cos": cos, "signed_sin": tiny.signed(sin)}
            tensors = {"inputs_embeds": token, **rest, **past}
            adapter = q.as_export_module(TextProfile(1, 1, past_len=8))
            expected = fp(inputs_embeds=token, position_ids=at, **{CACHE: first.past_key_values}).last_hidden_state
        assert list(adapter.input_specs) == list(tensors)
        out = Runtime(pyquant.export(adapter, target="onert")).run(list(tensors.values()))
        tiny.close(q.norm(out["hidden_states"]), expected, 1e-5)
