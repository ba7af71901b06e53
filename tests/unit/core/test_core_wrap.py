# SPDX-License-Identifier: Apache-2.0
"""QModule and the registry: building a tree, sharing without changing, phases, biases, moving, the default adapter."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from core_toys import QuantToyNorm, ToyBlock, ToyLinear, ToyModel, ToyNorm, ToyUnknown
from torch import Tensor, nn

import pyquant
from pyquant import ObserverSpec, PerAxis, PerGroup, Policy, QuantSpec, Rule, models, ops, wrap
from pyquant.errors import PhaseError, PolicyError, ProfileError, UnknownModuleError
from pyquant.spec import INT4, INT8, INT16, UINT4, UINT8
from pyquant.wrap import GraphAdapter, Phase, QModule, Role, Site, WrapContext, registry

W8A8 = Policy.preset("w8a8")


def tree(fp: nn.Module, policy: Policy = W8A8) -> QModule:
    return wrap.wrap(fp, WrapContext("", policy))


def quantized(fp: nn.Module, policy: Policy, *xs: Tensor) -> QModule:
    q = pyquant.prepare(fp, policy)
    pyquant.calibrate(q, list(xs), progress=False)
    pyquant.convert(q)
    return q


# --- registry ---


def test_register_is_a_decorator_that_returns_the_wrapper() -> None:
    class Fp(nn.Module):
        pass

    class QuantFp(QModule):
        pass

    assert pyquant.register(Fp)(QuantFp) is QuantFp
    try:
        assert registry.wrapper_of(Fp) is QuantFp
        assert registry.qualified(Fp) in registry.names()
        pyquant.register(Fp)(QuantFp)  # the same again is no conflict
        with pytest.raises(UnknownModuleError, match="already has the wrapper QuantFp; QuantToyNorm cannot replace it"):
            pyquant.register(Fp)(QuantToyNorm)
    finally:
        registry.unregister(Fp)
    assert registry.qualified(Fp) not in registry.names()


@pytest.mark.parametrize("what", [int, "Linear", nn.Linear(1, 1)], ids=["class", "name", "instance"])
def test_register_takes_module_classes(what: Any) -> None:
    with pytest.raises(UnknownModuleError, match=r"expected a class of nn\.Module"):
        pyquant.register(what)


def test_unknown_module_lists_what_exists() -> None:
    with pytest.raises(UnknownModuleError) as caught:
        tree(ToyUnknown())
    text = str(caught.value)
    assert text.startswith("the model is a core_toys:ToyUnknown, which has no wrapper.")
    assert all(name in text for name in ("ToyBlock", "ToyModel", "ToyNorm"))
    assert isinstance(caught.value, KeyError)


def test_unknown_module_inside_a_model_is_named_by_path() -> None:
    model = ToyModel()
    model.layers[1].down = ToyUnknown()
    with pytest.raises(UnknownModuleError, match=r"module 'layers.1.down' is a core_toys:ToyUnknown"):
        tree(model)


def test_subclass_of_a_known_class_says_how_to_register_it() -> None:
    with pytest.raises(
        UnknownModuleError, match=r"It derives from Linear.*pyquant.register\(ToyLinear\)\(QuantLinear\)"
    ):
        tree(ToyLinear(2, 2))


def test_a_misspelt_neighbour_is_offered() -> None:
    near = type("ToyBlok", (nn.Module,), {})
    with pytest.raises(UnknownModuleError, match=r"Near: ToyBlock"):
        tree(near())


def test_families_load_on_demand_and_only_ours() -> None:
    assert models.find("transformers.models.no_such_family.modeling:Model") is None
    assert models.find("os:system") is None
    assert models.find("core_toys:ToyNorm") is ToyNorm
    found = models.find("transformers.models.llama.modeling_llama:LlamaModel")
    assert found is not None
    assert registry.wrapper_of(found).__name__ == "QuantLlamaModel"


# --- building ---


def test_paths_follow_the_float_model(model: ToyModel) -> None:
    paths = [site.path for site in tree(model).all_sites()]
    assert len(paths) == len(set(paths))
    assert {"embed:weight", "layers.0:probs", "layers.1.norm:act_out", "layers.0.up:act_in", "head:act_out"} <= set(
        paths
    )
    assert [s.path for s in tree(ToyNorm(2)).all_sites()] == [":weight", ":act_out"]


def test_the_tree_shares_parameters_and_no_modules(model: ToyModel) -> None:
    q = tree(model)
    assert q.embed.weight is model.embed.weight
    assert q.head.weight is q.embed.weight
    assert q.layers[0].table is model.layers[0].table
    assert not {id(m) for m in q.modules()} & {id(m) for m in model.modules()}
    assert q.layers[0].fp_type is ToyBlock


def test_missing_child_is_our_mistake_unless_optional() -> None:
    assert tree(ToyBlock()).extra is None
    assert isinstance(tree(ToyBlock(extra=True)).extra, QModule)
    broken = ToyBlock()
    broken.up = None
    with pytest.raises(AssertionError, match=r"expects ToyBlock.up at '', which has none; list it in OPTIONAL"):
        tree(broken)


def test_module_dicts_are_wrapped_entry_by_entry() -> None:
    class Fp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a": nn.Linear(2, 2), "b": ToyNorm(2)})

    class QuantFp(QModule):
        CHILDREN = ("parts",)

    q = QuantFp(Fp(), WrapContext("x", W8A8))
    assert [m.path for m in q.all_qmodules()] == ["x", "x.parts.a", "x.parts.b"]


def test_a_piece_without_a_float_module() -> None:
    class Piece(QModule):
        SITES: ClassVar = {"out": Role.UNIT}

    piece = Piece(None, WrapContext("a.piece", W8A8))
    assert piece.fp_type is None
    assert piece.site("out").path == "a.piece:out"


def test_sites_may_depend_on_the_float_module() -> None:
    class Some(QModule):
        SITES: ClassVar = {"a": Role.ACTIVATION, "b": Role.ACTIVATION}

        @classmethod
        def site_roles(cls, fp: Any) -> dict[str, Role]:
            return {"a": cls.SITES["a"]}

    assert [name for name, _ in Some(None, WrapContext("", W8A8)).own_sites()] == ["a"]


def test_rule_that_cannot_apply_names_rule_and_site() -> None:
    policy = W8A8 + Rule("*:probs", None, QuantSpec(INT8, True, PerAxis(1)), optional=True)
    with pytest.raises(PolicyError, match=r"rule #4 '\*:probs'.*does not fit the softmax site ':probs'.*is per tensor"):
        tree(ToyBlock(), policy)


def test_histogram_of_a_per_channel_activation_names_the_rule() -> None:
    policy = Policy((Rule("*", Role.ACTIVATION, QuantSpec(INT8, True, PerAxis(1)), ObserverSpec("mse")),))
    with pytest.raises(PolicyError, match=r"rule #0 .* does not fit the activation site ':act_in'.*use minmax"):
        tree(nn.Linear(2, 2), policy)


# --- phases ---


def test_a_phase_is_of_a_subtree(converted: QModule, xs: list[Tensor]) -> None:
    part, whole, rounded = converted.up, converted(xs[0]), converted.up(xs[0])
    with wrap.phase(part, Phase.FLOAT):
        assert {site.phase for site in part.all_sites()} == {part.phase} == {Phase.FLOAT}
        assert {site.phase for site in converted.down.all_sites()} == {converted.phase} == {Phase.QUANTIZED}
        assert not torch.equal(part(xs[0]), rounded)
        assert torch.equal(part(xs[0]), nn.functional.linear(xs[0], part.weight, part.bias))
        with pytest.raises(PhaseError, match=r"in phase FLOAT \(at 'up'\), expected QUANTIZED; use .*set_phase"):
            converted.require(Phase.QUANTIZED, "export")
        converted.down.require(Phase.QUANTIZED, "export")
    assert torch.equal(converted(xs[0]), whole)


def test_a_phase_is_of_a_single_site(converted: QModule, xs: list[Tensor]) -> None:
    site = converted.up.site("act_in")
    with wrap.phase(site, Phase.FLOAT):
        assert site(xs[0]) is xs[0]
        assert converted.up.site("weight").phase is Phase.QUANTIZED
    assert site.phase is Phase.QUANTIZED


def test_a_mixed_tree_gets_its_own_mixture_back(converted: QModule) -> None:
    wrap.set_phase(converted.up, Phase.FLOAT)
    with wrap.phase(converted, Phase.FLOAT):
        assert {m.phase for m in converted.phased()} == {Phase.FLOAT}
    assert (converted.phase, converted.up.phase, converted.down.phase) == (
        Phase.QUANTIZED,
        Phase.FLOAT,
        Phase.QUANTIZED,
    )


@pytest.mark.parametrize("name", ["act_in", "weight"])
def test_a_bias_is_on_its_grid_when_input_and_weight_are(name: str) -> None:
    q = quantized(nn.Linear(8, 4), W8A8, torch.randn(16, 8))
    on_grid = q.qbias("bias", q.bias)
    assert on_grid is not q.bias
    with wrap.phase(q.site(name), Phase.FLOAT):
        assert q.qbias("bias", q.bias) is q.bias
    assert q.qbias("bias", q.bias) is on_grid


@pytest.mark.parametrize("start", [Phase.CALIBRATE, Phase.FLOAT], ids=lambda p: p.name)
def test_a_tree_converted_inside_a_phase_stays_converted(block: ToyBlock, xs: list[Tensor], start: Phase) -> None:
    """On old main the block ended by writing CALIBRATE into a converted tree, which then computed float."""
    q = pyquant.prepare(block, W8A8)
    wrap.set_phase(q, start)
    with wrap.phase(q, Phase.CALIBRATE):
        pyquant.calibrate(q, xs, progress=False)
        pyquant.convert(q)
    assert q.phase is (Phase.QUANTIZED if start is Phase.CALIBRATE else start)
    wrap.set_phase(q, Phase.QUANTIZED)
    other = pyquant.prepare(block, W8A8)
    pyquant.calibrate(other, xs, progress=False)
    pyquant.convert(other)
    assert torch.equal(q(xs[0]), other(xs[0]))


def test_phase_comes_back_after_an_error(converted: QModule) -> None:
    with pytest.raises(RuntimeError, match="inside"), wrap.phase(converted, Phase.FLOAT):
        raise RuntimeError("inside")
    assert converted.phase is Phase.QUANTIZED


def test_float_phase_is_the_float_model(converted: QModule, block: ToyBlock, xs: list[Tensor]) -> None:
    assert not torch.equal(converted(xs[0]), block(xs[0]))
    with wrap.phase(converted, Phase.FLOAT):
        torch.testing.assert_close(converted(xs[0]), block(xs[0]), rtol=1e-6, atol=1e-6)


def test_no_way_back_to_calibration(converted: QModule) -> None:
    with pytest.raises(PhaseError, match="prepare the float model again"):
        wrap.set_phase(converted, Phase.CALIBRATE)
    with pytest.raises(PhaseError, match=r"run pyquant\.convert"):
        wrap.set_phase(tree(ToyBlock()), Phase.QUANTIZED)


# --- biases ---

BIAS_GRIDS = {
    "8-bit": (QuantSpec(UINT8), QuantSpec(INT8, True, PerAxis(0)), 32),
    "8-bit-per-tensor": (QuantSpec(INT8), QuantSpec(INT8, True), 32),
    "16-bit": (QuantSpec(INT16, True), QuantSpec(INT4, True, PerAxis(0)), 64),
    "4-bit-input": (QuantSpec(UINT4), QuantSpec(INT8, True), None),
    "grouped-weight": (QuantSpec(UINT8), QuantSpec(INT4, True, PerGroup(1, 4)), None),
    "float-weight": (QuantSpec(UINT8), None, None),
    "float-input": (None, QuantSpec(INT8, True), None),
}


@pytest.mark.parametrize("case", BIAS_GRIDS)
def test_bias_is_on_the_grid_of_input_times_weight(case: str) -> None:
    act, weight, bits = BIAS_GRIDS[case]
    fp, x = nn.Linear(8, 4), torch.randn(16, 8)
    q = quantized(fp, Policy((Rule("*", Role.ACTIVATION, act), Rule("*", Role.WEIGHT, weight))), x)
    got = q.qbias("bias", q.bias)
    if bits is None:
        assert got is q.bias
        return
    scale = q.site("act_in").scale * q.site("weight").scale
    assert torch.equal(got, ops.fake_quantize_bias(fp.bias, scale, bits))
    assert not torch.equal(got, fp.bias)
    assert torch.allclose(got, fp.bias, rtol=0, atol=float(scale.max()))


def test_bias_is_computed_once_and_again_after_an_edit(calls: Counter[str]) -> None:
    fp, x = nn.Linear(8, 4), torch.randn(16, 8)
    q = quantized(fp, W8A8, x)
    first = q.qbias("bias", q.bias)
    assert q.qbias("bias", q.bias) is first
    assert calls["fake_quantize_bias"] == 1
    with torch.no_grad():
        fp.bias.add_(1)
    assert (q.qbias("bias", q.bias) - first).min() > 0.9


def test_bias_keeps_its_dtype() -> None:
    fp, x = nn.Linear(8, 4).bfloat16(), torch.randn(16, 8).bfloat16()
    q = quantized(fp, W8A8, x)
    assert q.qbias("bias", q.bias).dtype == torch.bfloat16
    assert q(x).dtype == torch.bfloat16


def test_no_bias_is_no_bias() -> None:
    q = quantized(nn.Linear(8, 4, bias=False), W8A8, torch.randn(16, 8))
    assert q.qbias("bias", None) is None


# --- moving and copying ---


def test_casting_the_tree_leaves_the_float_model(model: ToyModel) -> None:
    q = quantized(model, W8A8, torch.arange(10))
    before = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    q.to(torch.bfloat16)
    assert q.head.weight.dtype == torch.bfloat16
    assert q.head.weight.data_ptr() == q.embed.weight.data_ptr()  # still tied
    assert q.layers[0].up.bias_scale.dtype == torch.float32
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert model(torch.arange(3)).dtype == torch.float32
    assert q(torch.arange(3)).dtype == torch.bfloat16


def test_casting_there_and_back_is_bit_identical(converted: QModule, xs: list[Tensor]) -> None:
    want = converted(xs[0])
    assert torch.equal(converted.double().float()(xs[0]), want)


def test_moving_to_meta_moves_everything(converted: QModule) -> None:
    converted.to("meta")
    assert {t.device.type for t in (*converted.parameters(), *converted.buffers())} == {"meta"}


@pytest.mark.parametrize("how", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("stage", ["calibrating", "converted"])
def test_a_copy_is_independent(block: ToyBlock, xs: list[Tensor], stage: str, how: Any) -> None:
    q = pyquant.prepare(block, W8A8)
    pyquant.calibrate(q, xs, progress=False)
    if stage == "converted":
        pyquant.convert(q)
        q(xs[0])
    twin = how(q)
    if stage == "calibrating":
        pyquant.convert(twin)
        assert q.phase is Phase.CALIBRATE
        pyquant.convert(q)
    assert torch.equal(twin(xs[0]), q(xs[0]))
    with wrap.phase(twin, Phase.FLOAT):
        assert q.phase is Phase.QUANTIZED
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in q.parameters()}


def test_state_dict_round_trip_between_two_trees(converted: QModule, block: ToyBlock, xs: list[Tensor]) -> None:
    other = quantized(copy.deepcopy(block), W8A8, torch.randn(3, 8) * 9)
    assert not torch.equal(other(xs[0]), converted(xs[0]))
    other.load_state_dict(converted.state_dict())
    for module in other.all_qmodules():
        module.compute_bias_scales()
    assert torch.equal(other(xs[0]), converted(xs[0]))


# --- export ---


def profile(*inputs: str, outputs: tuple[str, ...] = ("y",)) -> SimpleNamespace:
    return SimpleNamespace(inputs=dict.fromkeys(inputs), outputs=outputs)


def test_export_before_convert_is_refused(block: ToyBlock) -> None:
    q = pyquant.prepare(block, W8A8)
    with pytest.raises(
        PhaseError, match=r"export before.*QuantToyBlock is in phase CALIBRATE.*pyquant.convert\(q\) first"
    ):
        q.as_export_module(profile("x"))


def test_default_adapter(converted: QModule, xs: list[Tensor]) -> None:
    adapter = converted.as_export_module(profile("x"))
    assert isinstance(adapter, GraphAdapter)
    assert (adapter.name, list(adapter.input_specs), adapter.output_names) == ("toyblock", ["x"], ("y",))
    assert torch.equal(adapter(xs[0]), converted(xs[0]))
    by_position = converted.as_export_module(profile("hidden_states"))
    assert torch.equal(by_position(xs[0]), converted(xs[0]))


def test_adapter_passes_by_name_where_it_can() -> None:
    class Sub(QModule):
        def forward(self, a: Tensor, b: Tensor | None = None, *, c: Tensor) -> Tensor:
            return a - c if b is None else b

    one, two = torch.ones(1), torch.zeros(1)
    q = Sub(None, WrapContext("", W8A8))
    pyquant.convert(q)
    assert q.as_export_module(profile("c", "a"))(one, two).item() == -1


def test_adapter_refuses_more_inputs_than_forward_takes(converted: QModule) -> None:
    with pytest.raises(
        ProfileError, match=r"the profile has the inputs \['x', 'mask'\], but QuantToyBlock.forward takes \['x'\]"
    ):
        converted.as_export_module(profile("x", "mask"))


def test_export_has_one_node_per_site_and_changes_nothing(
    converted: QModule, xs: list[Tensor], calls: Counter[str]
) -> None:
    before = {k: v.clone() for k, v in converted.state_dict().items()}
    want = converted(xs[0])
    with torch.no_grad():
        program = torch.export.export(converted.as_export_module(profile("x")), (xs[0],), strict=False)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    sites = [site for site in converted.all_sites() if site.spec is not None]
    assert targets.count("pyquant.fake_quantize.default") == len(sites)
    assert targets.count("pyquant.fake_quantize_bias.default") == 1
    assert torch.equal(program.module()(xs[0]), want)
    assert torch.equal(converted(xs[0]), want)
    assert all(torch.equal(v, before[k]) for k, v in converted.state_dict().items())


def test_compiled_tree_gives_the_same(converted: QModule, xs: list[Tensor]) -> None:
    compiled = torch.compile(converted, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(xs[0]), converted(xs[0]))


def test_wrappers_come_in_the_order_of_modules_and_each_once(model: ToyModel) -> None:
    q = pyquant.prepare(model, Policy.preset("w8a8"))
    q.again = q.layers[1]  # a wrapper at two places
    assert [*q.all_qmodules()] == [module for module in q.modules() if isinstance(module, QModule)]
    assert {*q.all_sites()} == {module for module in q.modules() if isinstance(module, Site)}
