"""What judges of whole sets have in common: features of one network, of the pictures and of the references."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.faults import Fault
from ditbench.judges.base import Judge, Pictures, Result
from ditbench.judges.networks.base import Network, network_class
from ditbench.judges.weights import Weights
from ditbench.statistics import FrechetTo, jackknife

if TYPE_CHECKING:
    from numpy.typing import NDArray

# One copy of each network in a process, whoever asks: several judges read the same features.
_loaded: dict[tuple[str, str, str], Network] = {}


def shared_network(name: str, device: str, places: Mapping[str, str], asker: str) -> Network:
    """A network, loaded once for all judges of a job."""
    network = network_class(name)(device, places, asker)
    return _loaded.setdefault((name, device, str(network.place)), network)


class SetJudge(Judge):
    """Compares the features of two sets of pictures."""

    of_sets: ClassVar[bool] = True
    worlds: ClassVar[tuple[str, ...]] = ("*",)
    needs_references: ClassVar[bool] = True
    network_name: ClassVar[str | None]
    part: ClassVar[str]
    least: ClassVar[int] = 3  # a covariance needs two samples, with any one left out too

    @cached_property
    def network(self) -> Network:
        """Whose features are compared."""
        assert self.network_name is not None
        return shared_network(self.network_name, self.device, self.places, self.name)

    def load(self) -> None:
        _ = self.network.network

    def features(self, pictures: Pictures, what: str) -> NDArray[np.float32]:
        """Features [n, width], extracted once for all judges that read them."""
        if len(pictures) < self.least:
            key = "images" if what == "pictures" else "references"
            raise Fault(
                f"judge {self.name} needs {self.least} {what} or more, there are {len(pictures)}; raise `{key}`, or "
                f"leave {self.name} out of `judges`"
            )
        return pictures.features(self.network)[self.part]


class FrechetJudge(SetJudge):
    """The squared Frechet distance of Gaussians that features are taken for."""

    by_moments: ClassVar[bool] = True
    measure_name: ClassVar[str]

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return (cls.measure_name,)

    def __init__(self, device: str = "cpu", places: Mapping[str, str] | None = None) -> None:
        super().__init__(device, places)
        self._prepared: tuple[str, FrechetTo] | None = None

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        mine = self.features(pictures, "pictures")
        value, left_out = self.to(references).leaving_out(mine)
        estimate = jackknife(value, left_out, len(pictures), floor=0.0)
        return [Result(self.measure_name, "", "lower", estimate, left_out=left_out)]

    def to(self, references: Pictures) -> FrechetTo:
        """The distance to the references, worked out as far as they go."""
        if self._prepared is None or self._prepared[0] != references.mark:
            moments = references.moments.get(self.part)
            to = FrechetTo.of(*moments) if moments else FrechetTo(self.features(references, "references"))
            self._prepared = references.mark, to
        return self._prepared[1]


def weights_of(name: str) -> tuple[Weights, ...]:
    """What a judge of a network's features needs."""
    return (network_class(name).needs,)
