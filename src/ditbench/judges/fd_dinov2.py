"""FD-DINOv2: the Frechet distance of DINOv2's features (Stein et al. 2023), which agrees better with people."""

from __future__ import annotations

from typing import ClassVar

from ditbench.judges.sets import FrechetJudge, weights_of
from ditbench.judges.weights import Weights


class FdDinov2(FrechetJudge):
    """Lower is better; falls with the number of pictures, compare equal numbers and equal references only."""

    name: ClassVar[str] = "fd-dinov2"
    summary: ClassVar[str] = "Frechet distance to the references in DINOv2 ViT-L/14's class tokens (fd-dinov2)"
    network_name: ClassVar[str | None] = "dinov2-l14"
    part: ClassVar[str] = "token"
    measure_name: ClassVar[str] = "fd-dinov2"
    needs: ClassVar[tuple[Weights, ...]] = weights_of("dinov2-l14")
