# SPDX-License-Identifier: Apache-2.0
"""Transformers' own generate() over any function from tokens to logits: its processors, sampling, criteria, streamers.

It owns what a caller and the model's generation config ask for, and what is refused of it. Where logits come from is
host.py.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutput

from pyquant.errors import InputError, PyquantError

#: Scores (B, vocabulary) float32 and all tokens so far (B, S) -> the next token of each row, int64 (B,).
Sampler = Callable[[Tensor, Tensor], Tensor]
#: All tokens so far (B, S) -> logits of the next one (B, vocabulary) float32; called once for each new token.
NextLogits = Callable[[Tensor], Tensor]

DEFAULT_NEW_TOKENS = 20  # transformers' own, where nobody names a length

#: What the files cannot do -> the values that ask for nothing, the one to pass first.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "guidance_scale": (1,),
    "negative_prompt_ids": (),
    "negative_prompt_attention_mask": (),
    "assistant_model": (),
    "assistant_tokenizer": (),
    "assistant_early_exit": (),
    "prompt_lookup_num_tokens": (),
    "is_assistant": (False,),
    "use_mtp": (False,),
    "speculation_type": (),
    "cache_implementation": (None, "hybrid"),  # transformers ignores the second
    "cache_config": (),
    "max_cache_len": (),
    "prefill_chunk_size": (),
    "continuous_batching_config": (),
    "token_healing": (False,),
    "watermarking_config": (),
    "return_dict_in_generate": (False,),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "custom_generate": (),
    "trust_remote_code": (False,),
    "synced_gpus": (False,),
}
_PASSED = ("streamer", "tokenizer", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
_OURS = ("sampler", "seed", "generation_config")


class GenerationRequest:
    """What one call of generate() asks for: `options`, over the model's generation config (`model`, by its JSON).

    Options are transformers': every entry of its GenerationConfig, `generation_config` as a whole, streamer, tokenizer
    (for stop strings), logits_processor, stopping_criteria, prefix_allowed_tokens_fn; and two of ours. `sampler`
    chooses the next token in place of the most likely one or a random one, from scores after the penalties. `seed` is
    that of torch.manual_seed for this call alone.

    Raises InputError that lists what the files cannot do, and names that are not known.
    """

    def __init__(self, model: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.model = GenerationConfig.from_dict(dict(model))
        named = {name: value for name, value in options.items() if name in (*_PASSED, *_OURS)}
        self.sampler: Sampler | None = named.pop("sampler", None)
        self.seed: int | None = named.pop("seed", None)
        given = named.pop("generation_config", None)
        if given is not None and not isinstance(given, GenerationConfig):
            raise InputError(
                f"generation_config is a transformers.GenerationConfig, got a {type(given).__name__}; pass a dict's "
                "entries as keywords"
            )
        self.given: GenerationConfig = _defaults() if given is None else copy.deepcopy(given)
        self.passed = named
        self.settings = {name: value for name, value in options.items() if name not in (*_PASSED, *_OURS)}
        if "eos_token_id" in self.settings and not token_ids(self.settings["eos_token_id"]):
            self.settings["eos_token_id"] = None  # an empty list: no token ends the text
        self.ended = Ended()
        self._refuse()

    @property
    def going(self) -> Tensor | None:
        """Which rows go on, bool (B,); None before the first new token. The others get padding."""
        return self.ended.going

    def real_of(self, new: int) -> Tensor:
        """Which of the `new` tokens of each row are no padding, bool (B, new): up to the one that ended it."""
        return torch.arange(new, dtype=torch.int64, device="cpu") < self.ended.counts[:, None]

    def setting(self, name: str) -> Any:
        """An entry by transformers' priority: keywords, then generation_config=, then the model's."""
        if self._by_caller(name):
            return self.settings[name] if name in self.settings else getattr(self.given, name)
        return getattr(self.model, name, None)

    def new_tokens(self, width: int, room: int) -> int:
        """How many tokens at most follow prompts of `width` places, of which `room` fit.

        A length that the caller names is returned as it is; that of the model's generation config, or transformers'
        default, ends where the room does.
        """
        name = next((name for name in ("max_new_tokens", "max_length") if self.setting(name) is not None), None)
        if name is None:
            return min(DEFAULT_NEW_TOKENS, room)
        value = int(self.setting(name)) - (width if name == "max_length" else 0)
        return value if self._by_caller(name) else min(value, room)

    def inferred_mask(self, ids: Tensor) -> Tensor:
        """Where prompts (B, S) without an attention mask are real, as transformers infers it: not at the padding
        token, unless that also ends a text."""
        padding, ending = (token_ids(self.setting(name)) for name in ("pad_token_id", "eos_token_id"))
        if not padding or padding[0] in ending:
            return torch.ones_like(ids)
        return (ids != padding[0]).to(ids.dtype)

    def answer(self, next_logits: NextLogits, ids: Tensor, mask: Tensor, new: int) -> Tensor:
        """Prompts ids (B, S), real where mask (B, S) is -> (B, S + at most `new`), by transformers' own loop.

        Padding behind tokens of a row is moved before them for transformers. Raises InputError for settings that
        transformers refuses.
        """
        order = mask.int().argsort(dim=1, stable=True)
        rows, real = (each.gather(1, order) for each in (ids, mask.long()))
        shell: Any = _Shell(next_logits, self.ended)
        shell.generation_config, config = self._configs(new)
        passed = dict(self.passed)
        if self.sampler is not None:
            chosen = _Chosen(self.sampler)
            passed["logits_processor"] = transformers.LogitsProcessorList(
                [*(passed.get("logits_processor") or ()), chosen]
            )
        with _seeded(self.seed):
            try:
                out: Tensor = shell.generate(rows, attention_mask=real, generation_config=config, **passed)
            except ValueError as error:
                if shell.started or isinstance(error, PyquantError):
                    raise
                raise InputError(f"transformers refuses these settings of generate(): {error}") from error
        return torch.cat([ids, out[:, ids.shape[1] :]], dim=1)

    def _configs(self, new: int) -> tuple[GenerationConfig, GenerationConfig]:
        """The model's and the caller's, as transformers merges them: an entry of the second that is None is the
        model's."""
        model, given = copy.deepcopy(self.model), copy.deepcopy(self.given)
        settings = {**self.settings, "max_new_tokens": new, "use_cache": False}  # next_logits keeps its own cache
        if self.sampler is not None:
            settings["do_sample"] = False
        for name, value in settings.items():
            setattr(given, name, value)
            if value is None:
                setattr(model, name, None)
        model.max_length = given.max_length = None  # max_new_tokens is the limit
        return model, given

    def _by_caller(self, name: str) -> bool:
        return name in self.settings or getattr(self.given, name, None) is not None

    def _refuse(self) -> None:
        known = {name for name in vars(_defaults()) if not name.startswith("_")} | set(REFUSED)
        faults = []
        for name in self.settings:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, *_PASSED, *_OURS], 1)
                faults.append(f"{name} is no argument of it" + (f" (is it {near[0]}?)" if near else ""))
        for name, neutral in REFUSED.items():
            value = self.setting(name)
            if asks_nothing(name, value):
                continue
            whose = "" if self._by_caller(name) else ", from the model's generation config"
            faults.append(f"{name}={_short(value)}{whose} (pass {name}={neutral[0] if neutral else None})")
        if self.sampler is not None and self.settings.get("do_sample"):
            faults.append("do_sample=True beside sampler, which chooses the token itself (leave one of them out)")
        if faults:
            raise InputError(
                f"generating over a bundle cannot do this: {'; '.join(faults)}. The quantized model's own "
                "q.generate(...) does what transformers does"
            )


