# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that other tools' own packages write, and their own dequantized values. Each package is optional."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_cases as cases
import torch
from torch import Tensor, nn

import pyquant
from pyquant.metrics import sqnr_db
from pyquant.spec import INT8, QuantSpec
from pyquant.weight import weights
from tests import checkpoints

IDS = torch.arange(24).reshape(2, 12)
W8A16 = pyquant.Policy.preset("w8a16")
SPEC = QuantSpec(INT8, symmetric=True)


@pytest.fixture(scope="module")
def ct() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        return pytest.importorskip("compressed_tensors")


WAYS: dict[str, dict[str, Any]] = {
    "W4": {"num_bits": 4, "symmetric": True},
    "W4 asymmetric": {"num_bits": 4, "symmetric": False},
    "W8": {"num_bits": 8, "symmetric": True},
    "W8 asymmetric": {"num_bits": 8, "symmetric": False},
}


def compressed_by_itself(fp: Any, folder: Path, args: dict[str, Any], activations: dict[str, Any] | None) -> Any:
    """Quantized by compressed-tensors alone; returns its model, decompressed by itself."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    weights = {**args, "type": "int", "strategy": "channel"}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    config = QuantizationConfig(config_groups={"g": scheme}, ignore=["lm_head", "re:.*visual.*"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apply_quantization_config(fp, config)
        for _, module in fp.named_modules():
            if isinstance(module, nn.Linear) and hasattr(module, "weight_scale"):
                low, high = module.weight.amin(1, keepdim=True), module.weight.amax(1, keepdim=True)
                scale, zero = calculate_qparams(low, high, QuantizationArgs(**weights))
                module.weight_scale.data.copy_(scale)
                module.weight_zero_point.data.copy_(zero)
                if activations:
                    module.input_scale.data.fill_(0.05)
        compressor = ModelCompressor.from_pretrained_model(fp)
        compressor.compress_model(fp)
        fp.save_pretrained(folder)
        compressor.update_config(str(folder))
        compressor.decompress_model(fp)
    return fp


@pytest.mark.parametrize("way", WAYS)
def test_compressed_tensors_own_files_and_values(way: str, ct: Any, tmp_path: Path) -> None:
    theirs = compressed_by_itself(cases.llama(), tmp_path, WAYS[way], None)
    fp: Any = pyquant.interop.load(tmp_path)
    q = pyquant.prepare(fp, W8A16, checkpoint=tmp_path)
    decided = {weight.path.removesuffix(":weight"): weight for weight in weights(q) if weight.how}
    assert len(decided) == 14
    for path, weight in decided.items():
        assert torch.equal(fp.get_submodule(path).weight, theirs.get_submodule(path).weight)
        assert torch.equal(weight.value, theirs.get_submodule(path).weight)
    with torch.no_grad():
        expected = theirs(input_ids=IDS).logits
        assert float((fp(input_ids=IDS).logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_qwen3_vl_with_static_activations(ct: Any, tmp_path: Path) -> None:
    """int-quantized: the weights, and one scale for the input of each linear; the vision tower stays float in it."""
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
    theirs = compressed_by_itself(
        checkpoints.qwen3_vl_model(), tmp_path, {"num_bits": 8, "symmetric": True}, activations
    )
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["format"] == "int-quantized"
    fp: Any = pyquant.interop.load(tmp_path)
    rules = [pyquant.Rule(f"model.language_model.layers*proj:{name}", spec=SPEC) for name in ("act_in", "weight")]
    q: Any = pyquant.prepare(fp, pyquant.Policy(rules), checkpoint=tmp_path)
    decided = [site for site in q.all_sites() if site.decided]
    assert len(decided) == 2 * 14
    for weight in weights(q):
        if weight.how:
            path = weight.path.removesuffix(":weight")
            assert torch.equal(weight.value, theirs.get_submodule(path).weight)
            assert float(q.get_submodule(path).site("act_in").scale) == pytest.approx(0.05)
    batch = {"input_ids": IDS + 20, "attention_mask": torch.ones_like(IDS)}
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    with torch.no_grad():  # their forward rounds inputs as ours does; a value in the middle of two may differ
        assert sqnr_db(theirs(**batch).logits, q(**batch).logits) > 40


def packed(fp: nn.Module, layer: Any, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The folder of `fp` with each linear as what `layer(linear)` makes of it; returns these layers."""
    made = {path: layer(module) for path, module in cases.linears(fp).items()}
    truths: Any = dict.fromkeys(made)

    def tensors(path: str, _: Any) -> dict[str, Tensor]:
        names = ("qweight", "qzeros", "scales", "g_idx")
        return {name: getattr(made[path], name).cpu() for name in names if hasattr(made[path], name)}

    cases.written(fp, folder, truths, tensors, config)
    return made


