# SPDX-License-Identifier: Apache-2.0
"""`pyquant.interop.load(folder)`: the float model of a checkpoint, also of one that another tool quantized.

It owns finding the class and saying in a line what is wrong. Reading float weights is transformers' own loader's work;
of a quantized checkpoint it gets the values that its integers mean, each computed when the loader asks for it. Their
grids are decide.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant import companions, files, pages
from pyquant.errors import ModelError
from pyquant.interop import weight_files
from pyquant.interop.reader import Reader, reader_of, require_read
from pyquant.interop.tensor_folder import TensorFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pyquant.stream import Stream

__all__ = ["load", "model_class"]


def model_class(name: str) -> type[nn.Module]:
    """The transformers class that the checkpoint's config.json names. Raises ModelError."""
    import transformers
    from torch import nn

    config = _config(name)
    architectures = getattr(config, "architectures", None) or []
    found = [getattr(transformers, str(each), None) for each in architectures]
    if len(found) != 1 or not (isinstance(found[0], type) and issubclass(found[0], nn.Module)):
        raise ModelError(
            f"the config.json of {name!r} names the architectures {architectures}; expected one class of transformers "
            f"{transformers.__version__}, such as Qwen3VLForConditionalGeneration"
        )
    return found[0]


DTYPES = ("float32", "bfloat16", "float16")
_CALLED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # by safetensors


def load(folder: str | Path, dtype: str | torch.dtype = "float32", *, stream: Stream | None = None) -> nn.Module:
    """The float model of a checkpoint folder (or hub name), in eval mode, with the eager attention that wrappers
    simulate.

    Of a checkpoint that compressed-tensors (llm-compressor), GPTQ (GPTQModel, AutoGPTQ) or AutoRound wrote, the weights
    are what its integers mean, `(q - zero_point) * scale` in float32, then in `dtype` ("float32", "bfloat16",
    "float16"); none of these packages is needed. `pyquant.prepare(model, policy, checkpoint=folder)` then gives the
    tree the integers themselves. Tensors are read one by one.

    stream: for a model that is larger than memory: its weights stay in the .safetensors files, or are written to files
    of the stream where `dtype` is another than theirs; give it to prepare too.

    Raises ModelError for what cannot be loaded or lacks weights, for weights that cannot be streamed, and for a
    quantized format that is not read (AWQ, bitsandbytes, fp8, ...); UnknownModuleError for a class without a wrapper.
    """
    import torch

    from pyquant import models
    from pyquant.interop.gemma_qat import zero_absent_

    name, form = str(folder), str(dtype).removeprefix("torch.")
    if not isinstance(folder, str | Path) or form not in DTYPES:
        raise ModelError(
            f"load takes a folder and one of the types {', '.join(DTYPES)}, got {folder!r:.100} and {dtype!r}"
        )
    cls: Any = model_class(name)
    models.wrapper_of(cls)  # before gigabytes are read
    weight_files.check_files(Path(name))
    reader = _reader(name)
    if reader is not None:
        _check_head(name, reader)
    options = {"dtype": getattr(torch, form), "attn_implementation": "eager", "output_loading_info": True}
    try:
        values = _given(name, reader, stream, getattr(torch, form))
        if values is None:
            model, said = cls.from_pretrained(name, **options)
        else:
            model, said = cls.from_pretrained(None, config=_plain(name), state_dict=values, **options)
            model.name_or_path = model.config.name_or_path = name
            _generation_config(model, name)
    except ModelError:
        raise
    except Exception as error:  # whatever transformers makes of such files
        raise ModelError(_unreadable(name, error)) from error
    if stream is not None:
        stream.keep_all_(model)
        stream.guard(model)
        stream.release()
    missing = zero_absent_(model, sorted(said.get("missing_keys", ())))
    weight_files.check_ties(name, model, missing)
    if missing:
        raise ModelError(
            f"the weights of {name!r} lack {len(missing)} tensors of {cls.__name__}, such as {missing[0]!r}; they "
            f"would be random: use a complete checkpoint"
        )
    return model.eval()  # type: ignore[no-any-return]


def _check_head(name: str, reader: Reader) -> None:
    """As check_ties, for a head that is stored as integers."""
    heads = [path for path in reader.weights if path.rpartition(".")[2] == "lm_head"]
    if heads and bool(getattr(_config(name), "tie_word_embeddings", False)):
        raise ModelError(
            f"{name!r}: config.json has tie_word_embeddings=true, but the weights have a quantized {heads[0]!r} of "
            "its own; set tie_word_embeddings to false in config.json"
        )


