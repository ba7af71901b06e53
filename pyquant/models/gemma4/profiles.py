# SPDX-License-Identifier: Apache-2.0
"""Profile: the lengths, shapes and layout of a bundle of a Gemma4, checked as far as that goes without a model.

It owns what a user asks for. Which graphs that makes of a model, and their manifest, is bundle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from pyquant.decoder.graphs import Dispatch
from pyquant.decoder.profile import DecoderProfile
from pyquant.errors import ProfileError
from pyquant.models.gemma4.audio.profiles import AudioProfile
from pyquant.models.gemma4.bundle import Gemma4Parts
from pyquant.models.gemma4.table import PerLayerTable
from pyquant.models.gemma4.vision.profiles import VisionProfile


@dataclass(frozen=True)
class Profile(DecoderProfile):
    """A bundle of a Gemma4: `pyquant.export_bundle(q, folder, gemma4.Profile(max_seq_len=512, ...))`.

    As DecoderProfile, and

    image_shapes: (height, width) in patches of every image and frame that may come, one vision graph each; none for a
    model or a bundle without images. video_frames: also a graph of so many frames of each shape at once; 0: frames go
    one by one through the graph of their shape. audio_lengths: frames of mel features, one audio graph each; a clip
    takes the shortest that holds it.

    experts: of a model with experts, whether graphs compute all of them for each token ("dense", which every target
    can) or gather the weights of the chosen ones ("gather"); None: each graph what reads fewer weights.

    layers: also "whole", the model before its head in a single graph over max_seq_len tokens, with the images of
    image_shapes and a clip for each of audio_lengths, in order; a host runs it once for each new token.

    per_layer_table: where the table of per-layer embeddings is. "graph": in one; past 2 GiB the manifest says who reads
    such a file. "layers", "rows": split into graphs of less than 2 GiB each, by layers or by ids. "host": in a
    .safetensors file beside the manifest, of which the host reads rows. "auto": "graph" where it is smaller than 2 GiB,
    else "layers".
    """

    image_shapes: Any = field(default=(), kw_only=True)
    video_frames: int = field(default=0, kw_only=True)
    audio_lengths: Any = field(default=(), kw_only=True)
    experts: Dispatch | None = field(default=None, kw_only=True)
    per_layer_table: PerLayerTable = field(default="auto", kw_only=True)
    LAYERS = Literal["stack", "per_layer", "whole"]
    PARTS = Gemma4Parts

    def __post_init__(self) -> None:
        super().__post_init__()
        shapes = VisionProfile(grid=self.image_shapes).grid if _some(self.image_shapes) else ()
        if self.layers != "whole" and len(set(shapes)) != len(shapes):
            raise ProfileError(f"each of image_shapes makes one graph, but one is there twice: {list(shapes)}")
        object.__setattr__(self, "image_shapes", tuple(shapes))
        if self.experts is not None and self.experts not in get_args(Dispatch):
            raise ProfileError(f"experts is one of {', '.join(get_args(Dispatch))} or None, got {self.experts!r}")
        if self.per_layer_table not in get_args(PerLayerTable):
            known = ", ".join(get_args(PerLayerTable))
            raise ProfileError(f"per_layer_table is one of {known}, got {self.per_layer_table!r}")
        if self.layers == "whole" and self.per_layer_table not in ("auto", "graph"):
            raise ProfileError(
                f'layers="whole" has the model in a single graph, the per-layer table too; use layers="stack" with '
                f"per_layer_table={self.per_layer_table!r}"
            )
        if self.layers == "whole" and (self.video_frames or self.sliding == "banded"):
            name = "video_frames" if self.video_frames else 'sliding="banded"'
            raise ProfileError(
                f'layers="whole" has no graph for {name}: frames are images of image_shapes in turn, layers with a '
                f'window have a mask over all places; leave {name} out, or use layers="stack"'
            )
        frames = self.video_frames
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 0:
            raise ProfileError(f"video_frames is the number of frames of one graph, or 0, got {frames!r}")
        if frames and not shapes:
            raise ProfileError("video_frames are frames of one of image_shapes, and there is none")
        lengths = self.audio_lengths
        if not isinstance(lengths, Sequence) or isinstance(lengths, str):
            raise ProfileError(f"audio_lengths are frames of mel features such as (300, 3000), got {lengths!r}")
        made = [AudioProfile(length).length for length in lengths]
        object.__setattr__(self, "audio_lengths", tuple(made if self.layers == "whole" else sorted(set(made))))

    def files(self, q: nn.Module) -> Mapping[str, Callable[[Path], None]]:
        """File name -> what writes it, of the files beside the graphs. Raises ProfileError as `graphs` does."""
        return Gemma4Parts(self, q).files()


def _some(shapes: Any) -> bool:
    try:
        return len(shapes) > 0
    except TypeError as error:
        raise ProfileError(f"image_shapes are (height, width) in patches, got {shapes!r}") from error
