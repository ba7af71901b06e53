# SPDX-License-Identifier: Apache-2.0
"""Family: what pyquant's commands need of a model family, in one object.

It owns the form. A family's folder has the object in its `family.py`; finding it is pyquant.models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from pyquant.decoder.host import Host
    from pyquant.exporter.profile import Alone
    from pyquant.models.request import BundleChoice, Request, Sizes
    from pyquant.wrap.base import QModule


class Example(Protocol):
    """A family without a checkpoint: `example.py` of its folder."""

    def tiny_model(self) -> nn.Module:
        """A transformers model of the family, small, with random weights that are the same each time."""

    def example_inputs(
        self, model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Keyword arguments of one call. `images`: arrays or tensors (H, W, 3) or (3, H, W), resized as the model needs
        them. `ids`: one prompt. Without any, both are made up. Raises InputError."""


class Requests(Protocol):
    """Bundles of a family: `request.py` of its folder."""

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a processor or a file gives, under the names of the model's arguments."""

    def sizes(self, batch: Mapping[str, Tensor]) -> Sizes:
        """What a batch of the model's arguments shows. Raises InputError."""

    def choose(self, config: Any, request: Request, seen: Sequence[Sizes]) -> BundleChoice:
        """Profiles for a model of `config`. Raises ProfileError for a request that it cannot serve."""


class AloneOf(Protocol):
    """How a part of a model is exported by itself."""

    def __call__(self, q: QModule, arguments: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Alone | None:
        """The profile and inputs of the graph of `q`, called with `arguments` while its model ran on `batch`; None
        where every argument is a tensor or absent. Raises ProfileError for a part without a graph."""


@dataclass(frozen=True)
class Family:
    """name: the folder here, and the package in transformers.models. host: makes what runs a bundle, from its manifest;
    None for a family whose graphs a caller runs one by one. parts: examples of models that `example` does not contain.
    """

    name: str
    example: Example
    requests: Requests
    alone: AloneOf
    host: Callable[[Mapping[str, Any]], Host] | None = None
    parts: tuple[Example, ...] = ()
