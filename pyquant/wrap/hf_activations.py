# SPDX-License-Identifier: Apache-2.0
"""transformers' activation objects (the values of ACT2FN) mapped onto the activation wrappers.

It owns which class means which function. The registry imports it when it meets a class of `transformers.activations`,
so that `import pyquant` does not import transformers.
"""

from __future__ import annotations

from transformers import activations

from pyquant.wrap.activation import QuantGELU, QuantSiLU, QuantTanhGELU
from pyquant.wrap.passthrough import QuantPassthrough
from pyquant.wrap.registry import register

# By name, and only those that this release of transformers has: PytorchGELUTanh became GELUTanh along the way.
_WRAPPERS = {
    "GELUActivation": QuantGELU,
    "GELUTanh": QuantTanhGELU,
    "PytorchGELUTanh": QuantTanhGELU,
    "NewGELUActivation": QuantTanhGELU,
    "SiLUActivation": QuantSiLU,
    "LinearActivation": QuantPassthrough,
}

for _name, _wrapper in _WRAPPERS.items():
    if (_cls := getattr(activations, _name, None)) is not None:
        register(_cls)(_wrapper)
