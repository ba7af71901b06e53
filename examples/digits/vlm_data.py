# SPDX-License-Identifier: Apache-2.0
"""Owns the questions about pictures of digits: words and their ids, layouts, answers, their form as Qwen3-VL inputs.
Leaves the digits to `data.py`, the networks to `vlm.py` and `gemma4_vlm.py`, and the optimisation to `training.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from examples.digits.data import SPLITS, Digits, load_split, random_affine, resample

WORDS = (
    *("<pad>", "<eos>", "<vision_start>", "<vision_end>", "<image>", "<video>"),
    *"0123456789",
    *("+", "=", ":", "?", "list", "sum", "largest", "of", "the", "digits", "look", "at", "and", "is"),
)
"""Every token; a token's id is its place here."""

TOKEN = {word: number for number, word in enumerate(WORDS)}
TASKS = ("list", "sum", "largest")
FORMS = ("{task} of the digits {pictures} :", "look at {pictures} : {task} ?", "of the digits {pictures} the {task} is")

PATCH = 4
TEMPORAL = 2
MERGE = 2
SLOT = 16
DIGIT = 12
GRIDS = {(1, 4, 8): 2, (1, 4, 12): 3, (1, 8, 8): 4}
"""Patch grids (t, h, w) of the pictures, and how many slots of SLOT x SLOT pixels (a digit each, at most) they have."""

GRIDS_FOR = {1: ((1, 4, 8),), 2: ((1, 4, 8), (1, 8, 8)), 3: ((1, 4, 12), (1, 8, 8))}
"""The grids that a picture of so many digits may have."""

SHARES = {2: ((2,), (2,), (1, 1)), 3: ((3,), (3,), (3,), (2, 1), (1, 2), (1, 1, 1))}
"""How so many digits are dealt to pictures; one is drawn."""

MAX_ANSWER = 9
"""Tokens of the longest answer, `<eos>` among them: a + b + c = d e."""

IGNORE = -100

Grid = tuple[int, int, int]
Padding = Literal["left", "right"]


@dataclass(frozen=True)
class Placed:
    """Image `row` of a split, in slot `slot` of a picture, `down` and `right` pixels from the slot's corner."""

    row: int
    slot: int
    down: int
    right: int


@dataclass(frozen=True)
class Picture:
    """A canvas of `grid` patches (t, h, w) with digits, in reading order, each in a slot of its own."""

    grid: Grid
    digits: tuple[Placed, ...]

    def __post_init__(self) -> None:
        slots = [placed.slot for placed in self.digits]
        if self.grid not in GRIDS or sorted(set(slots)) != slots or not slots or slots[-1] >= GRIDS[self.grid]:
            raise ValueError(f"a picture wants one of {list(GRIDS)} and rising slots of it: {self.grid = }, {slots = }")

    @property
    def tokens(self) -> int:
        """Image tokens that the picture takes in a prompt."""
        t, h, w = self.grid
        return t * h * w // MERGE**2


