"""What a judge is given and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ditbench.faults import Fault
from ditbench.judges.packages import Package
from ditbench.judges.weights import Weights, identity
from ditbench.patience import progress
from ditbench.statistics import Estimate, bootstrap_mean, jackknife, paired_mean, paired_share, quantile, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ditbench.judges.networks.base import Network

Direction = Literal["lower", "higher"]
# What a judge may name as its worlds besides worlds: all that draw images, all that draw videos.
IMAGES, VIDEOS = "*", "videos"
# The worlds that draw the embedded world's scenes.
SCENES = ("scenes", "scenes-mmdit")


@dataclass(frozen=True)
class Pictures:
    """Images of one arm, or reference images, in caption order; `shards` are the ZIP files that hold them."""

    ids: list[str]
    images: NDArray[np.uint8]  # [n, height, width, 3]; videos are [n, frames, height, width, 3]
    captions: list[str] = field(default_factory=list)
    shards: tuple[Path, ...] = ()
    mark: str = ""  # what tells reference images from others
    frames_per_second: float | None = None  # of videos
    # Features by network, and means and covariances by part where only these are known.
    kept: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    moments: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)

    def features(self, network: Network) -> dict[str, NDArray[np.float32]]:
        """A network's features of the pictures, in their order: extracted once, whoever asks."""
        if network.name not in self.kept:
            if not len(self.images):
                raise Fault(
                    f"judge {network.asker} needs features of the references in {network.name}, and only their "
                    "statistics are known; name the images as `references: {folder: PATH}`"
                )
            self.kept[network.name] = network.features(self.images)
        return self.kept[network.name]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def none(cls) -> Pictures:
        """No pictures, where a world has no reference images."""
        import numpy as np

        return cls([], np.zeros((0, 1, 1, 3), np.uint8))

    @classmethod
    def read(
        cls, shards: Sequence[Path], captions: dict[str, str] | None = None, frames_per_second: float | None = None
    ) -> Pictures:
        """The images of some shards; `captions` maps caption ids to texts (None: these images have none)."""
        import numpy as np

        from ditbench.storage import read_shard

        parts = [read_shard(path) for path in shards]
        ids = [name for names, _ in parts for name in names]
        unknown = [name for name in ids if captions is not None and name not in captions]
        if unknown:
            raise Fault(
                f"{shards[0]}: image {unknown[0]} has no caption in this caption set; "
                "the shards are of other captions, delete them and run again"
            )
        texts = [captions[name] for name in ids] if captions is not None else []
        images = np.concatenate([images for _, images in parts])
        return cls(ids, images, texts, tuple(shards), frames_per_second=frames_per_second)


@dataclass(frozen=True)
class Result:
    """One measure of one set of pictures: a value with its interval and what paired comparisons need."""

    name: str
    unit: str
    direction: Direction
    estimate: Estimate
    # One value per picture, NaN where the measure does not concern it; None where it is of the whole set.
    per_sample: NDArray[np.float64] | None = None
    is_share: bool = False
    # For a measure of the whole set: its values with each jackknife group of pictures left out.
    left_out: NDArray[np.float64] | None = None
    # One value per reference image, for a share of them.
    of_references: NDArray[np.float64] | None = None

    def minus(self, baseline: Result) -> Estimate:
        """The difference to another arm's result on the same captions, with its paired interval."""
        import numpy as np

        if self.of_references is not None and baseline.of_references is not None:
            return paired_share(self.of_references, baseline.of_references)
        if self.per_sample is not None and baseline.per_sample is not None:
            both = np.isfinite(self.per_sample) & np.isfinite(baseline.per_sample)
            pair = (self.per_sample[both], baseline.per_sample[both])
            return paired_share(*pair) if self.is_share else paired_mean(*pair)
        if self.left_out is None or baseline.left_out is None:
            raise ValueError(f"{self.name} cannot be compared in pairs")
        if self.estimate.n != baseline.estimate.n:
            raise Fault(
                f"{self.name} of {self.estimate.n} and of {baseline.estimate.n} pictures do not compare: such a "
                "distance falls with their number"
            )
        difference = self.estimate.value - baseline.estimate.value
        paired = jackknife(difference, self.left_out - baseline.left_out, self.estimate.n)
        return Estimate(paired.value, paired.low, paired.high, paired.n, f"paired {paired.method}")


