# SPDX-License-Identifier: Apache-2.0
"""A line of calibration data -> the model's keyword arguments, by the processor that lies beside the model's weights.

It owns how a prompt with images is put to a processor, or to the part of one that there is (load.py finds it). What
each part does is transformers' own work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pyquant import files
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
    why_no_images: str = ""

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
                        f"{line.where}: {self.source} has a tokenizer and no image processor ({self.why_no_images}), "
                        f"so a line cannot have images; add what is missing, or give batches made elsewhere"
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


def open_image(source: Any, where: str) -> Any:
    """A file or PIL image as transformers.image_utils.load_image reads it: turned as its EXIF data says, then RGB.

    Raises CalibrationError that begins with `where`, ImportError without Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "images are opened by Pillow, which is not installed: pip install 'pyquant-circle[images]'"
        ) from error
    from transformers.image_utils import load_image

    if isinstance(source, str | Path) and (why := files.absent(Path(source))):
        raise CalibrationError(f"{where}: the image {str(source)!r} {why}")
    try:
        if isinstance(source, Image.Image):
            return load_image(source)
        with Image.open(source) as image:
            return load_image(image)
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        first = str(error).split("\n")[0]
        raise CalibrationError(
            f"{where}: {str(source)!r} cannot be opened as an image ({type(error).__name__}: {first})"
        ) from error
