"""How far an arm drifts from the full model's pictures of the same captions and noise, in decibels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.judges.base import Judge, Pictures, Result, drift_names, drift_results

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Equal pictures have no finite ratio: they count as this many decibels.
EQUAL = 100.0
CHUNK = 1024


class Psnr(Judge):
    """The mean over pictures of the peak signal-to-noise ratio to the full arm's picture."""

    name: ClassVar[str] = "psnr"
    summary: ClassVar[str] = "peak signal-to-noise ratio to the full arm's pictures (psnr-to-full)"
    worlds: ClassVar[tuple[str, ...]] = ("*",)
    needs_full: ClassVar[bool] = True

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return drift_names("psnr-to-full")

    def load(self) -> None:
        """Arithmetic needs no weights."""

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        if full is None:
            raise ValueError("psnr-to-full needs the full arm's pictures")
        return drift_results("psnr-to-full", "dB", "higher", psnr(pictures.images, full.images))


def psnr(images: NDArray[np.uint8], originals: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The ratio of each image [n, height, width, 3] to its original, in decibels."""
    if images.shape != originals.shape:
        raise ValueError(f"images {images.shape} and originals {originals.shape} differ in shape")
    errors = [
        ((images[i : i + CHUNK].astype(np.float32) - originals[i : i + CHUNK]) ** 2).mean((1, 2, 3), dtype=np.float64)
        for i in range(0, len(images), CHUNK)
    ]
    error = np.concatenate(errors)
    with np.errstate(divide="ignore"):
        return np.where(error > 0, np.minimum(10 * np.log10(255.0**2 / error), EQUAL), EQUAL)
