# SPDX-License-Identifier: Apache-2.0
"""TextProfile and TextAdapter: the static prefill and decode graphs of the text model, of one layer, of one attention.

It owns the names and shapes of their inputs and outputs. The arithmetic is the wrappers' own; masks and rotary tables
are inputs that the host makes (host.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.qwen3_vl.past import Past
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import Phase, QModule
from pyquant.wrap.rotary import RotaryTables


@dataclass(frozen=True)
class TextProfile:
    """One graph over `seq_len` new tokens after `past_len` cached ones, for `batch_size` rows.

    `deepstack`: how many layers have a dense addend (B, S, D) as input: 0 for decode and for prompts without images.
    `layer`: None for the stack, i for layer i alone. `attention`: all heads in one product, or one product per head.

    Inputs: `inputs_embeds` (`hidden_states` for a layer) (B, S, D), `deepstack_{k}` (`deepstack` for a layer),
    `attention_mask` (B, 1, S, past_len + S) of 0 and wrap.attention.FILL, `cos` and `signed_sin` (B, S, head_dim; the
    first half of sin negated), and with a past `past_key_{i}`, `past_value_{i}` (B, Hkv, past_len, head_dim).
    Outputs: `hidden_states`, before the final norm (`hidden_states_out` for a layer), and what to put into the cache:
    `new_key_{i}`, `new_value_{i}` (B, Hkv, S, head_dim). A layer's tensors have no `_{i}`.

    Raises ProfileError for what no model could accept. What contradicts one model is raised when it is exported.
    """

    batch_size: int
    seq_len: int
    past_len: int = 0
    deepstack: int = 0
    layer: int | None = None
    attention: Literal["batched", "per_head"] = "batched"

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "seq_len": 1, "past_len": 0, "deepstack": 0, "layer": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if name == "layer" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ProfileError(f"TextProfile.{name} is an integer of at least {low}, got {value!r}")
        if self.attention not in ("batched", "per_head"):
            raise ProfileError(f"TextProfile.attention is 'batched' or 'per_head', got {self.attention!r}")

    @property
    def keys(self) -> int:
        """Keys that each query sees: the cached ones and the new ones."""
        return self.past_len + self.seq_len

    @property
    def name(self) -> str:
        """`prefill_s8`, `decode`, `prefill_s8_layer0`; with several tokens after a past, `prefill_s8_p16`."""
        kind = f"prefill_s{self.seq_len}"
        if self.past_len:
            kind = "decode" if self.seq_len == 1 else f"{kind}_p{self.past_len}"
        return kind if self.layer is None else f"{kind}_layer{self.layer}"


class GraphInputs(NamedTuple):
    """A graph's tensors as the wrappers take them."""

    hidden: Tensor
    addends: tuple[Tensor, ...]
    tables: RotaryTables
    mask: AdditiveMask
    past: Past
    per_head: bool


class _OneLayer(nn.Module):
    """What the graph of one layer uses of the text model, each at the place where it stands there."""

    def __init__(self, model: Any, layer: int) -> None:
        super().__init__()
        self.sites, self.rotary_emb = model.sites, model.rotary_emb
        self.layers = nn.ModuleDict({str(layer): model.layers[layer]})


