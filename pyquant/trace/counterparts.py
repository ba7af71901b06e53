# SPDX-License-Identifier: Apache-2.0
"""Owns the answer to which wrapper stands for which module, which `compare` takes as `names`.
Leaves what is done with the pairs to the caller.
"""

from __future__ import annotations

from torch import nn


def counterparts(model: nn.Module, wrapped: nn.Module) -> dict[str, str]:
    """Module name in `wrapped` -> module name in `model`, for each wrapper that stands for one.

    A wrapper knows the path of the module that it was made of, so that nothing is guessed from names; pieces of a
    wrapper that stand for no module (sites, an attention core) are not in it.
    """
    known = {name for name, _ in model.named_modules()}
    found = {}
    for name, module in wrapped.named_modules():
        path = getattr(module, "path", None)
        if hasattr(module, "fp_type") and path in known:
            found[name] = str(path)
    return found
