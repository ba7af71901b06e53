# SPDX-License-Identifier: Apache-2.0
"""Which graphs a Profile makes of a Gemma4, and the manifest for a host that runs them.

It owns what Gemma4 adds to a decoder's bundle: towers with their embedders, the join, and per-layer inputs. The
manifest's sentences are words.py; host.py does what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyquant.decoder import row_table
from pyquant.decoder.bundle import NUMBERS, BundleParts, Part
from pyquant.decoder.ends import embedding_profile
from pyquant.decoder.graphs import TextProfile
from pyquant.errors import ProfileError
from pyquant.exporter.profile import ExportProfile
from pyquant.models.gemma4 import table, words
from pyquant.models.gemma4.audio.profiles import FRAMES_PER_TOKEN, AudioProfile
from pyquant.models.gemma4.flow import TENSORS, Towers, flow
from pyquant.models.gemma4.generation import QuantGemma4ForConditionalGeneration
from pyquant.models.gemma4.graphs import FusionProfile, SoftTokensProfile
from pyquant.models.gemma4.model import QuantGemma4Model
from pyquant.models.gemma4.places import TOKENS
from pyquant.models.gemma4.text.layers import joined
from pyquant.models.gemma4.text.model import QuantGemma4ForCausalLM, QuantGemma4TextModel
from pyquant.models.gemma4.text.per_layer import PerLayerProfile
from pyquant.models.gemma4.vision.profiles import VisionProfile
from pyquant.models.gemma4.whole import WholeProfile


class Gemma4Parts(BundleParts):
    """The graphs and the manifest of a Gemma4 with towers or of its text model alone, with a head or without."""

    FAMILY = "gemma4"
    MODELS = (
        QuantGemma4ForConditionalGeneration,
        QuantGemma4Model,
        QuantGemma4ForCausalLM,
        QuantGemma4TextModel,
    )
    model: QuantGemma4Model | QuantGemma4TextModel

    def __init__(self, profile: Any, q: Any) -> None:
        super().__init__(profile, q)
        whole = self.model if isinstance(self.model, QuantGemma4Model) else None
        self.whole = whole
        if not self.text.causal:
            raise ProfileError(
                'the model sees later tokens (use_bidirectional_attention="all"), so that it does not generate; export '
                "its parts with TextProfile"
            )
        for name, tower in (("image_shapes", "vision_tower"), ("audio_lengths", "audio_tower")):
            if getattr(profile, name) and getattr(whole, tower, None) is None:
                raise ProfileError(f"the profile has {name}, and {type(q).__name__} has no {tower}; leave {name} out")
            if getattr(profile, name):
                self.require_ranges(getattr(whole, tower), name)
        if profile.experts is not None and not self.text.config.enable_moe_block:
            raise ProfileError(f"the profile has experts={profile.experts!r}, and the model has no experts")
        if whole is not None and whole.vision_tower is not None:
            for shape in profile.image_shapes:
                images = VisionProfile(grid=shape)
                images.check_table(int(whole.config.vision_config.position_embedding_size))
                images.check_kernel(int(whole.config.vision_config.pooling_kernel_size))

    @property
    def text(self) -> QuantGemma4TextModel:
        return self.model.language_model if isinstance(self.model, QuantGemma4Model) else self.model

    # --- graphs ---

    def graphs(self) -> dict[str, Part]:
        if self.profile.layers != "whole":
            return super().graphs()
        if self.whole is None:
            raise ProfileError(
                f'layers="whole" is for a model with towers; of a {type(self.q).__name__} the stack is all there is: '
                'layers="stack"'
            )
        parts: list[Part] = [(self.whole, self._whole()), *self.head()]
        return {profile.name: (part, profile) for part, profile in parts}

    def _whole(self) -> WholeProfile:
        profile = self.profile
        return WholeProfile(
            profile.batch_size,
            profile.max_seq_len,
            profile.image_shapes,
            profile.audio_lengths,
            profile.attention,
            profile.experts,
        )

    def encoders(self) -> list[Part]:
        profile, parts = self.profile, list[Part]()
        for height, width in profile.image_shapes:
            shape = f"h{height}_w{width}"
            parts.append((self.model, SoftTokensProfile(VisionProfile(grid=(height, width)), f"vision_{shape}")))
            if frames := profile.video_frames:
                several = VisionProfile(grid=(height, width), batch_size=frames)
                parts.append((self.model, SoftTokensProfile(several, f"vision_f{frames}_{shape}")))
        for length in profile.audio_lengths:
            clip = AudioProfile(length)
            parts.append((self.model, SoftTokensProfile(clip, clip.name)))
        return parts

    def text_profile(self, length: int, past: int, layer: int | None) -> TextProfile:
        return replace(super().text_profile(length, past, layer), experts=self.profile.experts)

    def embeddings(self) -> list[Part]:
        parts = super().embeddings()
        if self.text.per_layer_width:
            parts += self._table()
            parts.append((self.text, PerLayerProfile(self.profile.batch_size, 1)))
        return parts

    @property
    def table_choice(self) -> str:
        """Profile.per_layer_table, decided; "" for a model without."""
        text = self.text
        return table.chosen(self.profile.per_layer_table, text.embed_tokens_per_layer) if text.per_layer_width else ""

    def _table(self) -> list[Part]:
        """The graphs of the per-layer table, as Profile.per_layer_table says."""
        own, choice, batch = self.text.embed_tokens_per_layer, self.table_choice, self.profile.batch_size
        plain = self.embedding_profiles(table.NAME, table.OUTPUT)
        if choice == "graph":
            return [(own, each) for each in plain]
        if choice == "host":
            return []
        lengths = [None if (spec := each.inputs["input_ids"]).dynamic is not None else spec.shape[1] for each in plain]
        by: Any = choice
        ranges = table.parts(choice, own, len(self.text.layers))
        return [(self.text, table.TablePart(batch, n, by, *each)) for n in lengths for each in ranges]

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """File name -> what writes it, of what is not a graph."""
        return table.files(self.text.embed_tokens_per_layer) if self.table_choice == "host" else {}

    def before_prefill(self, length: int) -> list[Part]:
        profile, parts = self.profile, list[Part]()
        most = profile.batch_size * length
        visual, audio = (most if given else 0 for given in (profile.image_shapes, profile.audio_lengths))
        if visual or audio:
            parts.append((self.model, FusionProfile(profile.batch_size, length, visual, audio)))
        if self.text.per_layer_width:
            parts.append((self.text, PerLayerProfile(profile.batch_size, length)))
        return parts

    # --- the manifest ---

    def manifest(self) -> dict[str, Any]:
        entries = super().manifest()
        if self.profile.layers == "whole":
            entries["cache"] = {"capacity": 0, "layers": entries["cache"]["layers"]}
        return entries

    def more(self) -> dict[str, Any]:
        profile, text = self.profile, self.text
        entries: dict[str, Any] = {}
        if self.whole is not None:
            config = self.whole.config
            tokens = {name: getattr(config, name, None) for name in (*TOKENS.values(), *_MARKS)}
            entries["positions"] = {name: int(token) for name, token in tokens.items() if token is not None}
            entries["positions"]["pad_token_id"] = self.whole.pad
            if profile.image_shapes:
                entries["images"] = {
                    "shapes": [list(shape) for shape in profile.image_shapes],
                    "video_frames": profile.video_frames,
                    **_pixels(config.vision_config),
                }
            if profile.audio_lengths:
                entries["audio"] = {"lengths": list(profile.audio_lengths), "frames_per_token": FRAMES_PER_TOKEN}
            if (together := self._together()) is not None:
                entries["visual_blocks"] = {"variants": together[0], "bounded": together[1]}
        if text.per_layer_width:
            entries["per_layer_inputs"] = {"layers": len(text.layers), "width": text.per_layer_width}
            if profile.layers != "whole":
                entries |= table.manifest(self.table_choice, text.embed_tokens_per_layer, len(text.layers))
        return entries

    def host_data(self) -> dict[str, Any]:
        profile = self.profile
        only = (profile.image_shapes, profile.audio_lengths) if self.whole is not None else ((), ())
        return flow(
            super().host_data(),
            self._towers(),
            per_layer=bool(self.text.per_layer_width) and profile.layers != "whole",
            whole=only if profile.layers == "whole" else None,
        )

    def _towers(self) -> Towers | None:
        """What a host knows of them; None for a text model."""
        if self.whole is None:
            return None
        profile, config = self.profile, self.whole.config
        tokens = {name: getattr(config, f"{name}_token_id", None) for name in TENSORS}
        images = bool(profile.image_shapes)
        return Towers(
            {name: int(token) for name, token in tokens.items() if token is not None},
            int(self.whole.pad),
            int(config.vision_config.pooling_kernel_size) if images else 0,
            profile.video_frames if images else 0,
            FRAMES_PER_TOKEN if profile.audio_lengths else 0,
            self._together(),
        )

    def _together(self) -> tuple[list[str], bool] | None:
        """Variants whose images see themselves, and whether within the window alone."""
        if self.text.bidirectional != "vision":
            return None
        return sorted({kind.variant for kind in self.text.kinds if kind.ahead}), joined() == "within the window"

    def steps(self) -> tuple[str, ...]:
        blocks = (words.BLOCKS,) if self.whole is not None and self.text.bidirectional == "vision" else ()
        if self.profile.layers == "whole":
            return (NUMBERS, words.WHOLE_INPUTS, *blocks, *words.WHOLE_STEPS)
        first, *rest = super().steps()
        found = [first]
        if self.profile.image_shapes:
            found.append(words.IMAGES)
        if self.profile.audio_lengths:
            found.append(words.AUDIO)
        if self.whole is not None:
            found.append(words.PLACES)
        if self.text.per_layer_width:
            found += [words.PER_LAYER, *([words.TABLE[self.table_choice]] if self.table_choice in words.TABLE else [])]
        return (*found, *blocks, *rest)

    def describe(self, profile: Any) -> dict[str, Any]:
        if isinstance(profile, SoftTokensProfile) and isinstance(profile.tower, VisionProfile):
            height, width = profile.tower.grid[0]
            frames = profile.tower.batch_size
            return {"kind": "vision", "shape": [height, width], "images": frames, "meaning": words.MEANING["vision"]}
        if isinstance(profile, SoftTokensProfile):
            return {"kind": "audio", "frames": profile.tower.length, "meaning": words.MEANING["audio"]}
        if isinstance(profile, FusionProfile):
            rows = profile.batch_size * profile.seq_len + profile.visual_tokens + profile.audio_tokens
            return {
                "kind": "fusion",
                "seq_len": profile.seq_len,
                "visual_tokens": profile.visual_tokens,
                "audio_tokens": profile.audio_tokens,
                "meaning": words.MEANING["fusion"],
                "range": {"place_index": [0, rows - 1]},
            }
        if isinstance(profile, PerLayerProfile):
            meaning = words.MEANING["per_layer_projection"]
            return {"kind": "per_layer_projection", "seq_len": profile.seq_len, "meaning": meaning}
        if isinstance(profile, table.TablePart):
            part: dict[str, Any] = {profile.by: [profile.start, profile.stop]}
            plain = embedding_profile(profile.batch_size, profile.seq_len, table.NAME, table.OUTPUT)
            count = profile.stop - profile.start if profile.by == "rows" else None
            return {**self._describe_table(plain, count), **part}
        if isinstance(profile, ExportProfile) and table.OUTPUT in profile.outputs:
            large = row_table.bytes_of(self.text.embed_tokens_per_layer) > table.LIMIT
            return {**self._describe_table(profile), **({"readers": table.READERS} if large else {})}
        if isinstance(profile, WholeProfile):
            ranges = {**self.id_range()}
            if profile.towers():
                ranges["place_index"] = [0, profile.batch_size * profile.seq_len + self._rows(profile) - 1]
            return {"kind": "model", "seq_len": profile.seq_len, "meaning": words.MEANING["model"], "range": ranges}
        return super().describe(profile)

    def _describe_table(self, profile: ExportProfile, rows: int | None = None) -> dict[str, Any]:
        rows = self.text.embed_tokens_per_layer.num_embeddings if rows is None else rows
        return {
            **super().describe(profile),
            "kind": table.NAME,
            "meaning": words.MEANING[table.NAME],
            "range": {"input_ids": [0, rows - 1]},
        }

    def _rows(self, profile: WholeProfile) -> int:
        """Rows of all towers of a whole graph."""
        assert self.whole is not None
        clips = sum(AudioProfile(length).tokens for length in profile.audio_lengths)
        if not profile.image_shapes:
            return clips
        kernel = int(self.whole.config.vision_config.pooling_kernel_size)
        return clips + sum(height * width // kernel**2 for height, width in profile.image_shapes)

    def text_meaning(self) -> Mapping[str, str]:
        return {**super().text_meaning(), **words.PER_LAYER_MEANING}


_MARKS = ("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index")


def _pixels(vision: Any) -> dict[str, Any]:
    """What a row of pixel_values is made of, and in which order rows stand, as HF's image processor has them."""
    return {
        "channels": 3,
        "patch_size": int(vision.patch_size),
        "pooling_kernel_size": int(vision.pooling_kernel_size),
        "row": "y, x, channel of one patch, values from 0 to 1",
        "order": "patches line by line",
    }
