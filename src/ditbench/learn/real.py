"""How far images that a search makes are from real ones, outside the embedded world: FID to the run's references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditbench.faults import Fault
from ditbench.judges.inception_fid import InceptionFid
from ditbench.judges.references import check_networks, read_references

if TYPE_CHECKING:
    from ditbench.learn.lesson import Lesson


class RealImages(NamedTuple):
    """Records of the references of a run: of the images, of their features, or a file of their statistics."""

    record: Path
    features: Sequence[Path] = ()
    statistics: Path | None = None


class FidToReferences(NamedTuple):
    """FID of images [n, height, width, 3], and what tells it from FID to others or by another network."""

    of: Callable[[NDArray[np.uint8]], float]
    mark: str


def fid_to_references(lesson: Lesson) -> FidToReferences:
    """FID as the judge inception-fid has it."""
    real = lesson.real_images
    if real is None:
        raise Fault(
            f"fitness: fid needs real images of world {lesson.spec['world']}: name them as `references: "
            "{folder: PATH}` (or their statistics), or take lpips, the distance to the full network's images"
        )
    judge = InceptionFid(lesson.sampler.device, lesson.judge_places)
    judge.load()
    references = read_references(*real)
    check_networks([judge], real.features)
    to = judge.to(references)

    def fid(images: NDArray[np.uint8]) -> float:
        return to(judge.network.features(images)[judge.part].astype(np.float64))

    return FidToReferences(fid, f"{judge.network.identity} {references.mark}")
