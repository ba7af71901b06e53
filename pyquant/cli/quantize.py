# SPDX-License-Identifier: Apache-2.0
"""Quantizes a checkpoint on prompts with images; writes .circle files, the quantized model and the recipe to a folder.

It owns the order of the steps. Which graphs there are is chosen by the model family (models/*/request.py); the folder
and the printed table are result_folder.py.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant.cli import memory, ranks
from pyquant.cli.checkpoints import DTYPES
from pyquant.cli.main import FINE
from pyquant.cli.options import count, recipe_name, recipe_of
from pyquant.errors import CalibrationError, ProfileError, PyquantError, UsageError
from pyquant.recipes import names as recipes
from pyquant.recipes import runtimes

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from pyquant.calibration import CalibrationData, Fingerprint
    from pyquant.distributed import Group
    from pyquant.models.family import Requests
    from pyquant.models.request import BundleChoice, Sizes
    from pyquant.recipe import Recipe
    from pyquant.stream import Stream
    from pyquant.wrap import QModule

Note = Callable[[str], None]
PER_LAYER_TABLES = ("auto", "graph", "layers", "rows", "host")
TARGETS = ("circle", "luci", "onert")
LISTED = 60  # lines of a list that are printed with an error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="checkpoint folder (config.json, weights), or a hub name")
    add("--recipe", type=recipe_name, metavar="NAME|FILE", help=_RECIPE)
    add("--policy", type=Path, metavar="FILE", help="rules that come after those of --recipe")
    add("--data", required=True, type=Path, help=_DATA)
    add("--out", required=True, type=Path, metavar="OUT", help="folder for the result; a former result is replaced")
    add("--samples", type=count, metavar="N", help="calibrate on N samples, picked by --seed (default: all)")
    add("--seed", type=int, default=0, help="which samples --samples picks (%(default)s)")
    add("--resume", type=Path, metavar="DIR", help=_RESUME)
    add("--stream", action="store_true", help=_STREAM)
    add("--cache-gb", type=_gigabytes, metavar="N", help=_CACHE)
    add("--requantize", action="store_true", help=_REQUANTIZE)
    add("--dtype", choices=DTYPES, default="float32", help="the type that the float model runs in (%(default)s)")
    add("--device", default="cpu", metavar="DEVICE", help=_DEVICE)
    add("--max-seq-len", type=count, metavar="N", help="prompt and answer, in tokens (default: from the data)")
    add("--image-grid", type=_grid, nargs="+", action="extend", default=[], metavar="HxW", help=_GRID)
    add("--prefill-lengths", type=count, nargs="+", default=[], metavar="N", help=_LENGTHS)
    add("--append-lengths", type=count, nargs="+", default=[], metavar="N", help=_APPEND)
    add("--audio-lengths", type=count, nargs="+", default=[], metavar="N", help=_AUDIO)
    add("--video-frames", type=count, default=0, metavar="N", help=_FRAMES)
    add("--batch-size", type=count, default=1, metavar="N", help="rows of the graphs (%(default)s)")
    add("--layers", choices=("stack", "per_layer", "whole"), help="one graph a stack of layers, a layer, or the model")
    add("--attention", choices=("batched", "per_head"), help="how heads are laid out in the graphs")
    add("--per-layer-table", choices=PER_LAYER_TABLES, help=_TABLE)
    add("--one-file", action="store_true", help=_ONE_FILE)
    add("--target", choices=TARGETS, default="circle", help="whose rules the files keep (%(default)s)")
    add("--unused", action="append", default=[], metavar="GLOB", help=_UNUSED)


_ONE_FILE = "all graphs in one file, which share the weights (for runtimes that know signatures, as pyquant's own)"
_RECIPE = f"formats and steps: {', '.join(recipes())}, or a file, such as a former recipe.yaml"
_DEVICE = "where the model runs while weights are decided and ranges observed, such as cuda (%(default)s); export: cpu"
_RESUME = "keep finished blocks and statistics in DIR, from where a run that was ended goes on with the same bits"
_STREAM = (
    "for a model larger than memory: weights stay in their files, and few of them are in memory; the same result. "
    "Edited weights, and those of another --dtype than the checkpoint's, take disk beside OUT meanwhile"
)
_CACHE = "with --stream: GB of hidden states that gptq and tune keep in memory between blocks (2); more lie in files"
_DATA = 'lines {"image": file(s), "prompt": text} in a .jsonl; or batches: .safetensors, .pt, or a folder of them'
_REQUANTIZE = (
    "quantize those weights of a checkpoint of another tool anew whose grid no file can hold (scales per group)"
)
_GRID = "image sizes in patches, a graph for each; TxHxW for videos of a Qwen3-VL (default: those of the data)"
_LENGTHS = "a prefill graph for each length in tokens (default: one, from the data)"
_APPEND = (
    "a graph for each length in tokens that appends to a filled cache, for longer prompts and chats (default: none)"
)
_AUDIO = "an audio graph for each length in frames of mel features (default: one, from the data)"
_FRAMES = "also a vision graph of N frames at once for each image size (default: frames go one by one)"
_TABLE = "Gemma4's table of per-layer embeddings: one graph, several by layers or rows, or a file that the host reads"
_UNUSED = (
    "sites that may stay without data, and float; may be repeated (a Qwen3-VL for text alone: 'model.visual*' and "
    "'model.language_model:deepstack_*'; a Gemma4 without audio: 'model.audio_tower*' and 'model.embed_audio*')"
)


def run(args: argparse.Namespace) -> int:
    return ranks.together(partial(_run, args))


def _run(args: argparse.Namespace, group: Group | None) -> int:
    from rich.console import Console

    import pyquant
    from pyquant import files
    from pyquant.cli import result_folder

    if args.cache_gb is not None and not args.stream:
        raise UsageError("--cache-gb is of --stream, which was not given; give both, or leave it out")
    writes = group is None or group.first
    if writes:
        result_folder.require_place(args.out)
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False, soft_wrap=True)

    def note(text: str) -> None:
        console.print(f"note: {text}", markup=False)

    recipe = recipe_of(args.recipe, args.policy, note)
    timer = memory.Timer()
    job = _read(args, console, timer)
    fp, q = _quantized(args, recipe, job, console, timer, note, group)
    if not writes:
        return FINE
    with files.whole_folder(args.out) as new:
        graphs = memory.Timer()
        with timer.step("export"), _rows_first(args.target):
            step = _released(graphs, [fp, q])
            programs = pyquant.export_bundle(
                q,
                new,
                job.choice.profiles,
                target=args.target,
                one_file=args.one_file or None,
                step=step,
                progress=_progress(args, group),
            )
        with timer.step("save"):
            result_folder.write_rest(new, q, args.model, _settings(args, job), _facts(args, job, q), job.calibrated)
    result_folder.show(console, args.out, fp, programs, (len(job.data), job.rows), graphs, timer)
    return FINE


@dataclass(frozen=True)
class Job:
    """What is known before any weight is read."""

    cls: type[nn.Module]
    data: CalibrationData
    of: int  # samples in the file
    rows: int  # a sample of a file of batches may have several
    choice: BundleChoice
    calibrated: Fingerprint


def _read(args: argparse.Namespace, console: Console, timer: memory.Timer) -> Job:
    """Checks everything that does not need the weights: class, data line by line, grids, lengths."""
    from transformers import AutoConfig

    from pyquant import calibration, models
    from pyquant.calibration.data import forward_arguments, only
    from pyquant.cli import checkpoints
    from pyquant.models.request import Request

    if args.one_file and args.target == "onert":
        raise ProfileError("--one-file: onert runs the first graph of a file only; leave it out for this target")
    request = Request(
        args.max_seq_len, tuple(args.image_grid), tuple(args.prefill_lengths), args.batch_size, args.layers,
        args.attention, tuple(args.audio_lengths), args.video_frames, tuple(args.append_lengths),
        args.per_layer_table,
    )  # fmt: skip
    cls = checkpoints.model_class(args.model)
    requests = models.family_of(cls).requests
    models.wrapper_of(cls)
    with timer.step("read data"):
        lines = args.data.suffix == ".jsonl"
        reader = calibration.load_reader(args.model) if lines else None
        for note in reader.said if reader else ():
            console.print(f"note: {note}")
        everything = calibration.read(args.data, reader).map(requests.inputs)
        everything = everything.map(partial(only, forward_arguments(cls), cls.__name__, drop=lines))
        data = everything if args.samples is None else everything.sample(args.samples, args.seed)
        if args.samples is not None and args.samples > len(everything):
            console.print(f"note: --samples {args.samples}, but the data has {len(everything)}: all are used")
        seen, calibrated = _sizes(data, requests)
    choice = requests.choose(AutoConfig.from_pretrained(args.model, trust_remote_code=False), request, seen)
    for guess in choice.guesses:
        console.print(f"guessed: {guess}")
    return Job(cls, data, len(everything), sum(sizes.rows for sizes in seen), choice, calibrated)


def _sizes(data: CalibrationData, requests: Requests) -> tuple[list[Sizes], Fingerprint]:
    """Reads each sample once, so that an error in one is found before hours of calibrating; with their checksums."""
    from tqdm import tqdm

    from pyquant.calibration.fingerprint import Fingerprint, Print, prints

    seen: list[Sizes] = []
    found: list[Print] = []
    for index in tqdm(range(len(data)), desc="read", unit="sample", disable=None):
        batch = data[index]
        try:
            seen.append(requests.sizes(batch))
        except PyquantError as error:
            raise CalibrationError(f"{data.where(index)}: {error}") from error
        found += prints(batch)
    return seen, Fingerprint.of(found)


def _quantized(
    args: argparse.Namespace,
    recipe: Recipe,
    job: Job,
    console: Console,
    timer: memory.Timer,
    note: Note,
    group: Group | None,
) -> tuple[nn.Module, QModule]:
    import pyquant
    from pyquant import oneshot, ops
    from pyquant.cli import checkpoints, trained
    from pyquant.interop import weight_files

    device = checkpoints.device(args.device)
    walk = _Walk(ranks.share(job.data, group), device)
    stream = _stream(args)
    if stream is not None and device.type != "cpu":
        raise UsageError(f"--stream keeps weights in files that the CPU reads, so it goes without --device {device}")
    if device.type != "cpu":
        note(f"operators on {device}: {ops.backends.summary(device)}")
    if stream is None and (text := memory.note(weight_files.elements(Path(args.model)), args.dtype)):
        note(text)
    with timer.step("load"):
        fp = checkpoints.load(args.model, args.dtype, stream)
        fp = fp if device.type == "cpu" else fp.to(device)
    released = _released(timer, trees := [fp])
    with released("prepare"), _rows_first():
        q = pyquant.prepare(
            fp, recipe.policy, checkpoint=trained.folder_of(args.model, fp), requantize=args.requantize, stream=stream
        )
    trees.append(q)
    console.print(f"{job.cls.__name__}, {_summary(recipe)}: {sum(1 for _ in q.all_sites())} sites")
    if line := trained.summary(q):
        console.print(line)

    @contextmanager
    def step(name: str) -> Iterator[None]:
        with released(name), _sites_listed() if name == "convert" else _placed(walk):
            yield

    oneshot.run(
        q, walk, recipe, unused=args.unused, progress=_progress(args, group), resume=args.resume, log=note, step=step,
        group=group,
    )  # fmt: skip
    return (fp, q) if device.type == "cpu" else (fp.cpu(), q.cpu())


def _progress(args: argparse.Namespace, group: Group | None) -> bool | None:
    """What takes hours says how far it is in a log too."""
    return True if args.stream and (group is None or group.first) else None


def _summary(recipe: Recipe) -> str:
    """`policy w8a8` where there are no steps, `recipe w4a16 (rotate, gptq)`."""
    steps = ", ".join(step.algorithm for step in recipe.steps)
    return f"recipe {recipe.name} ({steps})" if steps else f"policy {recipe.name}"


@contextmanager
def _placed(walk: _Walk) -> Iterator[None]:
    """An error about data gets the sample's place in its file."""
    walk.index = None
    try:
        yield
    except CalibrationError as error:
        if walk.index is None:
            raise
        raise CalibrationError(f"{walk.data.where(walk.index)}: {error}") from error


