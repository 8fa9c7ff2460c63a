"""How far an arm drifts from the full model's pictures to the eyes of the attribute reader: LPIPS' form in `scenes`."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.judges.base import SCENES, Judge, Pictures, Result, batches, drift_names, drift_results

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray


class Perceptual(Judge):
    """The distance of the reader's features, DiffSparse's loss here: LPIPS' own networks know photographs only."""

    name: ClassVar[str] = "perceptual"
    summary: ClassVar[str] = "distance of the reader's features to the full arm's pictures (perceptual-to-full/scenes)"
    worlds: ClassVar[tuple[str, ...]] = SCENES
    needs_full: ClassVar[bool] = True

    @cached_property
    def distance(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        from ditbench.worlds import get_world

        found = get_world("scenes").perceptual(self.device)
        assert found is not None, "the embedded world has one"
        return found

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return drift_names("perceptual-to-full/scenes")

    def load(self) -> None:
        _ = self.distance

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        if full is None:
            raise ValueError("perceptual-to-full/scenes needs the full arm's pictures")
        distances = self.distances(pictures.images, full.images)
        return drift_results("perceptual-to-full/scenes", "", "lower", distances)

    def distances(self, images: NDArray[np.uint8], originals: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The distance of each image [n, height, width, 3] to its original."""
        import torch

        def scaled(part: NDArray[np.uint8]) -> torch.Tensor:
            return torch.from_numpy(part).to(self.device).movedim(-1, 1).float() / 127.5 - 1

        with torch.inference_mode():
            pairs = zip(batches(images), batches(originals), strict=True)
            found = [self.distance(scaled(mine), scaled(theirs)).double().cpu().numpy() for mine, theirs in pairs]
        return np.concatenate(found)
