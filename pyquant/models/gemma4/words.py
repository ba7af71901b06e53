# SPDX-License-Identifier: Apache-2.0
"""The manifest of a Gemma4 bundle in words: what each input and output of a graph means, and the steps of a host.

It owns what only Gemma4 has; the words of every decoder are pyquant.decoder.bundle's. Which of them a bundle gets is
bundle.py.
"""

from __future__ import annotations

from pyquant.decoder.bundle import LAST_TOKEN, ROTARY, TABLES
from pyquant.models.gemma4 import table

PER_LAYER_MEANING = {
    "per_layer_inputs": "what per_layer_projection makes of the same tokens, by layer",
    "per_layer_input": "the same, of this layer",
}
MEANING: dict[str, dict[str, str]] = {
    "vision": {
        "pixel_values": "patches of an image, or of frames, line by line",
        "image_embeds": "rows for the image's placeholders, frame after frame",
    },
    "audio": {
        "input_features": "mel features of a clip, then anything",
        "attention_mask": "1 for a frame of the clip, 0 behind it",
        "audio_embeds": "rows for the clip's placeholders, one for every 4 frames begun; others mean nothing",
    },
    "fusion": {
        "text_embeds": "token_embedding's output",
        "image_embeds": "image_embeds of all images, then of all videos, in a row; unused rows may hold anything",
        "audio_embeds": "audio_embeds of all clips in a row; unused rows may hold anything",
        "place_index": (
            "row of [text ; image_embeds ; audio_embeds] for each place: b * seq_len + s where place s of row b holds "
            "text"
        ),
        "inputs_embeds": "what enters the first layer",
    },
    table.NAME: {
        "input_ids": "token ids, the padding token at places of images, videos and audio",
        "per_layer_tokens": "a row for each token: the first layer's values, then the next one's",
    },
    "model": {
        **TABLES,
        "input_ids": "token ids, the padding token at places of images, videos and audio",
        "pixel_values": "patches of each image line by line, padded with anything",
        "input_features_*": "mel features of clip *, then anything",
        "audio_mask_*": "1 for a frame of clip *, 0 behind it",
        "place_index": "row of [text ; images ; clips] for each place: b * seq_len + s where place s of row b is text",
        "hidden_states": "hidden states before the final norm",
    },
    "per_layer_projection": {
        "inputs_embeds": "what enters the first layer",
        "per_layer_tokens": "per_layer_embedding's output for the same places",
        **PER_LAYER_MEANING,
    },
}
WHOLE_INPUTS = (
    "inputs: images are resized to `images`.shapes in turn, pixels scaled to 0..1, cut into patches, each padded to "
    "the largest; clips are padded to `audio`.lengths in turn, with a mask of their frames; token ids at placeholders "
    "become pad_token_id; place_index says which row of [text ; images ; clips with their padding] a place holds"
)
WHOLE_STEPS = (
    "remove padding: each row starts at place 0 of max_seq_len places",
    ROTARY,
    "model: one call; mask later places and places from the end of each row on, and in layers with a window places "
    "further back than it",
    LAST_TOKEN,
    "the new token stands at the next place of its row; call the model again, with the same images and clips",
)
IMAGES = (
    "images: resize an image to height * patch_size x width * patch_size of one of `images`.shapes, scale its pixels "
    "to 0..1, cut it into patches; vision: one call for each image; frames of a video one by one, or `video_frames` at "
    "once"
)
AUDIO = "audio: mel features of a clip go, padded, into the shortest graph that holds them, with a mask of its frames"
PLACES = (
    "places: an image, a video or a clip has as many placeholder tokens as it has rows; token ids there become "
    "pad_token_id for every table; fusion by index where there are any, else token_embedding's output is what enters "
    "the first layer"
)
PER_LAYER = (
    "per-layer inputs: per_layer_embedding of the same ids, then per_layer_projection with what enters the first "
    "layer; layer i takes part i of them; so it is with each later token"
)
TABLE = {
    "layers": (
        "per_layer_embedding is split by `per_layer_parts`: each graph has the values of layers `layers`[0] to "
        "`layers`[1] - 1; join them in order"
    ),
    "rows": (
        "per_layer_embedding is split by `per_layer_parts`: the graph with `rows`[0] <= id < `rows`[1] takes "
        "id - `rows`[0]"
    ),
    "host": (
        "per_layer_embedding is a table that the host reads: `tables` says which file; row id of its tensor `rows`, "
        "minus `zero_point`, times `scale` (one, or one a row), times `factor`"
    ),
}
BLOCKS = (
    "masks: tokens of one run of image or video places see each other in layers of `visual_blocks`.variants, later "
    "ones too, within the window if `bounded`"
)
