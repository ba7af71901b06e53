# SPDX-License-Identifier: Apache-2.0
"""Which wrapper was made of which module, in the form of the `names` of `compare`.

It owns this mapping. Using it is the caller's.
"""

from __future__ import annotations

from torch import nn


def counterparts(model: nn.Module, wrapped: nn.Module) -> dict[str, str]:
    """Module name in `wrapped` -> module name in `model`, for each wrapper that was made of one.

    A wrapper stores the path of the module that it was made of, so that nothing is guessed from names; parts of a
    wrapper without a module of their own (sites, an attention core) are not in it.
    """
    known = {name for name, _ in model.named_modules()}
    found = {}
    for name, module in wrapped.named_modules():
        path = getattr(module, "path", None)
        if hasattr(module, "fp_type") and path in known:
            found[name] = str(path)
    return found
