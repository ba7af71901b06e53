# SPDX-License-Identifier: Apache-2.0
"""The processor of a checkpoint folder, complete, or without the parts whose packages are not installed.

It owns finding the parts and combining them. Using them is processor.py.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from pathlib import Path
from typing import Any

from pyquant import files
from pyquant.calibration.processor import Reader
from pyquant.errors import CalibrationError

_NO_CODE: dict[str, Any] = {"trust_remote_code": False}  # else transformers asks on the terminal


def load_reader(source: str | os.PathLike[str]) -> Reader:
    """The processor, or the parts of one, of a checkpoint folder (or hub name).

    Where transformers cannot load the whole processor because a part needs a package that is not installed (its video
    processors need torchvision), the processor is built without that part. Raises CalibrationError when there
    is neither a tokenizer nor an image processor.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

    name = os.fspath(source)
    _require_contents(Path(name))
    whole, why = _attempt(AutoProcessor, name)
    if isinstance(whole, ProcessorMixin) and not _knows_nothing(getattr(whole, "tokenizer", None)):
        parts = (getattr(whole, "tokenizer", None), getattr(whole, "image_processor", None))
        return Reader(name, whole, *parts)
    tokenizer, no_tokenizer = _attempt(AutoTokenizer, name)
    if _knows_nothing(tokenizer):
        tokenizer, no_tokenizer = None, "it has no tokenizer files"
    images, no_images = _attempt(AutoImageProcessor, name)
    if images is None:
        images, no_images = _by_pillow(name, no_images)
    if tokenizer is None and images is None:
        raise CalibrationError(
            f"{name} has neither a tokenizer ({no_tokenizer}) nor an image processor ({no_images}); copy those files "
            f"of the original checkpoint there, or give pre-tokenized batches (.safetensors, .pt)"
        )
    if tokenizer is None or images is None:
        return Reader(name, None, tokenizer, images, why_no_images=no_images)
    processor = _assembled(name, tokenizer, images)
    if processor is None:
        raise CalibrationError(f"{name}: transformers cannot load the processor ({why})")
    if importlib.util.find_spec("torchvision") is None:
        why = "torchvision is not installed; images go through Pillow"
    return Reader(name, processor, tokenizer, images, (f"videos cannot be read: {why}",))


def _require_contents(folder: Path) -> None:
    """Raise CalibrationError for a tokenizer or processor file of the folder that was not fetched."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        small = file.suffix in (".json", ".jinja", ".model", ".txt")
        if small and file.is_file() and (why := files.absent(file)):
            raise CalibrationError(f"{str(file)!r} {why}")


def _knows_nothing(tokenizer: Any) -> bool:
    """Whether transformers made a tokenizer from the model's type only: every text would have no tokens."""
    return tokenizer is not None and not set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())


def _attempt(auto: Any, name: str) -> tuple[Any, str]:
    """What an Auto class loads from the folder; or None, and the reason."""
    try:
        return auto.from_pretrained(name, **_NO_CODE), ""
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = next((line for line in str(error).split("\n") if line.strip()), type(error).__name__)
        return None, first.split(". ")[0].rstrip(".")


def _by_pillow(name: str, why: str) -> tuple[Any, str]:
    """The image processor in its Pillow form: some releases of transformers have it, but no Auto class that finds it
    without torchvision."""
    import transformers

    try:
        config = transformers.ImageProcessingMixin.get_image_processor_dict(name)[0]
    except (OSError, ValueError):
        return None, why
    kind = str(config.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    cls = getattr(transformers, f"{kind}Pil", None)
    return (None, why) if cls is None else _attempt(cls, name)


def _assembled(name: str, tokenizer: Any, images: Any) -> Any:
    """The processor of the model's type with the parts that exist, None in place of the others."""
    import transformers
    from transformers.models.auto import processing_auto

    try:
        model_type = transformers.AutoConfig.from_pretrained(name, **_NO_CODE).model_type
    except (OSError, ValueError):
        return None
    processor_names = getattr(processing_auto, "PROCESSOR_MAPPING_NAMES", {})
    cls: Any = getattr(transformers, str(processor_names.get(model_type)), None)
    if cls is None:
        return None

    class Partial(cls):  # type: ignore[misc]
        """transformers checks the class of every part; a missing part has none."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    Partial.__name__ = Partial.__qualname__ = cls.__name__
    config = cls.get_processor_dict(name)[0] if Path(name).is_dir() else {}
    given = {"tokenizer": tokenizer, "image_processor": images}
    for argument, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if argument in config:
            given.setdefault(argument, config[argument])
        elif parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            given.setdefault(argument, None)
    given["chat_template"] = config.get("chat_template") or getattr(tokenizer, "chat_template", None)
    given.pop("video_processor", None)
    return Partial(**given)