def _stream(args: argparse.Namespace) -> Stream | None:
    """What --stream and --cache-gb ask for."""
    from pyquant.stream import Stream

    if not args.stream:
        return None
    place = args.out.absolute().parent
    place.mkdir(parents=True, exist_ok=True)
    return Stream(place) if args.cache_gb is None else Stream(place, cache_gb=args.cache_gb)


def _released(timer: memory.Timer, trees: Sequence[nn.Module]) -> Callable[[str], AbstractContextManager[None]]:
    """Steps of `timer` after which the pages of weights that were read from their files are given back."""

    from pyquant import pages

    @contextmanager
    def step(name: str) -> Iterator[None]:
        with timer.step(name):
            yield
        pages.release(value for tree in trees for value in tree.parameters())

    return step


class _Walk:
    """The data, in order or by number; `index` is the sample that was read last, for error messages."""

    def __init__(self, data: CalibrationData, device: torch.device) -> None:
        self.data, self.device = data, device
        self.index: int | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.index = index
        batch = self.data[index]
        return batch if self.device.type == "cpu" else {name: value.to(self.device) for name, value in batch.items()}

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


@contextmanager
def _sites_listed() -> Iterator[None]:
    """Print the sites without a range, and raise the first line of the error of convert."""
    try:
        yield
    except CalibrationError as error:
        head, *rows = str(error).splitlines()
        if not rows:
            raise
        sites = [row.strip().partition(": ")[::2] for row in rows]
        print("\n".join(_listed(sites)), file=sys.stderr)
        raise CalibrationError(
            f"{head}; they are listed above. Give data that reaches them (a vision tower needs images), or name those "
            f"that no graph uses: --unused GLOB"
        ) from error


