# SPDX-License-Identifier: Apache-2.0
"""A quantized model as a folder: quantized.safetensors, quantization.json, the other files of a Hugging Face folder.

It owns the order of saving and loading, and building the class that was saved. How tensors are stored and put back, so
that outputs are bit-identical, is checkpoint_tensors.py, what the JSON may say checkpoint_index.py, tokenizer and
processor files companions.py, README.md model_card.py, how files appear whole files.py; .circle files are exporter/.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from pyquant import checkpoint_index, checkpoint_tensors, companions, decision, files, lifecycle, models, tensor_file
from pyquant.block_site import BlockSite
from pyquant.checkpoint_index import CHECKED, CONFIG, EARLIER, FORMAT, INDEX, VERSION, WEIGHTS, fault
from pyquant.companions import GENERATION
from pyquant.decision import LOG_FILE
from pyquant.errors import CheckpointError, PhaseError, PolicyError, SpecError
from pyquant.model_card import README, model_card
from pyquant.policy import Policy
from pyquant.recipe import Recipe
from pyquant.spec import BlockSpec, QuantSpec
from pyquant.tensor_file import Entry
from pyquant.wrap import QModule, foreign, registry
from pyquant.wrap.stored import StoredModule

__all__ = ["load_quantized", "save_quantized"]

logger = logging.getLogger(__name__)
QUANT_METHOD = "pyquant"  # in config.json: no quantizer of transformers has that name


def save_quantized(
    q: QModule,
    path: str | Path,
    *,
    source: str | Path | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the converted tree `q` to the folder `path`, as a Hugging Face folder.

    A weight that its site alone uses is stored as integers (4 bit: packed, low nibble first), every other tensor as it
    is, tied ones once; integers that the float model had already stay as they were packed. Beside them: config.json,
    generation_config.json where `q` has one, the files of the tokenizer, the processor and the chat template,
    quantization_log.csv where an algorithm decided something (pyquant.decision), and a model card (README.md).

    source: the checkpoint folder (or hub name, from its cache) that these files are copied from; by default the folder
        that the float model was loaded from, if it is there.
    tokenizer, processor: write their own files, which take the place of those of `source`.
    facts: rows of the model card that the caller adds, such as {"calibration": "128 lines of COCO"}.

    The folder appears whole or not at all; over an existing one each file is replaced at once and files of others stay.
    Raises PhaseError before convert, CheckpointError when it cannot be written or a file of `source` cannot be read.
    """
    if not isinstance(q, QModule) or not q.state.converted:
        advice = foreign.advice(type(q))
        raise PhaseError(
            f"save_quantized takes a converted tree, but {advice}"
            if advice
            else "save_quantized takes a converted tree: prepare, calibrate and convert it first"
        )
    if q.path:
        raise PhaseError(f"save_quantized takes the tree that prepare returned, got its part {q.path!r}")
    assert q.fp_type is not None
    tensors: dict[str, Entry] = {}
    index: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": {name: _version(name) for name in ("pyquant-circle", "torch", "transformers")},
        "root": registry.qualified(q.fp_type),
        "policy": q.policy.to_dict(),
        "configs": checkpoint_index.configs(q),
        "sites": _describe(q),
        "tensors": checkpoint_tensors.store(q, tensors),
    }
    if forms := {m.path: m.stored_form() for m in q.all_qmodules() if isinstance(m, StoredModule)}:
        index["stored"] = forms
    if q.state.recipe is not None:
        index["recipe"] = {**q.state.recipe.to_dict(), "notes": list(q.state.notes)}
        del index["recipe"]["rules"]  # those of 'policy'
    for site in q.all_sites():
        if site.scale is not None and site.zero_point is not None:
            tensors[f"{site.path}.scale"] = tensor_file.whole(site.scale)
            tensors[f"{site.path}.zero_point"] = tensor_file.whole(site.zero_point)
    place = companions.origin(q.config) if source is None else str(source)
    if source is not None and not Path(source).is_dir() and Path(source).exists():
        raise CheckpointError(f"source={str(source)!r} is a file; give the checkpoint folder")
    index["base"] = place or str(getattr(q.config, "_name_or_path", "") or "")
    former = checkpoint_index.files_of(Path(path))
    try:
        with files.folder(Path(path), last=INDEX) as new:
            checksum = tensor_file.save(new / WEIGHTS, tensors, {"format": "pt"})
            if hasattr(q.config, "to_json_string"):
                (new / CONFIG).write_text(_config_text(q.config), encoding="utf-8")
            _save_companions(q, new, place, {"tokenizer": tokenizer, "processor": processor})
            if q.state.log:
                (new / LOG_FILE).write_text(decision.to_csv(q.state.log), encoding="utf-8")
            beside = [file for file in sorted(new.iterdir()) if file.name in CHECKED - {WEIGHTS}]
            index["sha256"] = {WEIGHTS: checksum, **{file.name: files.sha256(file) for file in beside}}
            size = (new / WEIGHTS).stat().st_size
            card = model_card(q, base=index["base"], facts=facts or {}, versions=index["made_by"], size=size)
            (new / README).write_text(card, encoding="utf-8")
            (new / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for name in former & {EARLIER, LOG_FILE}:  # of the former model, and no file of this one
            if name not in index["sha256"]:
                (Path(path) / name).unlink(missing_ok=True)
    except CheckpointError:  # of the file that a streamed weight is read from
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"quantized model cannot be written to {str(path)!r}: {error}") from error


