# SPDX-License-Identifier: Apache-2.0
"""The models, the inputs and the two traces of `pyquant trace`; and which wrapper was made of which module.

It owns turning options into models and tensors. Printing is trace.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyquant.recipe import Recipe
    from pyquant.trace import Trace
    from pyquant.wrap import QModule

TINY = "tiny:"
Note = Callable[[str], None]


def load(name: str, dtype: str) -> nn.Module:
    """`tiny:FAMILY`, a checkpoint folder or a hub name, in eval mode. Raises ModelError, UnknownModuleError."""
    import torch

    from pyquant import models
    from pyquant.cli import checkpoints

    if name.startswith(TINY):
        family = name.removeprefix(TINY)
        if family not in models.FAMILIES:
            raise ModelError(
                f"there is no tiny model {name!r}; there are {', '.join(TINY + each for each in models.FAMILIES)}"
            )
        return models.by_name(family).example.tiny_model().to(getattr(torch, dtype))
    return checkpoints.load(name, dtype)


def inputs(args: argparse.Namespace, model: nn.Module, note: Note) -> dict[str, Tensor]:
    """One batch: by the folder's own processor where that is possible, else with a plain resize."""
    from pyquant.calibration import Line
    from pyquant.calibration.processor import open_image
    from pyquant.errors import CalibrationError
    from pyquant.models import family_of

    files = [Path(file) for file in args.image]
    for file in files:
        if not file.is_file():
            raise UsageError(f"the image {str(file)!r} {'is a folder' if file.is_dir() else 'does not exist'}")
    images = [open_image(file, "--image") for file in files]
    if args.model.startswith(TINY):
        import numpy as np

        ids = list(args.prompt.encode()) if args.prompt is not None else args.ids
        return _cast(family_of(type(model)).example.example_inputs(model, [np.array(i) for i in images], ids), model)
    reader, why = _reader(args.model, note)
    if reader is not None and args.ids is None and (args.prompt is not None or reader.processor is not None):
        prompt = args.prompt if args.prompt is not None or not files else "What is in this image?"
        if prompt is None and reader.processor is not None:
            prompt = "What is this?"
        return _for(model, reader.read(Line("the command line", prompt, tuple(files))))
    if reader is not None and args.ids is None and files:
        return _for(model, reader.read(Line("the command line", None, tuple(files))))
    if args.prompt is not None:
        raise CalibrationError(f"--prompt needs a tokenizer: {why}; give --ids")
    import numpy as np

    note(f"images are resized plainly, without the model's own image processor ({why})" if files else "made-up inputs")
    return _cast(family_of(type(model)).example.example_inputs(model, [np.array(i) for i in images], args.ids), model)


def _reader(name: str, note: Note) -> tuple[Any, str]:
    from pyquant.calibration import load_reader
    from pyquant.errors import CalibrationError

    try:
        reader = load_reader(name)
    except CalibrationError as error:
        return None, str(error)
    for text in reader.said:
        note(text)
    return reader, f"{name} has no tokenizer" if reader.tokenizer is None else "--ids were given"


def _for(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A processor's batch by the names of the model's arguments, without other entries."""
    from pyquant.calibration.data import forward_arguments
    from pyquant.models import family_of

    batch = family_of(type(model)).requests.inputs(batch)
    takes = forward_arguments(type(model))
    return _cast({name: value for name, value in batch.items() if name in takes}, model)


def _cast(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


def wrapped(fp: nn.Module) -> QModule:
    """The wrappers, with no site quantized."""
    import pyquant

    return pyquant.prepare(fp, pyquant.Policy.preset("float"))


def quantize(
    fp: nn.Module, recipe: Recipe, batches: Sequence[Any], note: Note, *, progress: bool | None = None
) -> QModule:
    """As pyquant.quantize, but sites that the batches give no usable range stay float; a note counts them."""
    import pyquant
    from pyquant import oneshot
    from pyquant.policy import literal

    q = pyquant.prepare(fp, recipe.policy)
    oneshot.calibrate_by(q, batches, recipe, progress=progress, log=note)
    float_sites = [site.path for site in q.uncalibrated_sites()]
    if float_sites:
        note(f"{len(float_sites)} sites got no usable values from this data and stay float, such as {float_sites[0]}")
    pyquant.convert(q, unused=[literal(path) for path in float_sites])
    return q


def undecided(fp: nn.Module, recipe: Recipe, batches: Sequence[Any]) -> QModule:
    """The tree of a recipe before a weight is decided: prepared, with the steps that fold. Says nothing again."""
    import pyquant
    from pyquant import oneshot

    q = pyquant.prepare(fp, recipe.policy)
    oneshot.calibrate_by(q, batches, recipe, only=("fold",), log=lambda _: None)
    return q


def chosen(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The names that match a glob. Raises TraceError, with near names, for a glob that matches none."""
    from pyquant.trace.capture import select

    return select(names, patterns, "--interesting-modules")


@contextmanager
def stops(model: nn.Module, names: set[str]) -> Iterator[None]:
    """breakpoint() after each call of the modules of these names."""

    def stopping(name: str) -> Callable[..., None]:
        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # `name`, `module`, `args`, `kwargs` and `output` are those of this call; `u` goes up to the model's code.
            _ = name
            breakpoint()

        return stop

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name in names:
                stack.callback(module.register_forward_hook(stopping(name), with_kwargs=True).remove)
        yield


def record(
    model: nn.Module,
    batch: dict[str, Tensor],
    modules: Sequence[str] | None,
    keep: Sequence[str],
    folder: Path | None,
    stop_at: set[str],
) -> Trace:
    """One traced call: `modules` by exact name (None: all), full tensors of those in `keep`."""
    from pyquant.trace import capture

    with stops(model, stop_at), capture(model, batch, modules, tensors=keep, folder=folder) as trace:
        pass
    return trace
