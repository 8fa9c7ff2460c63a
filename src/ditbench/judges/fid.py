"""FID/scenes: the Frechet distance between drawn and real pictures in the attribute reader's features.

The features go through clean-fid's own path (its dataset, its loader, its batching) with the reader in the place of
Inception; they are whitened on renders, so that every direction counts alike. Pictures are compared at their own
64 x 64 pixels: the reader needs no resizing to 299.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from zipfile import ZipFile

from ditbench.faults import Fault
from ditbench.judges.base import SCENES, Judge, Pictures, Result
from ditbench.statistics import FrechetTo, jackknife

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Fid(Judge):
    """Lower is better; depends on the number of pictures, compare equal numbers only."""

    name: ClassVar[str] = "fid"
    summary: ClassVar[str] = "Frechet distance to real pictures in the attribute reader's features (fid/scenes)"
    worlds: ClassVar[tuple[str, ...]] = SCENES
    of_sets: ClassVar[bool] = True
    needs_references: ClassVar[bool] = True

    def __init__(self, device: str = "cpu", places: Mapping[str, str] | None = None) -> None:
        super().__init__(device, places)
        self._to: tuple[tuple[Path, ...], FrechetTo] | None = None

    @cached_property
    def extract(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The reader's features of float pixels [n, 3, 64, 64]."""
        from ditbench.worlds.scenes.judges.reader import load_reader
        from ditbench.worlds.scenes.world import shipped

        return load_reader(shipped("reader"), self.device).features

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("fid/scenes",)

    def load(self) -> None:
        from cleanfid import fid  # noqa: F401

        _ = self.extract

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        # A covariance needs two samples: of the references as they are, of the pictures with any one left out too.
        if len(pictures) < 3:
            raise Fault("fid/scenes needs three pictures or more; raise `images`, or leave fid out of `judges`")
        if len(references) < 2:
            raise Fault("fid/scenes needs two references or more; raise `references`, or leave fid out of `judges`")
        if self._to is None or self._to[0] != references.shards:
            self._to = references.shards, FrechetTo(self.features(references))
        value, left_out = self._to[1].leaving_out(self.features(pictures))
        estimate = jackknife(value, left_out, len(pictures), floor=0.0)
        return [Result("fid/scenes", "", "lower", estimate, left_out=left_out)]

    def features(self, pictures: Pictures) -> NDArray[np.float64]:
        """Features [n, D] in the pictures' order."""
        import numpy as np

        return np.concatenate([shard_features(path, self.extract, self.device) for path in pictures.shards])


def shard_features(
    shard: Path, extract: Callable[[torch.Tensor], torch.Tensor], device: str = "cpu"
) -> NDArray[np.float64]:
    """clean-fid's features of the pictures in a ZIP, in the order of their names.

    Its own listing of a ZIP has no fixed order, and paired intervals need one: the names are given to it.
    """
    import torch
    from cleanfid import fid

    with ZipFile(shard) as archive:
        names = sorted(archive.namelist())
    features = fid.get_files_features(
        names,
        extract,
        num_workers=0,
        device=torch.device(device),
        custom_fn_resize=lambda pixels: pixels,
        fdir=str(shard),
        verbose=False,
    )
    return features.astype("float64")