@contextmanager
def _rows_first(target: str = "circle") -> Iterator[None]:
    """Print the lines of a long error, and raise its first line as the error; of a target's faults, with what to do."""
    try:
        yield
    except PyquantError as error:
        head, *rows = str(error).splitlines()
        if not rows:
            raise
        print("\n".join(_cut(rows)), file=sys.stderr)
        raise type(error)(f"{head.rstrip(':')}, listed above{runtimes.advice(target)}") from error


def _cut(lines: list[str]) -> list[str]:
    return lines[:LISTED] + ([f"  and {len(lines) - LISTED} more lines"] if len(lines) > LISTED else [])


def _listed(sites: list[tuple[str, str]]) -> list[str]:
    """Sites by their problem; the layers of a stack are one line: `model.layers.*.mlp:gated (28 sites)`."""
    counts: dict[str, Counter[str]] = {}
    for path, reason in sites:
        counts.setdefault(reason, Counter())[re.sub(r"(?<=\.)[0-9]+(?=[.:])", "*", path)] += 1
    lines = []
    for reason, paths in counts.items():
        lines += [f"{reason}:", *(f"  {path}{f' ({n} sites)' if n > 1 else ''}" for path, n in paths.items())]
    return _cut(lines)


_NO_FACT = ("verb", "run", "out", "resume", "stream", "cache_gb")  # they change no bit of the result