class Ended:
    """What transformers' stopping criteria said after each token: `going` (B,) bool, and `counts` (B,) of the tokens
    before the end of each row."""

    def __init__(self) -> None:
        self.going: Tensor | None = None
        self.counts = torch.zeros(1, dtype=torch.int64, device="cpu")

    def note(self, done: Tensor, pads: bool) -> None:
        """One more token of each row, after which some are `done`. Rows that are get padding from then on, or where
        nothing `pads`, further tokens."""
        if self.going is None:
            self.going, self.counts = torch.ones_like(done), torch.zeros_like(done, dtype=torch.int64)
        self.counts = self.counts + self.going
        if pads:
            self.going = self.going & ~done


class _Noted(transformers.StoppingCriteriaList):
    """Criteria that tell what they said."""

    def __init__(self, criteria: Iterable[Any], ended: Ended) -> None:
        super().__init__(criteria)
        self.ended = ended
        self.pads = any(hasattr(each, "eos_token_id") for each in self)  # as transformers decides it

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        done = super().__call__(input_ids, scores, **kwargs)
        self.ended.note(done, self.pads)
        return done


class _Shell(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[no-untyped-call]
    """A model without weights, whose logits are those of a function: transformers' generate() runs on it."""

    config_class = transformers.PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, next_logits: NextLogits, ended: Ended) -> None:
        super().__init__(transformers.PreTrainedConfig())
        self.next_logits, self.ended, self.started = next_logits, ended, False

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        shell: Any = super()
        return _Noted(shell._get_stopping_criteria(*args, **kwargs), self.ended)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> CausalLMOutput:
        self.started = True
        return CausalLMOutput(logits=self.next_logits(input_ids)[:, None])


class _Chosen(transformers.LogitsProcessor):
    """Leaves one token to choose from: the sampler's."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.sampler(scores, input_ids).reshape(-1, 1).long()
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def _defaults() -> GenerationConfig:
    config: GenerationConfig = GenerationConfig()  # type: ignore[no-untyped-call]
    return config


def asks_nothing(name: str, value: Any) -> bool:
    """Whether an entry of a generation config changes nothing for a host, which has a cache of its own."""
    return value is None or name == "use_cache" or any(value is each or value == each for each in REFUSED.get(name, ()))


def token_ids(value: Any) -> list[int]:
    """Token ids as a list: of None, one, several, or a tensor."""
    return [] if value is None else [int(token) for token in torch.as_tensor(value, device="cpu").reshape(-1).tolist()]


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """torch's generator of the CPU with this seed, and as it was afterwards; without a seed, as it is."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str | bool) else f"a {type(value).__name__}"
