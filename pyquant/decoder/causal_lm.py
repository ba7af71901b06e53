# SPDX-License-Identifier: Apache-2.0
"""A language model with its head: logits, loss, and generate() by HF's own loop over the quantized tree.

It owns the head and the way into HF's generation. What comes before the head is the wrapped model's, a bundle's loop is
host.py.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from pyquant.decoder.ends import HeadProfile, head_graph
from pyquant.decoder.model import DecoderModel
from pyquant.errors import ProfileError
from pyquant.wrap import hf
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule, WrapContext
from pyquant.wrap.hf_model import QModel


class CausalLM(QModel):
    """The model and the head, whose weight may be the token table (then they share it, each on its own grid)."""

    CHILDREN = ("model", "lm_head")
    OUTPUT = CausalLMOutputWithPast
    FEEDS = {"model.norm": ("lm_head",), "model.language_model.norm": ("lm_head",)}

    model: QModule
    lm_head: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.generation_config = copy.deepcopy(getattr(fp, "generation_config", None))

    @property
    def text(self) -> DecoderModel:
        """The stack of layers that the head reads."""
        assert isinstance(self.model, DecoderModel), f"{type(self.model).__name__} is no decoder"
        return self.model

    @property
    def vocab_size(self) -> int:
        return int(self.text.config.vocab_size)

    def get_input_embeddings(self) -> QModule:
        """The token table."""
        return self.text.embed_tokens

    def get_output_embeddings(self) -> QModule:
        """The head."""
        return self.lm_head

    def can_generate(self) -> bool:
        """True."""
        return True

    def logits_of(self, hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
        """hidden (B, S, D) -> logits. logits_to_keep: the last so many, 0 for all, or the indices of places."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.scores(hidden if isinstance(kept, slice) and kept.start == 0 else hidden[:, kept])

    def scores(self, hidden: Tensor) -> Tensor:
        """The head: hidden (B, S, D) after the final norm -> logits. A family whose logits go on from there overrides
        it."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def loss_of(self, logits: Tensor, labels: Tensor | None, kwargs: Mapping[str, Any]) -> Tensor | None:
        """HF's own loss of `labels` (B, S): next token, -100 ignored; None without labels."""
        if labels is None:
            return None
        loss: Tensor = self.hf_shell().loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        return loss

    def run(
        self,
        arguments: Mapping[str, Any],
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        kwargs: MutableMapping[str, Any],
        also: Sequence[str] = (),
    ) -> Any:
        """The steps of forward: the model on `arguments` and what is left of `kwargs`, logits, loss, HF's output class.

        `also`: fields of the model's output that HF's class has too, in some releases.
        """
        cache = hf.take_cache(arguments["cache"], kwargs)
        as_object = kwargs.pop("return_dict", None)
        for_loss = {key: kwargs.pop(key) for key in LOSS_ARGUMENTS if key in kwargs}
        out = self.model(**{**arguments, "cache": cache}, return_dict=True, **kwargs)
        logits = self.logits_of(out.last_hidden_state, logits_to_keep)
        known = hf.field_names(type(out))
        result = hf.make_output(
            self.output_type,
            loss=self.loss_of(logits, labels, for_loss),
            logits=logits,
            cache=hf.cache_of(out),
            **{name: getattr(out, name) for name in also if name in known},
        )
        return hf.as_called(result, {"return_dict": as_object}, self.config)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """HF's `generate` over this tree: its arguments, its loop, its cache classes."""
        return self.hf_shell().generate(inputs, **kwargs)

    def hf_shell(self) -> Any:
        """An object of the float model's class without weights of its own, whose forward is this tree's."""
        fp_type: Any = self.fp_type
        shell = _shell_class(fp_type)
        me: Any = object.__new__(shell)
        nn.Module.__init__(me)
        me.config = self.config
        me.generation_config = copy.deepcopy(self.generation_config)
        me.model, me.lm_head, me.tree = self.model, self.lm_head, [self]
        me.training = False
        return me

    def as_export_module(self, profile: HeadProfile) -> GraphAdapter:
        """The final norm and the head (HeadProfile). The other graphs belong to its parts."""
        if isinstance(profile, HeadProfile):
            return head_graph(self, self.text, self.lm_head, self.scores, profile)
        raise ProfileError(
            f"{type(self).__name__} is exported graph by graph: pyquant.export_bundle(q, folder, profile) with a "
            f"Profile of its family, or its parts, or its head with HeadProfile; got {type(profile).__name__}"
        )


class TextCausalLM(CausalLM):
    """A language model whose inputs are text alone, with HF's calling convention."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As DecoderModel -> HF's output class with logits (B, S or as many as logits_to_keep, vocabulary), and
        loss where labels (B, S) are given: next token, -100 ignored.

        logits_to_keep: the last so many, 0 for all, or the indices of places.
        """
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "cache": cache,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
        }
        return self.run(arguments, labels, logits_to_keep, kwargs)


LOSS_ARGUMENTS = ("num_items_in_batch", "shift_labels")  # of HF's forward, for its loss alone


@functools.cache
def _shell_class(fp_type: type[Any]) -> type[Any]:
    @functools.wraps(fp_type.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.tree[0](*args, **kwargs)

    return type(fp_type.__name__, (fp_type,), {"forward": forward, "__module__": __name__})