@dataclass(frozen=True)
class Question:
    """Digits of `split` in pictures, a task about them, the token ids of the prompt and of the right answer."""

    split: str
    task: str
    pictures: tuple[Picture, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __str__(self) -> str:
        return f"{words(self.prompt)} {words(self.answer)}"


@cache
def _split(name: str) -> Digits:
    return load_split(name)


def words(ids: Sequence[int]) -> str:
    """The text of token ids; a run of image tokens is written as one."""
    shown = [WORDS[number] for number in ids]
    return " ".join(w for n, w in enumerate(shown) if w != "<image>" or n == 0 or shown[n - 1] != w)


def questions(split: str, count: int, seed: int, *, easy: bool = False) -> list[Question]:
    """`count` random questions about digits of one split, the same for the same arguments; tasks take turns.

    `easy` ones are about one picture of the smallest grid with two digits.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r} of the digits; there are {', '.join(SPLITS)}")
    draw = random.Random(f"{split}/{seed}")
    return [_question(split, TASKS[number % len(TASKS)], draw, easy) for number in range(count)]


def _question(split: str, task: str, draw: random.Random, easy: bool) -> Question:
    labels = _labels(split)
    share = (2,) if easy else draw.choice(SHARES[draw.choice((2, 3))])
    rows = draw.sample(range(len(labels)), sum(share))
    left = iter(rows)
    pictures = []
    for count in share:
        grid = GRIDS_FOR[count][0] if easy else draw.choice(GRIDS_FOR[count])
        slots = sorted(draw.sample(range(GRIDS[grid]), count))
        room = range(SLOT - DIGIT + 1)
        pictures.append(
            Picture(grid, tuple(Placed(next(left), slot, draw.choice(room), draw.choice(room)) for slot in slots))
        )
    values = [labels[row] for row in rows]
    return Question(split, task, tuple(pictures), _prompt(task, pictures, draw.choice(FORMS)), _answer(task, values))


@cache
def _labels(split: str) -> tuple[int, ...]:
    return tuple(_split(split).labels.tolist())


def _prompt(task: str, pictures: Sequence[Picture], form: str) -> tuple[int, ...]:
    shown = [f"<vision_start> {'<image> ' * picture.tokens}<vision_end>" for picture in pictures]
    return tuple(TOKEN[word] for word in form.format(task=task, pictures=" and ".join(shown)).split())


def _answer(task: str, values: Sequence[int]) -> tuple[int, ...]:
    """The digits; or the sum with its working; or the largest digit; then `<eos>`."""
    text = {
        "list": " ".join(map(str, values)),
        "sum": f"{' + '.join(map(str, values))} = {' '.join(str(sum(values)))}",
        "largest": str(max(values)),
    }[task]
    return tuple(TOKEN[word] for word in (*text.split(), "<eos>"))


def inputs(
    asked: Sequence[Question],
    *,
    answers: bool = False,
    padding: Padding = "left",
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """A batch of questions as the keyword arguments of `Qwen3VLForConditionalGeneration.forward`.

    `input_ids`, `attention_mask`, `mm_token_type_ids` (B, S), int64: prompts, followed by their answers if `answers`,
    padded on the `padding` side. `pixel_values` (patches, 3 * 2 * 4 * 4), float32 in [-1, 1]: three equal channels and
    two equal frames of every picture, in the order in which prompts name them, patches by 2 x 2 blocks as HF's image
    processor orders them. `image_grid_thw` (pictures, 3), int64. With a `generator` every digit is drawn slightly
    distorted (for training).
    """
    draw = None
    if generator is not None:
        draw = lambda images: resample(images, DIGIT, random_affine(len(images), generator))  # noqa: E731
    return {
        **tokens(asked, answers=answers, padding=padding),
        "pixel_values": torch.cat([_patches(page) for page in pages(asked, draw)]),
        "image_grid_thw": torch.tensor([picture.grid for q in asked for picture in q.pictures]),
    }


def tokens(asked: Sequence[Question], *, answers: bool = False, padding: Padding = "left") -> dict[str, Tensor]:
    """The part of a batch that is the same for every family: `input_ids`, `attention_mask`, `mm_token_type_ids`."""
    if not asked or padding not in ("left", "right"):
        raise ValueError(f"a batch wants questions and padding 'left' or 'right': {len(asked) = }, {padding = }")
    rows = [q.prompt + q.answer if answers else q.prompt for q in asked]
    ids, mask = pad(rows, TOKEN["<pad>"], padding), pad([(1,) * len(row) for row in rows], 0, padding)
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == TOKEN["<image>"]).long()}


def labels(asked: Sequence[Question], padding: Padding = "left") -> Tensor:
    """(B, S), int64: the answers' tokens where `inputs(answers=True)` has them, IGNORE elsewhere."""
    return pad([(IGNORE,) * len(q.prompt) + q.answer for q in asked], IGNORE, padding)


def pad(rows: Sequence[Sequence[int]], value: int, padding: Padding = "left") -> Tensor:
    """Rows of unequal length as (B, longest), int64, filled with `value` on the `padding` side."""
    longest = max(map(len, rows))
    fill = [(value,) * (longest - len(row)) for row in rows]
    return torch.tensor([(*f, *r) if padding == "left" else (*r, *f) for r, f in zip(rows, fill, strict=True)])


def pages(asked: Sequence[Question], draw: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Every picture of the questions, in order, (H, W) in [0, 1]; `draw` makes (N, DIGIT, DIGIT) of (N, 8, 8) digits,
    by default without distortion.
    """
    pictures = [(q.split, picture) for q in asked for picture in q.pictures]
    images = torch.stack([_split(split).images[placed.row] for split, p in pictures for placed in p.digits])
    drawn = iter((resample(images, DIGIT) if draw is None else draw(images)).clamp(0.0, 1.0))
    return [canvas(picture, [next(drawn) for _ in picture.digits]) for _, picture in pictures]


def canvas(picture: Picture, drawn: Sequence[Tensor]) -> Tensor:
    """(H, W), float32 in [0, 1]: digits (DIGIT, DIGIT) on paper, at the picture's places."""
    _, h, w = picture.grid
    page = torch.zeros(h * PATCH, w * PATCH)
    for placed, digit in zip(picture.digits, drawn, strict=True):
        down, right = divmod(placed.slot, w * PATCH // SLOT)
        top, side = down * SLOT + placed.down, right * SLOT + placed.right
        page[top : top + DIGIT, side : side + DIGIT] = digit
    return page


def _patches(page: Tensor) -> Tensor:
    """(H, W) in [0, 1] -> (patches, channel * frame * y * x) in [-1, 1], mean 0.5 and deviation 0.5 taken off."""
    block = MERGE * PATCH
    tiles = (page * 2 - 1).view(page.shape[0] // block, MERGE, PATCH, page.shape[1] // block, MERGE, PATCH)
    tiles = tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, 1, PATCH * PATCH)
    return tiles.expand(-1, 3 * TEMPORAL, -1).flatten(1)


def calibration_batches(
    count: int = 96,
    batch_size: int = 16,
    *,
    seed: int = 1,
    padding: Padding = "left",
    inputs: Callable[..., dict[str, Tensor]] = inputs,
) -> Iterator[dict[str, Tensor]]:
    """Questions with their answers about training digits, as the family's `inputs`, which is what `calibrate` takes."""
    asked = questions("train", count, seed)
    for start in range(0, count, batch_size):
        yield inputs(asked[start : start + batch_size], answers=True, padding=padding)
