"""The preference model of HPS/scenes: a dual encoder fine-tuned on which of two pictures is the better answer.

As HPS is to CLIP: the same architecture, the same kind of score, but taught by pairs; a faithful and clean picture is
preferred to a damaged one and to one that shows something else than its caption says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ditbench.worlds.scenes.judges.dual import DualEncoder
from ditbench.worlds.scenes.judges.weights import load_weights


class Preference(DualEncoder):
    """Scores pictures; only differences between scores for one caption have a meaning."""

    def score(self, images: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float64]:
        """The preference of each picture for its caption: a hundred times the cosine, as HPS is printed."""
        return 100 * self.similarity(images, captions)


def load_preference(path: Path, device: str = "cpu") -> Preference:
    """The preference model with its shipped weights."""
    return load_weights(Preference(), path, device)
