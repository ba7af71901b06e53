# SPDX-License-Identifier: Apache-2.0
"""The folder of a quantization-aware Gemma checkpoint: scales of the KV cache, and activation scales that it lacks.

It owns both, since transformers ignores the first and leaves the second uninitialized. Weights and the activation
scales that are there come with the float model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pyquant.decoder.layers import DecoderAttention
from pyquant.errors import ModelError
from pyquant.interop.places import Places
from pyquant.interop.tensor_folder import safetensors_files
from pyquant.wrap.base import QModule
from pyquant.wrap.stored import activation_grid

__all__ = ["GemmaFolder"]

#: tensor of the folder -> the site that all families have for it
CACHE = {"k_cache_scale": "key", "v_cache_scale": "value"}
ACTIVATION = ("input_activation_scale", "output_activation_scale")
HOW = "trained KV cache, in the gemma checkpoint"


@dataclass(frozen=True)
class GemmaFolder:
    """names: every tensor of the folder. cache: name of a cache scale -> its tensor, a single number."""

    folder: Path
    names: frozenset[str]
    cache: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: str | Path) -> GemmaFolder:
        """Raises ModelError for a folder without .safetensors files, or with one that cannot be read."""
        names: set[str] = set()
        cache: dict[str, Tensor] = {}
        for file in safetensors_files(Path(folder)):
            try:
                with safe_open(file, framework="pt") as content:
                    keys = list(content.keys())
                    cache |= {key: content.get_tensor(key) for key in keys if key.rpartition(".")[2] in CACHE}
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    f"the weights file {str(file)!r} cannot be read ({error}); download it again"
                ) from error
            names |= set(keys)
        return cls(Path(folder), frozenset(names), cache)

    def absent(self, fp: nn.Module) -> frozenset[str]:
        """The activation scales of `fp`, by their names in it, that the folder does not have.

        Raises ModelError where `fp` has layers with such scales and the folder has none of these layers.
        """
        places = Places(name.rpartition(".")[0] for name in self.names if name.endswith(".weight_scale"))
        layers = [path for path, module in fp.named_modules() if any(name in module._parameters for name in ACTIVATION)]
        found = {path: place for path in layers if (place := places.find(path)) is not None}
        if layers and not found:
            raise ModelError(
                f"checkpoint={str(self.folder)!r} has none of the {len(layers)} quantized linear layers of this model, "
                f"such as {layers[0]!r}; give the folder that the model was loaded from"
            )
        absent = [(path, f"{place}.{name}", name) for path, place in found.items() for name in ACTIVATION]
        return frozenset(f"{path}.{name}" for path, stored, name in absent if stored not in self.names)

    def decide_caches(self, q: QModule) -> int:
        """Give the key and value sites of `q` their trained grids; returns how many have one.

        0 is no scale, as for activations. Warns of scales that fit no module of the tree.
        """
        modules = {module.path: module for module in q.all_qmodules() if {*CACHE.values()} & {*module.sites}}
        places, found, strange = Places(modules), 0, []
        for name, scale in sorted(self.cache.items()):
            path, _, kind = name.rpartition(".")
            place = places.find(path)
            if place is None:
                strange.append(name)
                continue
            site = modules[place].site(CACHE[kind])
            if site.takes_grid and bool((scale != 0).any()):
                if scale.numel() != 1:
                    raise ModelError(
                        f"{name!r} in {str(self.folder)!r} has shape {tuple(scale.shape)}, expected one number: a "
                        "cached tensor has one scale in a Circle file"
                    )
                site.decide(activation_grid(scale, name), HOW)
                found += 1
        found += sum(follow_owner(module, modules) for module in modules.values())
        if strange:
            warnings.warn(
                f"{len(strange)} cache scales of {str(self.folder)!r} belong to no attention of this model and are not "
                f"used, such as {strange[0]!r}",
                UserWarning,
                stacklevel=3,
            )
        return found


def zero_absent_(model: nn.Module, missing: Iterable[str]) -> list[str]:
    """Set the activation scales among `missing` (what transformers says that a checkpoint lacks) to 0, which means
    none; they are uninitialized. Returns the others."""
    others = []
    for name in missing:
        if name.rpartition(".")[2] in ACTIVATION:
            model.get_parameter(name).data.zero_()
        else:
            others.append(name)
    return others


def follow_owner(module: QModule, modules: Mapping[str, QModule]) -> int:
    """Where a layer reads keys and values of another one, its sites get their grids. Returns how many."""
    if not isinstance(module, DecoderAttention) or module.kind.shares is None:
        return 0
    stack, _, name = f".{module.path}".rpartition(f".{module.layer_idx}.")
    owner = modules.get(f"{stack}.{module.kind.shares}.{name}"[1:])
    if owner is None:
        return 0
    found = 0
    for site in CACHE.values():
        theirs, own = owner.site(site), module.site(site)
        if theirs.qparams is not None and theirs.decided and own.takes_grid and not own.decided:
            own.decide(theirs.qparams, theirs.decided)
            found += 1
    return found
