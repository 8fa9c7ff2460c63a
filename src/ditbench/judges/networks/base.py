"""What a feature network is: weights, how a picture becomes its input, and the features it gives."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.faults import Fault
from ditbench.judges.weights import Weights, identity
from ditbench.patience import progress

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

BATCH = 32
# Each name is the module of this package that holds it.
NAMES = ("inception", "inception-pt", "clip-l14-336", "dinov2-l14")


class Network(ABC):
    """Features of pictures; `parts` are the names and widths of what it gives."""

    name: ClassVar[str]
    preprocessing: ClassVar[str]  # how a picture becomes its input, in a sentence: part of what a number means
    parts: ClassVar[dict[str, int]]
    needs: ClassVar[Weights]

    def __init__(self, device: str = "cpu", places: Mapping[str, str] | None = None, asker: str = "") -> None:
        """`places` are the configuration's `judge_weights`; `asker` is the judge that needs the network."""
        self.device, self.places, self.asker = device, dict(places or {}), asker or self.name

    @property
    def place(self) -> Path:
        """Where its weights are; a Fault where they are not on this machine."""
        return self.needs.need(self.places, self.asker)

    @property
    def identity(self) -> str:
        """What tells its weights from others."""
        return identity(self.place)

    @abstractmethod
    def load(self) -> Any:
        """The network, ready on its device."""

    @cached_property
    def network(self) -> Any:
        """The network, loaded when it is first used."""
        return self.load()

    @abstractmethod
    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """A picture [height, width, 3] of any size as the network's input [3, size, size]."""

    @abstractmethod
    def parts_of(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The features [n, width] of each part."""

    def features(self, images: Iterable[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        """The features of pictures in their order, by part."""
        import torch

        found: dict[str, list[NDArray[np.float32]]] = {part: [] for part in self.parts}
        with torch.no_grad():
            for some in _batched(images, BATCH):
                progress()
                inputs = torch.stack([self.prepare(image) for image in some]).to(self.device)
                for part, values in self.parts_of(inputs).items():
                    found[part].append(values.float().cpu().numpy())
        return {
            part: np.concatenate(values) if values else np.zeros((0, self.parts[part]), np.float32)
            for part, values in found.items()
        }


def network_class(name: str) -> type[Network]:
    """The class of a network by its name."""
    if name not in NAMES:
        raise Fault(f"no feature network {name!r}; possible: {', '.join(NAMES)}")
    module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
    found = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Network) and v is not Network]
    return next(network for network in found if network.name == name)


def _batched(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    """Pictures some at a time; they may come from files, one by one."""
    waiting = iter(images)
    while some := list(islice(waiting, size)):
        yield some