def _reader(name: str) -> Reader | None:
    place = companions.local_folder(name)
    return None if place is None else reader_of(place)


def _config(name: str) -> Any:
    """Raises ModelError for what is no checkpoint, and for one of a quantized format that is not read."""
    import transformers

    _require_files(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of such a file
        raise ModelError(_unreadable(name, error)) from error
    place = companions.local_folder(name)
    if place is not None:
        require_read(place)
    return config


def _plain(name: str) -> Any:
    """The configuration without what says that the weights are quantized."""
    config = _config(name)
    for part in (config, *(getattr(config, each, None) for each in ("text_config", "vision_config"))):
        for key in ("quantization_config", "compression_config"):
            if part is not None and hasattr(part, key):
                delattr(part, key)
    return config


class _Value:
    """A weight that the loader of transformers takes for a slice of a file: read with `value[...]`."""

    def __init__(self, read: Callable[[], Tensor], stream: Stream | None, dtype: torch.dtype) -> None:
        self._read, self._stream, self._dtype = read, stream, dtype

    def __getitem__(self, _: Any) -> Tensor:
        value = self._read()
        if self._stream is None or not value.is_floating_point():
            return value
        if value.dtype == self._dtype and pages.is_mapped(value):
            return value
        kept = self._stream.keep(value, self._dtype)
        self._stream.touch(value)
        return kept


def _given(name: str, reader: Reader | None, stream: Stream | None, dtype: torch.dtype) -> dict[str, Any] | None:
    """What the loader gets instead of the files; None where it reads them by itself."""
    if reader is not None:
        return _values(reader, stream, dtype)
    return None if stream is None else _streamed(name, stream, dtype)


def _values(reader: Reader, stream: Stream | None, dtype: torch.dtype) -> dict[str, Any]:
    plain = [name for name in reader.folder if name not in reader.owned]
    return {name: _Value(partial(reader.folder.__getitem__, name), stream, dtype) for name in plain} | {
        f"{path}.weight": _Value(_weight(reader, path), stream, dtype) for path in reader.weights
    }


def _weight(reader: Reader, path: str) -> Callable[[], Tensor]:
    return lambda: reader.weight(path).value()


def _streamed(name: str, stream: Stream, dtype: torch.dtype) -> dict[str, Any] | None:
    """The tensors of a float checkpoint in `dtype`; None where they have it: then the loader maps them by itself.

    Raises ModelError for weights that are no .safetensors of a folder here.
    """
    place = companions.local_folder(name)
    if place is None or not weight_files.elements(place):
        raise ModelError(
            f"the weights of {name!r} cannot be streamed: they are no .safetensors files of a folder here; load the "
            "model whole once and write it with model.save_pretrained(DIR), then stream DIR"
        )
    folder = TensorFolder(place)
    stored = str(dtype).removeprefix("torch.")
    if {folder.dtype(key) for key in folder} <= {_CALLED[stored]}:
        return None
    return {key: _Value(partial(folder.__getitem__, key), stream, dtype) for key in folder}


def _generation_config(model: Any, name: str) -> None:
    """From its file, which from_pretrained does not look for beside a state dict."""
    from transformers import GenerationConfig

    place = companions.local_folder(name)
    if place is not None and (place / companions.GENERATION).is_file() and hasattr(model, "generation_config"):
        model.generation_config = GenerationConfig.from_pretrained(place)


def _require_files(name: str) -> None:
    path = Path(name)
    looks_local = path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if not looks_local:
        return
    if not path.is_dir():
        raise ModelError(f"the model folder {name!r} {'is a file' if path.exists() else 'does not exist'}")
    if not (path / "config.json").is_file():
        raise ModelError(f"the folder {name!r} is no checkpoint: it has no config.json")
    if why := files.absent(path / "config.json"):
        raise ModelError(f"{str(path / 'config.json')!r} {why}")


def _unreadable(name: str, error: Exception) -> str:
    first = next((line for line in str(error).split("\n") if line.strip()), type(error).__name__)
    if Path(name).is_dir():
        return f"the checkpoint {name!r} cannot be loaded ({type(error).__name__}: {first})"
    return (
        f"{name!r} is no folder here, and as a name on the Hugging Face hub it cannot be fetched ({first}); download "
        f"it where there is a network (`hf download {name} --local-dir DIR`) and give the folder"
    )