def _facts(args: argparse.Namespace, job: Job, q: QModule) -> dict[str, str]:
    """What the model card says besides the model: the command, without the place of its result, and the data."""
    from pyquant.cli import trained

    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    words = ["pyquant", "quantize"]
    for name, value in vars(args).items():
        if name in _NO_FACT or value in (None, []) or value == parser.get_default(name):
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        given = ["x".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in values]
        repeated = [word for each in given for word in ("--unused", each)]
        words += repeated if name == "unused" else [f"--{name.replace('_', '-')}", *given]
    return {
        "command": f"`{shlex.join(words)} --out OUT`",
        "calibration": f"{len(job.data)} of {job.of} samples of {args.data.name}",
        **dict([line.split(": ", 1)] if (line := trained.summary(q)) else []),
    }


def _settings(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """The settings in effect, requested or guessed."""
    return {
        "model": {"source": args.model, "class": job.cls.__name__, "dtype": args.dtype},
        "calibration": {"data": str(args.data), "samples": len(job.data), "of": job.of, "seed": args.seed},
        "graphs": {**job.choice.settings, "target": args.target},
        "unused": list(args.unused),
    }


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GB above 0")
    return value


def _grid(text: str) -> tuple[int, int, int]:
    """`4x6` is an image of 4 rows and 6 columns of patches, `2x4x6` a video of two (merged) frames."""
    if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*){1,2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no grid; expected HxW in patches, such as 4x6, or TxHxW")
    numbers = [int(number) for number in text.split("x")]
    frames, height, width = numbers if len(numbers) == 3 else [1, *numbers]
    return frames, height, width