@pytest.mark.parametrize(
    ("packing", "symmetric"),
    [("auto_round:auto_gptq", True), ("auto_round:auto_gptq", False), ("auto_round", False)],
    ids=str,
)
def test_auto_rounds_own_layers_and_values(packing: str, symmetric: bool, tmp_path: Path) -> None:
    """Its own grid (the full range, with negative scales), its own packing, its own forward."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("auto_round")
        from auto_round.data_type.int import quant_tensor_asym, quant_tensor_sym
        from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    module = qlinear_torch_zp if "gptq" in packing else qlinear_torch
    quantize = quant_tensor_sym if symmetric else quant_tensor_asym

    def layer(linear: nn.Linear) -> Any:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value, scale, zero = quantize(linear.weight.data.clone(), bits=4, group_size=-1)
            linear.weight.copy_(value)
            new = module.QuantLinear(4, -1, linear.in_features, linear.out_features, bias=False)
            new.device, rows = "cpu", linear.out_features
            zero = zero.reshape(rows, 1) if isinstance(zero, Tensor) else torch.full((rows, 1), float(zero))
            new.pack(linear, scale.reshape(rows, 1), zero, device="cpu")
            new.post_init()
        return new

    fp = cases.llama()
    config = {"quant_method": "auto-round", "bits": 4, "group_size": -1, "sym": symmetric, "packing_format": packing}
    layers = packed(fp, layer, tmp_path, config)
    q = pyquant.prepare(pyquant.interop.load(tmp_path), W8A16, checkpoint=tmp_path)
    zeros = set()
    for weight in weights(q):
        if weight.how:
            path = weight.path.removesuffix(":weight")
            eye = torch.eye(fp.get_submodule(path).in_features)
            theirs = layers[path](eye.half()).float().t()
            assert torch.equal(weight.value.half().float(), theirs)
            zeros |= set(weight.qparams.zero_point.tolist())
    assert zeros == {0, -1} if symmetric else len(zeros) > 2


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptqmodels_own_packing_and_values(form: str, tmp_path: Path) -> None:
    """Zero points of 0 too, which the older format has as -1: a borrow from the number beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gptqmodel")
        from gptqmodel import QuantizeConfig
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    truths = {}

    def layer(linear: nn.Linear) -> Any:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            linear.weight[::3] = linear.weight[::3].abs()
            truth = truths[linear] = cases.grid(linear.weight, 4, symmetric=False, lowest=0)
            linear.weight.copy_(torch.from_numpy(truth.value))
            new = TorchLinear(
                bits=4, group_size=-1, desc_act=False, sym=False, in_features=linear.in_features,
                out_features=linear.out_features,
            )  # fmt: skip
            index = torch.zeros(linear.in_features, dtype=torch.int32)
            new.pack_original(linear, torch.from_numpy(truth.scale), torch.from_numpy(truth.zero).float(), index)
            if form == "gptq":
                convert_gptq_v2_to_v1_format_module(new, QuantizeConfig(bits=4, group_size=-1))
        return new

    fp = cases.llama()
    config = {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": False, "checkpoint_format": form}
    layers = packed(fp, layer, tmp_path, config)
    q = pyquant.prepare(pyquant.interop.load(tmp_path), W8A16, checkpoint=tmp_path)
    zeros = set()
    for weight in weights(q):
        if weight.how:
            path = weight.path.removesuffix(":weight")
            truth = truths[fp.get_submodule(path)]
            assert np.array_equal(weight.integers.numpy(), truth.signed)
            assert np.array_equal(weight.value.numpy(), truth.value)
            zeros |= set(truth.zero.reshape(-1).tolist())
            if form == "gptq_v2":
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    layers[path].post_init()
                    assert torch.equal(weight.value.half(), layers[path].dequantize_weight().t())
    assert 0 in zeros
