"""A judge of one's own: how much neighbouring pixels differ."""

from typing import ClassVar

import numpy as np

from ditbench.judges.base import Judge, Pictures, Result, mean_result


class Sharpness(Judge):
    """The mean over pictures of the mean absolute difference of neighbouring pixels, in grey levels."""

    name: ClassVar[str] = "sharpness"
    summary: ClassVar[str] = "mean difference of neighbouring pixels, in grey levels (sharpness)"
    worlds: ClassVar[tuple[str, ...]] = ("*",)  # all that draw images

    def load(self) -> None:
        """Arithmetic needs no weights; a judge that does names them in `needs` and loads them here."""

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        grey = pictures.images.astype(np.float64).mean(-1)  # [n, height, width]
        down, across = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=2))
        # One number per picture: the interval and the paired difference to `full` follow from them.
        values = (down.mean((1, 2)) + across.mean((1, 2))) / 2
        return [mean_result("sharpness", "", "higher", values)]