class TextAdapter(nn.Module):
    """`call(module, GraphInputs)` as a static graph. Shares the wrappers, owns no tensor.

    `attentions` are those whose keys and values go in and out; past ones go through the very sites of the new ones,
    which changes nothing in them: they are on that grid. `taps`: how many dense addends the module has sites for;
    `layer`: the index of a layer that is exported with its tap, which the first `deepstack` layers have.
    Raises ProfileError when the profile contradicts the model, PhaseError before convert.
    """

    def __init__(
        self,
        module: QModule,
        profile: TextProfile,
        call: Callable[[Any, GraphInputs], Tensor],
        *,
        first: str,
        output: str,
        attentions: Sequence[Any],
        taps: int = 0,
        layer: int | None = None,
        many: bool = False,
    ) -> None:
        if module.phase is not Phase.FLOAT:  # a float graph is exported on purpose: pyquant.wrap.phase(q, Phase.FLOAT)
            module.require(Phase.QUANTIZED, "export")
        _check(module, attentions[0].config, profile, taps)
        module.refresh_all()
        super().__init__()
        self.model = (module,)  # a tuple: tracing goes through every tensor of a submodule, also of unused layers
        self.module: nn.Module = module if layer is None else _OneLayer(module, layer)
        self.per_head = profile.attention == "per_head"
        self.call = call
        self.attentions = tuple(attentions)  # a tuple: they are in the module already
        ends = [f"_{i}" for i in range(len(attentions))] if many else [""]
        if many:
            self.addends: tuple[str, ...] = tuple(f"deepstack_{k}" for k in range(profile.deepstack))
        else:
            self.addends = ("deepstack",) if layer is not None and layer < profile.deepstack else ()
        self.past = tuple((f"past_key{end}", f"past_value{end}") for end in ends) if profile.past_len else ()
        self.first = first
        self.input_specs = _inputs(self, module, profile)
        self.output_names = (output, *(name for end in ends for name in (f"new_key{end}", f"new_value{end}")))
        self.name = profile.name
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.input_specs, tensors, strict=True))
        past = Past(
            {
                attention.layer_idx: (attention.q("key", given[key]), attention.q("value", given[value]))
                for attention, (key, value) in zip(self.attentions, self.past, strict=False)
            }
        )
        tables = RotaryTables(given["cos"].unsqueeze(2), given["signed_sin"].unsqueeze(2))
        out = self.call(
            self.model[0],
            GraphInputs(
                given[self.first],
                tuple(given[name] for name in self.addends),
                tables,
                AdditiveMask(given["attention_mask"]),
                past,
                self.per_head,
            ),
        )
        return out, *(tensor for attention in self.attentions for tensor in past.new[attention.layer_idx])

    def train(self, mode: bool = True) -> TextAdapter:
        """An adapter is for inference; leaves the wrapped module's own flags alone."""
        return self


def _inputs(adapter: TextAdapter, module: QModule, profile: TextProfile) -> dict[str, TensorSpec]:
    config, head_dim = adapter.attentions[0].config, adapter.attentions[0].head_dim
    batch, tokens, dtype = profile.batch_size, profile.seq_len, next(module.parameters()).dtype
    hidden = TensorSpec((batch, tokens, config.hidden_size), dtype)
    table = TensorSpec((batch, tokens, head_dim), dtype)
    specs = dict.fromkeys((adapter.first, *adapter.addends), hidden)
    specs["attention_mask"] = TensorSpec((batch, 1, tokens, profile.keys), dtype)
    specs |= {"cos": table, "signed_sin": table}
    if profile.past_len:
        cached = TensorSpec((batch, config.num_key_value_heads, profile.past_len, head_dim), dtype)
        specs |= {name: cached for pair in adapter.past for name in pair}
    return specs


def require_text_profile(profile: Any, module: object) -> None:
    """Raise ProfileError for a profile of another kind, which does not name the cache."""
    if not isinstance(profile, TextProfile):
        raise ProfileError(
            f"{type(module).__name__} is exported with qwen3_vl.TextProfile(batch_size=, seq_len=, past_len=), got "
            f"{type(profile).__name__}"
        )


def _check(module: QModule, config: Any, profile: Any, taps: int) -> None:
    require_text_profile(profile, module)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and profile.keys > longest:
        raise ProfileError(
            f"{profile.past_len} cached and {profile.seq_len} new tokens are more than the model's "
            f"max_position_embeddings, {longest}; use a shorter profile"
        )
    if profile.deepstack > taps:
        raise ProfileError(
            f"the profile has {profile.deepstack} deepstack inputs, but {type(module).__name__} adds {taps}; set "
            f"TextProfile(deepstack={taps})"
        )
