# SPDX-License-Identifier: Apache-2.0
"""`run` of a bundle without files: each graph is its adapter, called; hosts are tested with it in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyquant.verify.session import _check


class Eager:
    """The graphs of `profile`, which are made when they are first run. Inputs are checked as Session does; `seen` has
    the last ones of each graph."""

    def __init__(self, q: Any, profile: Any) -> None:
        self.manifest = profile.manifest(q)
        self.parts, self.adapters = profile.graphs(q), dict[str, Any]()
        self.seen: dict[str, dict[str, Tensor]] = {}
        self.calls: list[str] = []

    @torch.no_grad()
    def __call__(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if name not in self.adapters:
            part, own = self.parts[name]
            self.adapters[name] = part.as_export_module(own)
        adapter = self.adapters[name]
        specs = [
            {
                "name": key,
                "shape": list(spec.shape),
                "dtype": str(spec.dtype).removeprefix("torch."),
                "range": self.manifest["graphs"][name].get("range", {}).get(key, [-(2**31), 2**31]),
            }
            | ({"shape_signature": [-1 if a == spec.dynamic else n for a, n in enumerate(spec.shape)]})
            for key, spec in adapter.input_specs.items()
        ]
        _check(name, specs, inputs)
        self.seen[name] = dict(inputs)
        self.calls.append(name)
        out = adapter(*(inputs[key] for key in adapter.input_specs))
        return dict(zip(adapter.output_names, out if isinstance(out, tuple) else (out,), strict=True))