def load_quantized(path: str | Path, fp: nn.Module | None = None) -> QModule:
    """The converted tree that `save_quantized` wrote to the folder `path`, with bit-identical outputs.

    `fp` is a float model of the same class and configuration, with any weights (or none: on the meta device); it is not
    changed. Without it the class is built from config.json, which takes a transformers model that has a wrapper.
    Raises CheckpointError for a folder that is incomplete, corrupt, newer than this pyquant, or of another model.
    """
    folder = Path(path)
    with checkpoint_index.verified(folder) as index:
        return _load(folder, index, fp)


def _load(folder: Path, index: Mapping[str, Any], fp: nn.Module | None) -> QModule:
    try:
        policy = Policy.from_dict(index["policy"])
    except (SpecError, PolicyError, KeyError, TypeError, ValueError) as error:
        raise fault(folder, f"{INDEX}: 'policy'", f"cannot be ({error})") from error
    if fp is None:
        fp = _build(folder, index)
    elif registry.qualified(type(fp)) != index["root"]:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} is of a {index['root']}, got a {registry.qualified(type(fp))}; pass a model "
            f"of the class that was quantized"
        )
    try:
        settled = frozenset(path for path, site in index["sites"].items() if site["quantized"])
        q = lifecycle.build(fp, policy, settled=settled)
    except PolicyError as error:
        raise fault(folder, f"{INDEX}: 'policy'", f"does not fit the model ({error})") from error
    checkpoint_index.check_configs(index["configs"], q, folder)
    _adopt(q, index["sites"], folder)
    _check_sites(q, index["sites"], folder)
    if GENERATION in index["sha256"] and hasattr(q, "generation_config"):
        q.generation_config = _generation_config(folder)
    try:
        file = tensor_file.Mapped(folder / checkpoint_index.weights_of(index))
        checkpoint_tensors.restore(q, index, checkpoint_tensors.Reader(file, folder))
    except (SafetensorError, OSError) as error:
        raise fault(folder, WEIGHTS, f"cannot be read ({type(error).__name__}: {error})") from error
    lifecycle.finalize(q)
    _recall(q, index, folder)
    return q.eval()


# --- storing ---


def _save_companions(q: QModule, folder: Path, source: str | None, parts: Mapping[str, Any]) -> None:
    """generation_config.json, and what a tokenizer and a processor need, in a folder that has the weights."""
    generation = getattr(q, "generation_config", None)
    if generation is not None:
        (folder / GENERATION).write_text(generation.to_json_string(), encoding="utf-8")
    if source is not None:
        companions.copy(source, folder)
    for what, part in parts.items():
        if part is not None:
            companions.save(part, what, folder)


def _describe(q: QModule) -> dict[str, dict[str, Any]]:
    """Path of each site -> what the index records of it."""
    specs: dict[int, Any] = {}  # most sites share one of a few
    found = {}
    for site in q.all_sites():
        if id(site.spec) not in specs:
            specs[id(site.spec)] = None if site.spec is None else site.spec.to_dict()
        quantized = site.scale is not None or isinstance(site, BlockSite)
        decided = {"decided": site.decided} if site.decided else {}
        found[site.path] = {"role": site.role.value, "spec": specs[id(site.spec)], "quantized": quantized, **decided}
    return found


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


# --- restoring ---