def mean_result(name: str, unit: str, direction: Direction, values: NDArray[np.float64]) -> Result:
    """A measure that is the mean of one number per picture."""
    return Result(name, unit, direction, bootstrap_mean(values), values)


def drift_results(name: str, unit: str, direction: Direction, values: NDArray[np.float64]) -> list[Result]:
    """How far pictures are from the full arm's: the mean, the median, and where the worst tenth of them begins."""
    worst = 0.1 if direction == "higher" else 0.9
    mean, median, tenth = drift_names(name)
    return [
        mean_result(mean, unit, direction, values),
        Result(median, unit, direction, quantile(values, 0.5)),
        Result(tenth, unit, direction, quantile(values, worst)),
    ]


def cosine_results(name: str, cosines: NDArray[np.float64]) -> list[Result]:
    """The mean cosine as it is, and times a hundred under a name of its own: papers print both."""
    return [mean_result(name, "", "higher", cosines), mean_result(f"{name}-x100", "", "higher", 100 * cosines)]


def share_result(name: str, flags: NDArray[np.float64]) -> Result | None:
    """A measure that is the share of pictures flagged 1, among those not NaN; None where there are none."""
    import numpy as np

    counted = flags[np.isfinite(flags)]
    return Result(name, "", "higher", wilson(counted), flags, is_share=True) if len(counted) else None


def batches(images: NDArray[np.uint8], size: int = 256) -> Iterator[NDArray[np.uint8]]:
    """Images some at a time, in their order."""
    for first in range(0, len(images), size):
        progress()
        yield images[first : first + size]


def drift_names(name: str) -> tuple[str, ...]:
    """What `drift_results` of a measure are called."""
    measure, slash, world = name.partition("/")
    return (name, *(f"{measure}-{part}{slash}{world}" for part in ("median", "worst-tenth")))


class Judge(ABC):
    """A metric. `name` is what a configuration calls it; its measures have names of their own."""

    name: ClassVar[str]
    summary: ClassVar[str]
    worlds: ClassVar[tuple[str, ...]]  # names, or IMAGES or VIDEOS for all worlds that draw such
    # Compares with the full arm's images; the full arm itself is not judged.
    needs_full: ClassVar[bool] = False
    # Judges a set of pictures as a whole: it has no values of single ones.
    of_sets: ClassVar[bool] = False
    # Compares with real images: with features of them, or `by_moments` with their means and covariances alone.
    needs_references: ClassVar[bool] = False
    by_moments: ClassVar[bool] = False
    # Whose features of the references it reads, where it does.
    network_name: ClassVar[str | None] = None
    # Reads what captions mean, so that they must be sentences of the world's grammar.
    needs_grammar: ClassVar[bool] = False
    # What it reads that is not shipped; a world's judges run by themselves only where all of it is at hand.
    needs: ClassVar[tuple[Weights, ...]] = ()
    # A package that it calls and ditbench does not depend on.
    package: ClassVar[Package | None] = None

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        """The names of what it may give."""
        return (cls.name,)

    def __init__(self, device: str = "cpu", places: Mapping[str, str] | None = None) -> None:
        """`places` are the configuration's `judge_weights`."""
        self.device = device
        self.places = dict(places or {})

    def place(self, weights: Weights) -> Path:
        """Where some weights are; a Fault where they are not on this machine."""
        return weights.need(self.places, self.name)

    def weights_read(self) -> dict[str, str]:
        """What tells the weights that it reads from others, by their keys."""
        return {weights.key: identity(self.place(weights)) for weights in self.needs if not weights.folder}

    @classmethod
    def ready(cls, places: Mapping[str, str]) -> bool:
        """Whether everything that it needs is on this machine."""
        if cls.package is not None and not cls.package.there:
            return False
        return all(weights.find(places) is not None for weights in cls.needs)

    @abstractmethod
    def load(self) -> None:
        """Reads weights and libraries ahead of measuring, so that faults show first and times can be told apart."""

    @abstractmethod
    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        """What the judge says of `pictures`; `full` are the full arm's images of the same captions."""
