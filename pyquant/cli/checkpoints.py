# SPDX-License-Identifier: Apache-2.0
"""`--model DIR`: the float model of a checkpoint folder or hub name, as the class that its config.json names.

It owns finding the class and saying in a line what is wrong. Reading the files is transformers' own loader's work.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant import files
from pyquant.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

DTYPES = ("float32", "bfloat16", "float16")


def model_class(name: str) -> type[nn.Module]:
    """The transformers class that the checkpoint's config.json names. Raises ModelError."""
    import transformers
    from torch import nn

    from pyquant.wrap import foreign

    _require_files(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of such a file
        raise ModelError(_unreadable(name, error)) from error
    if (kind := foreign.checkpoint(config)) is not None:
        raise ModelError(
            f"the checkpoint {name!r} is quantized already ({kind}, as its quantization_config says); pyquant "
            f"quantizes float weights: give the unquantized model, or dequantize this one and save it without "
            f"quantization_config"
        )
    architectures = getattr(config, "architectures", None) or []
    found = [getattr(transformers, str(each), None) for each in architectures]
    if len(found) != 1 or not (isinstance(found[0], type) and issubclass(found[0], nn.Module)):
        raise ModelError(
            f"the config.json of {name!r} names the architectures {architectures}; expected one class of transformers "
            f"{transformers.__version__}, such as Qwen3VLForConditionalGeneration"
        )
    return found[0]


def load(name: str, dtype: str = "float32") -> nn.Module:
    """The float model, in eval mode, with the eager attention that wrappers simulate.

    Raises ModelError for what cannot be loaded or lacks weights, UnknownModuleError for a class without a wrapper.
    """
    import torch
    import transformers

    from pyquant import models
    from pyquant.cli import weights
    from pyquant.interop.gemma_qat import zero_absent_

    if not sys.stderr.isatty():  # a bar is for a person who waits
        says: Any = transformers.utils.logging
        says.disable_progress_bar()
    cls: Any = model_class(name)
    models.wrapper_of(cls)  # before gigabytes are read
    weights.check_files(Path(name))
    try:
        model, said = cls.from_pretrained(
            name, dtype=getattr(torch, dtype), attn_implementation="eager", output_loading_info=True
        )
    except Exception as error:  # whatever transformers makes of such files
        raise ModelError(_unreadable(name, error)) from error
    missing = zero_absent_(model, sorted(said.get("missing_keys", ())))
    weights.check_ties(name, model, missing)
    if missing:
        raise ModelError(
            f"the weights of {name!r} lack {len(missing)} tensors of {cls.__name__}, such as {missing[0]!r}; they "
            f"would be random: use a complete checkpoint"
        )
    return model.eval()  # type: ignore[no-any-return]


def _require_files(name: str) -> None:
    if name.startswith("tiny:"):
        raise ModelError(
            f"{name!r} is a tiny model for trace, report and sensitivity; this command takes a checkpoint folder"
        )
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
