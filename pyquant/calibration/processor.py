# SPDX-License-Identifier: Apache-2.0
"""A line of calibration data -> the model's keyword arguments, by the processor that lies beside the model's weights.

It owns which parts of a processor are there and how a prompt with images is put to them. What each part does is
transformers' own work.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pyquant.calibration.lines import Line
from pyquant.errors import CalibrationError

IMAGE_MARK = "<image>"  # where an image stands in a prompt, whatever the family's own token for it is


@dataclass(frozen=True)
class Reader:
    """What a checkpoint folder has: a processor, a tokenizer alone, or an image processor alone.

    `said` are notes for the user, such as that videos cannot be read for lack of a package.
    """

    source: str
    processor: Any = None
    tokenizer: Any = None
    image_processor: Any = None
    said: tuple[str, ...] = ()

    def read(self, line: Line) -> dict[str, Tensor]:
        """The keyword arguments of one line: a batch of one, without padding.

        Images stand before the prompt, unless the prompt says where with `<image>` or the family's own token. Raises
        CalibrationError that names the line: for an image that cannot be opened, a prompt with another number of
        images than the line has, and what the processor itself refuses.
        """
        images = [open_image(file, line.where) for file in line.images]
        try:
            if line.prompt is None:
                features = self._require("image_processor", line, "image processor", "image")(
                    images, return_tensors="pt"
                )
            elif self.processor is None:
                tokenizer = self._require("tokenizer", line, "tokenizer", "prompt")
                if images:
                    raise CalibrationError(
                        f"{line.where}: {self.source} has a tokenizer and no image processor, so a line cannot have "
                        f"images; add preprocessor_config.json to it, or give pre-tokenized batches"
                    )
                features = _text(tokenizer, line.prompt)
            else:
                features = self._multimodal(line, line.prompt, images)
        except CalibrationError:
            raise
        except Exception as error:  # whatever transformers makes of this image and text
            first = str(error).strip().split("\n")[0]
            raise CalibrationError(
                f"{line.where}: {type(self.processor or self.tokenizer or self.image_processor).__name__} refused it "
                f"({type(error).__name__}: {first})"
            ) from error
        return {name: value for name, value in features.items() if isinstance(value, Tensor)}

    def _require(self, part: str, line: Line, what: str, key: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self, part)
        if found is None:
            raise CalibrationError(
                f"{line.where}: {self.source} has no {what}, which this line needs; leave the {key} out, use a folder "
                f"that has one, or give batches made elsewhere (.safetensors, .pt)"
            )
        return found

    def _multimodal(self, line: Line, prompt: str, images: list[Any]) -> Mapping[str, Any]:
        token = getattr(self.processor, "image_token", None) or IMAGE_MARK
        parts = re.split(f"{re.escape(token)}|{re.escape(IMAGE_MARK)}", prompt)
        if len(parts) == 1:
            parts = [""] * len(images) + [prompt]
        if len(parts) - 1 != len(images):
            raise CalibrationError(
                f"{line.where}: the prompt has a place for {len(parts) - 1} image(s) and the line has {len(images)}; "
                f"write {IMAGE_MARK} once for each, or not at all (the images then stand first)"
            )
        if getattr(self.processor, "chat_template", None) is None:
            text = "".join([parts[0], *(token + part for part in parts[1:])])
            return dict(self.processor(text=[text], **({"images": images} if images else {}), return_tensors="pt"))
        content = [{"type": "text", "text": parts[0]}] if parts[0] else []
        for image, part in zip(images, parts[1:], strict=True):
            content.append({"type": "image", "image": image})
            content += [{"type": "text", "text": part}] if part else []
        return dict(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )


def _text(tokenizer: Any, prompt: str) -> Mapping[str, Any]:
    if getattr(tokenizer, "chat_template", None) is None:
        return dict(tokenizer(prompt, return_tensors="pt"))
    return dict(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


def load_reader(source: str | os.PathLike[str]) -> Reader:
    """The processor, or the parts of one, of a checkpoint folder (or hub name).

    Where transformers cannot load the whole processor because a part needs a package that is not installed (its video
    processors need torchvision), the processor is put together without that part. Raises CalibrationError when there
    is neither a tokenizer nor an image processor.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

    name = os.fspath(source)
    whole, why = _attempt(AutoProcessor, name)
    if isinstance(whole, ProcessorMixin):
        parts = (getattr(whole, "tokenizer", None), getattr(whole, "image_processor", None))
        return Reader(name, whole, *parts)
    tokenizer, no_tokenizer = _attempt(AutoTokenizer, name)
    images, no_images = _attempt(AutoImageProcessor, name)
    if tokenizer is None and images is None:
        raise CalibrationError(
            f"{name} has neither a tokenizer ({no_tokenizer}) nor an image processor ({no_images}); copy those files "
            f"of the original checkpoint there, or give pre-tokenized batches (.safetensors, .pt)"
        )
    if tokenizer is None or images is None:
        return Reader(name, None, tokenizer, images)
    processor = _assembled(name, tokenizer, images)
    if processor is None:
        raise CalibrationError(f"{name}: transformers cannot load the processor ({why})")
    return Reader(name, processor, tokenizer, images, (f"videos cannot be read: {why}",))


def _attempt(auto: Any, name: str) -> tuple[Any, str]:
    """What an Auto class makes of the folder; or None, and why."""
    try:
        return auto.from_pretrained(name), ""
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = next((line for line in str(error).split("\n") if line.strip()), type(error).__name__)
        return None, first.split(". ")[0].rstrip(".")


def _assembled(name: str, tokenizer: Any, images: Any) -> Any:
    """The processor of the model's type with the parts at hand, and nothing where a part is missing."""
    import transformers
    from transformers.models.auto import processing_auto

    try:
        model_type = transformers.AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError):
        return None
    processor_names = getattr(processing_auto, "PROCESSOR_MAPPING_NAMES", {})
    cls: Any = getattr(transformers, str(processor_names.get(model_type)), None)
    if cls is None:
        return None

    class Partial(cls):  # type: ignore[misc]
        """transformers checks the class of every part, and a part that is missing has none."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    Partial.__name__ = Partial.__qualname__ = cls.__name__
    said = cls.get_processor_dict(name)[0] if Path(name).is_dir() else {}
    given = {"tokenizer": tokenizer, "image_processor": images}
    for argument, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if argument in said:
            given.setdefault(argument, said[argument])
        elif parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            given.setdefault(argument, None)
    given["chat_template"] = said.get("chat_template") or getattr(tokenizer, "chat_template", None)
    given.pop("video_processor", None)
    return Partial(**given)


def open_image(file: Path, where: str) -> Any:
    """A file as a PIL image in RGB. Raises CalibrationError that begins with `where`, ImportError without Pillow."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            "images are opened by Pillow, which is not installed: pip install 'pyquant-circle[images]'"
        ) from error
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        first = str(error).split("\n")[0]
        raise CalibrationError(
            f"{where}: {str(file)!r} cannot be opened as an image ({type(error).__name__}: {first})"
        ) from error
