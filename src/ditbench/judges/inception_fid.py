"""FID: the Frechet distance of Inception features, prepared as clean-fid does (Parmar et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

from ditbench.judges.sets import FrechetJudge, weights_of
from ditbench.judges.weights import Weights


class InceptionFid(FrechetJudge):
    """Lower is better; falls with the number of pictures, compare equal numbers and equal references only."""

    name: ClassVar[str] = "inception-fid"
    summary: ClassVar[str] = "Frechet distance to the references in Inception's pooled features, clean-fid's way (fid)"
    network_name: ClassVar[str | None] = "inception"
    part: ClassVar[str] = "pool"
    measure_name: ClassVar[str] = "fid"
    needs: ClassVar[tuple[Weights, ...]] = weights_of("inception")