def _build(folder: Path, index: Mapping[str, Any]) -> nn.Module:
    """The recorded class without values: on the meta device. Only a registered class is ever built."""
    root = index["root"]
    cls = models.find(root)
    config_class = None if cls is None else _config_class(cls)
    if cls is None or config_class is None or CONFIG not in index["sha256"]:
        why = "has no wrapper here" if cls is None else "is not a transformers class with a config.json in the folder"
        raise CheckpointError(
            f"checkpoint {str(folder)!r} is of a {root}, which {why}; pass a model of that class: "
            f"load_quantized(path, fp)"
        )
    forms = index.get("stored", {})
    rebuild_ = _rebuilder(folder) if forms else None
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # leave the caller's random numbers alone
        try:
            config = _eager(config_class.from_json_file(folder / CONFIG))
            config.__dict__.pop("quantization_config", None)
            if isinstance(index.get("base"), str) and hasattr(config, "_name_or_path"):
                config._name_or_path = index["base"]
            model: nn.Module = cls(config)
        except Exception as error:  # whatever transformers makes of such a file
            raise fault(folder, CONFIG, f"makes no {root} ({type(error).__name__}: {error})") from error
        try:
            if rebuild_ is not None:
                rebuild_(model, forms)
        except Exception as error:  # as above
            raise fault(folder, f"{INDEX}: 'stored'", f"does not fit {root} ({error})") from error
    return model


def _rebuilder(folder: Path) -> Callable[[nn.Module, Mapping[str, Any]], None]:
    """What puts layers of stored integers in the place of plain ones. Their classes are transformers'."""
    try:
        from pyquant.wrap.hf_gemma_quant import rebuild_
    except ImportError as error:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has layers of a quantization-aware checkpoint, and transformers "
            f"{_version('transformers')} has no classes for them; install 5.11 or later"
        ) from error
    return rebuild_


def _generation_config(folder: Path) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_dict(json.loads((folder / GENERATION).read_text(encoding="utf-8")))
    except Exception as error:  # whatever transformers makes of such a file
        raise fault(folder, GENERATION, f"is no generation config ({type(error).__name__}: {error})") from error


def _eager(config: Any) -> Any:
    """The configuration with the eager implementations, sub-configurations too: the only ones that wrappers implement.

    What a file names here may be code on the hub ("kernels-community/..."), which a constructor would look for.
    """
    for name in ("_attn_implementation", "_experts_implementation"):
        if hasattr(config, name):
            setattr(config, name, "eager")
    return config


def _config_text(config: Any) -> str:
    """config.json with `quantization_config`, by which pyquant's own commands refuse the folder as a float model."""
    data = json.loads(config.to_json_string())
    data["quantization_config"] = {"quant_method": QUANT_METHOD}
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def _config_class(cls: type[Any]) -> Any:
    """The class of the configuration that `cls` takes: of its constructor's annotation, else `config_class` (which some
    releases of transformers have wrong)."""
    parameter = inspect.signature(cls.__init__).parameters.get("config")
    found = None if parameter is None else parameter.annotation
    return found if hasattr(found, "from_json_file") else getattr(cls, "config_class", None)


def _adopt(q: QModule, recorded: Mapping[str, Any], folder: Path) -> None:
    """The formats of grids that were decided before convert: they are not the policy's."""
    for site in q.all_sites():
        how = recorded.get(site.path, {}).get("decided")
        if how and (site.takes_grid or isinstance(site, BlockSite)):
            where, recorded_spec = f"{INDEX}: spec of site {site.path!r}", recorded[site.path]["spec"]
            try:
                spec = QuantSpec.from_dict(recorded_spec or {})
            except (SpecError, TypeError) as error:
                raise fault(folder, where, f"cannot be ({error})") from error
            if isinstance(spec, BlockSpec) != isinstance(site, BlockSite):
                raise fault(folder, where, f"cannot be (a grid that was decided is none of {spec})")
            site.adopt(spec, how)


def _recall(q: QModule, index: Mapping[str, Any], folder: Path) -> None:
    """What was run, what it had to say, and what was decided."""
    data = dict(index.get("recipe", {}))
    q.state.notes = [str(note) for note in data.pop("notes", [])]
    try:
        q.state.recipe = dataclasses.replace(Recipe.from_dict(data), policy=q.policy) if data else None
    except (SpecError, PolicyError) as error:  # of another release; it says how the values were found, no more
        logger.warning(
            "checkpoint %r: this pyquant does not know its recipe, and leaves it out (%s)", str(folder), error
        )
    if LOG_FILE in index["sha256"]:
        try:
            q.state.log = decision.from_csv((folder / LOG_FILE).read_text(encoding="utf-8"))
        except (SpecError, UnicodeDecodeError) as error:
            raise fault(folder, LOG_FILE, f"cannot be ({error})") from error


def _check_sites(q: QModule, recorded: Mapping[str, Any], folder: Path) -> None:
    here = _describe(q)
    for path in sorted({*here, *recorded}):
        ours, theirs = here.get(path), recorded.get(path)
        if ours is None or theirs is None or (ours["role"], ours["spec"]) != (theirs["role"], theirs["spec"]):
            raise CheckpointError(
                f"checkpoint {str(folder)!r} does not fit this model at site {path!r}: there "
                f"{theirs or 'no such site'}, here {ours or 'no such site'}; use the configuration and the pyquant "
                f"version that it was saved with"
            )
