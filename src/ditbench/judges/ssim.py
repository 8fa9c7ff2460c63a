"""Structural similarity to the full model's pictures of the same captions and noise (Wang et al. 2004)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.faults import Fault
from ditbench.judges.base import Judge, Pictures, Result, batches, mean_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As published: a Gaussian window of 11 x 11 with a deviation of 1.5, where it lies within the picture; 8-bit range.
WINDOW, DEVIATION, RANGE = 11, 1.5, 255.0
FIRST, SECOND = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2


class Ssim(Judge):
    """The mean over pictures of the structural similarity to the full arm's picture, over pixels and the colours."""

    name: ClassVar[str] = "ssim"
    summary: ClassVar[str] = "structural similarity to the full arm's pictures (ssim-to-full)"
    worlds: ClassVar[tuple[str, ...]] = ("*",)
    needs_full: ClassVar[bool] = True

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("ssim-to-full",)

    def load(self) -> None:
        """Arithmetic needs no weights."""

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        if full is None:
            raise ValueError("ssim-to-full needs the full arm's pictures")
        return [mean_result("ssim-to-full", "", "higher", ssim(pictures.images, full.images, self.device))]


def ssim(images: NDArray[np.uint8], originals: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float64]:
    """The similarity of each image [n, height, width, 3] to its original, 1 where they are equal."""
    import torch
    from torch.nn import functional

    if images.shape != originals.shape:
        raise ValueError(f"images {images.shape} and originals {originals.shape} differ in shape")
    if min(images.shape[1:3]) < WINDOW:
        raise Fault(f"ssim-to-full needs pictures of {WINDOW} x {WINDOW} pixels or more; leave ssim out of `judges`")
    places = torch.arange(WINDOW, dtype=torch.float64, device=device) - WINDOW // 2
    bell = torch.exp(-(places**2) / (2 * DEVIATION**2))
    bell = bell / bell.sum()

    def blurred(values: torch.Tensor) -> torch.Tensor:
        # Separable: down, then across.
        down = functional.conv2d(values, bell[None, None, :, None])
        return functional.conv2d(down, bell[None, None, None, :])

    found = []
    for part, other in zip(batches(images), batches(originals), strict=True):
        # Every colour of every picture is a picture of its own, [n x 3, 1, height, width].
        a, b = (torch.from_numpy(x).to(device).double().movedim(-1, 1).flatten(0, 1)[:, None] for x in (part, other))
        mean_a, mean_b = blurred(a), blurred(b)
        variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
        covariance = blurred(a * b) - mean_a * mean_b
        light = (2 * mean_a * mean_b + FIRST) / (mean_a**2 + mean_b**2 + FIRST)
        shape = (2 * covariance + SECOND) / (variance_a + variance_b + SECOND)
        found.append((light * shape).mean((1, 2, 3)).unflatten(0, (-1, 3)).mean(1).cpu().numpy())
    return np.concatenate(found)
