# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other tools in their documented layouts: values, integers, saved trees, files, the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_cases as cases
import torch
from circle_schema.v0_10.circle.Model import Model, ModelT
from safetensors.torch import load_file

import pyquant
from pyquant import circle
from pyquant.errors import ModelError
from pyquant.exporter.profile import ExportProfile, TensorSpec
from pyquant.spec import INT8, QuantSpec
from pyquant.verify import compare
from pyquant.weight import weights

IDS = torch.arange(24).reshape(2, 12)
W8A16 = pyquant.Policy.preset("w8a16")

WAYS: dict[str, Callable[[Any, Path], cases.Truths]] = {
    "compressed 4": lambda fp, to: cases.compressed(fp, to),
    "compressed 4, zero points": lambda fp, to: cases.compressed(fp, to, symmetric=False),
    "compressed 8": lambda fp, to: cases.compressed(fp, to, bits=8, packed=False),
    "compressed 8, packed, zero points": lambda fp, to: cases.compressed(fp, to, bits=8, symmetric=False),
    "compressed 8, zero points": lambda fp, to: cases.compressed(fp, to, bits=8, packed=False, symmetric=False),
    "compressed 2": lambda fp, to: cases.compressed(fp, to, bits=2),
    "gptq 4": lambda fp, to: cases.gptq(fp, to),
    "gptq 4, zero points": lambda fp, to: cases.gptq(fp, to, symmetric=False),
    "gptq 4, v2, zero points": lambda fp, to: cases.gptq(fp, to, symmetric=False, form="gptq_v2"),
    "gptq 8, act-order": lambda fp, to: cases.gptq(fp, to, bits=8, order=True),
    "autoround 4": lambda fp, to: cases.gptq(fp, to, method="auto-round", packing="auto_round:auto_gptq"),
    "autoround 8, plain, zero points": lambda fp, to: cases.gptq(
        fp, to, bits=8, symmetric=False, method="auto-round", packing="auto_round"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_tree_has_the_integers_of_the_checkpoint(way: str, tmp_path: Path) -> None:
    truths = WAYS[way](cases.llama(), tmp_path)
    if "act-order" in way:  # per channel: the order of columns says nothing, and they were written in another one
        truths = {path: shuffled(truth) for path, truth in truths.items()}
    fp: Any = pyquant.interop.load(tmp_path)
    q = pyquant.prepare(fp, W8A16, checkpoint=tmp_path)
    found = {weight.path.removesuffix(":weight"): weight for weight in weights(q)}
    assert {path for path, weight in found.items() if weight.how} == set(truths)
    for path, truth in truths.items():
        weight = found[path]
        assert np.array_equal(fp.get_submodule(path).weight.detach().numpy(), truth.value)
        assert np.array_equal(weight.integers.numpy(), truth.signed)
        assert np.array_equal(weight.qparams.scale.numpy(), truth.scale[:, 0])
        assert np.array_equal(weight.qparams.zero_point.numpy(), truth.zero[:, 0] - (1 << (truth.bits - 1)))
        assert weight.spec.dtype.bits == max(truth.bits, 4)
    with torch.no_grad(), pyquant.wrap.phase(q, pyquant.wrap.Phase.FLOAT):
        expected = fp(input_ids=IDS).logits
        assert float((q(input_ids=IDS).logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def shuffled(truth: cases.Truth) -> cases.Truth:
    order = np.random.default_rng(0).permutation(truth.numbers.shape[1])
    return cases.Truth(truth.bits, truth.numbers[:, order], truth.scale, truth.zero)


def test_converted_and_saved_it_keeps_them(tmp_path: Path) -> None:
    truths = cases.compressed(cases.llama(), tmp_path / "m", bits=8, symmetric=False)
    q: Any = pyquant.prepare(
        pyquant.interop.load(tmp_path / "m"), pyquant.Policy.preset("w4a16"), checkpoint=tmp_path / "m"
    )
    pyquant.calibrate(q, [{"input_ids": IDS}], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    again: Any = pyquant.load_quantized(tmp_path / "q")
    assert torch.equal(again(input_ids=IDS).logits, q(input_ids=IDS).logits)
    stored = load_file(tmp_path / "q" / "quantized.safetensors")
    for path, truth in truths.items():
        assert np.array_equal(stored[f"{path}.weight"].numpy(), truth.signed)
    explained = str(again.policy.explain(again))
    assert "stored, in the compressed-tensors checkpoint" in explained or explained == str(q.policy.explain(q))


@pytest.mark.parametrize("way", ["compressed 4", "compressed 4, zero points", "compressed 8, zero points", "gptq 4"])
def test_the_file_has_them_bit_for_bit_and_computes_as_the_tree(way: str, tmp_path: Path) -> None:
    """An MLP alone, whose paths have no prefix; read by our reader and by circle-schema."""
    truths = WAYS[way](cases.llama(), tmp_path)
    fp: Any = pyquant.interop.load(tmp_path)
    x = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(1))
    q = pyquant.prepare(fp.model.layers[0].mlp, W8A16, checkpoint=tmp_path)
    pyquant.calibrate(q, [(x,)], progress=False)
    pyquant.convert(q)
    program = pyquant.export(q, ExportProfile({"x": TensorSpec(tuple(x.shape), torch.float32)}, ("y",)))
    assert program.missing_qparams() == []
    output = compare(program, q, [x]).outputs[0]
    assert output.exported_equal
    assert output.beyond == 0
    program.save(tmp_path / "mlp.circle")
    ours = [tensor for tensor in circle.read(tmp_path / "mlp.circle").tensors if tensor.data is not None]
    theirs = ModelT.InitFromObj(Model.GetRootAs((tmp_path / "mlp.circle").read_bytes()))
    buffers = [bytes(buffer.data) for buffer in theirs.buffers if buffer.data is not None]
    for name in ("gate_proj", "up_proj", "down_proj"):
        truth = truths[f"model.layers.0.mlp.{name}"]
        data = stored_bytes(truth)
        (tensor,) = [each for each in ours if bytes(each.data) == data]
        assert data in buffers
        assert np.array_equal(np.float32(tensor.scale), truth.scale[:, 0])
        zero = truth.zero[:, 0] - (1 << (truth.bits - 1))
        assert np.array_equal(np.broadcast_to(tensor.zero_point, zero.shape), zero)


def stored_bytes(truth: cases.Truth) -> bytes:
    """As a Circle file has them: int8, or two int4 in a byte, the first one low."""
    flat = truth.signed.reshape(-1)
    if truth.bits == 8:
        return flat.astype(np.int8).tobytes()
    return ((flat[0::2] & 15) | ((flat[1::2] & 15) << 4)).astype(np.uint8).tobytes()


def test_a_site_that_the_policy_leaves_float_has_the_values(tmp_path: Path) -> None:
    cases.compressed(cases.llama(), tmp_path)
    policy = W8A16.with_rule(pyquant.Rule("*down_proj:weight", spec=None))
    q = pyquant.prepare(pyquant.interop.load(tmp_path), policy, checkpoint=tmp_path)
    for weight in weights(q):
        assert bool(weight.how) == ("down_proj" not in weight.path and weight.path.startswith("model.layers"))


def test_static_activations_and_caches_are_taken(tmp_path: Path) -> None:
    fp = cases.llama()
    inputs = {path: (0.01 + 0.001 * number, number - 5) for number, path in enumerate(cases.linears(fp))}
    cache = {f"model.layers.{layer}.self_attn.{kind}_scale": 0.02 + layer for layer in range(2) for kind in "kv"}
    cases.compressed(fp, tmp_path, bits=8, packed=False, inputs=inputs, cache=cache)
    q: Any = pyquant.prepare(pyquant.interop.load(tmp_path), W8A16, checkpoint=tmp_path)
    for path, (scale, zero_point) in inputs.items():
        site = q.get_submodule(path).site("act_in")
        assert site.spec == QuantSpec(INT8, symmetric=False)
        assert float(site.scale) == np.float32(scale)
        assert int(site.zero_point) == zero_point
        assert not q.get_submodule(path).site("act_out").decided
    for name, scale in cache.items():
        path, _, kind = name.rpartition(".")
        site = q.get_submodule(path).site({"k": "key", "v": "value"}[kind[0]])
        assert site.spec == QuantSpec(INT8, symmetric=True)
        assert float(site.scale) == np.float32(scale)
    pyquant.calibrate(q, [{"input_ids": IDS}], progress=False)
    pyquant.convert(q)


def test_negative_scales_are_turned_around(tmp_path: Path) -> None:
    """AutoRound's full range: the values are its own, to the bit, and every scale of a grid is positive."""
    packing = {"method": "auto-round", "packing": "auto_round:auto_gptq"}
    truths = cases.gptq(cases.llama(), tmp_path, sign=-1, **packing)
    q: Any = pyquant.prepare(pyquant.interop.load(tmp_path), W8A16, checkpoint=tmp_path)
    seen = set()
    for weight in weights(q):
        if weight.how:
            truth = truths[weight.path.removesuffix(":weight")]
            assert np.array_equal(weight.value.numpy(), truth.value)
            grid = weight.qparams
            turned = (weight.integers - grid.zero_point[:, None]) * grid.scale[:, None]
            assert np.array_equal(turned.numpy(), truth.value)
            seen |= set(grid.zero_point.tolist())
    assert seen == {0, -1}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_model_keeps_the_integers_or_says_so(dtype: str, tmp_path: Path) -> None:
    cases.compressed(cases.llama(), tmp_path / "z", bits=8, symmetric=False, scales=torch.float16)
    if dtype == "bfloat16":  # 8 bits of a value, and 9 of an integer less its zero point
        fp = pyquant.interop.load(tmp_path / "z", dtype)
        with pytest.raises(ModelError, match=r"a model in bfloat16 cannot hold the 8-bit integers of .*float32"):
            pyquant.prepare(fp, W8A16, checkpoint=tmp_path / "z")
    truths = cases.compressed(cases.llama(), tmp_path, bits=8, scales=torch.float16)
    q = pyquant.prepare(pyquant.interop.load(tmp_path, dtype), W8A16, checkpoint=tmp_path)
    for weight in weights(q):
        if weight.how:
            assert np.array_equal(weight.integers.numpy(), truths[weight.path.removesuffix(":weight")].signed)


def test_shards_ties_and_the_generation_config_are_read(tmp_path: Path) -> None:
    fp = cases.llama(tie_word_embeddings=False)
    fp.generation_config.max_new_tokens = 7
    truths = cases.compressed(fp, tmp_path)
    tensors = load_file(tmp_path / cases.SHARD)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        cases.save_file({name: tensors[name] for name in part}, tmp_path / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(cases.json.dumps(index))
    (tmp_path / cases.SHARD).unlink()
    back: Any = pyquant.interop.load(tmp_path)
    assert back.generation_config.max_new_tokens == 7
    assert torch.equal(back.lm_head.weight, fp.lm_head.weight)
    assert back.config.name_or_path == str(tmp_path)
    path = "model.layers.1.self_attn.v_proj"
    assert np.array_equal(back.get_submodule(path).weight.detach().numpy(), truths[path].value)
    assert not hasattr(back.config, "quantization_config")


def test_a_type_has_two_spellings(tmp_path: Path) -> None:
    with pytest.raises(pyquant.errors.ModelError, match=r"types float32, bfloat16, float16, got .* 'bf17'"):
        pyquant.interop.load(tmp_path, dtype="bf17")
    with pytest.raises(pyquant.errors.ModelError, match="load takes a folder and one of the types"):
        pyquant.interop.load(None)  # type: ignore[arg-type]
