"""sFID: the Frechet distance of spatial Inception features (Nash et al. 2021), with clean-fid's resizing."""

from __future__ import annotations

from typing import ClassVar

from ditbench.judges.sets import FrechetJudge, weights_of
from ditbench.judges.weights import Weights


class InceptionSfid(FrechetJudge):
    """Lower is better; published ones are mostly of ADM's evaluator, whose resizing is TensorFlow's bilinear one."""

    name: ClassVar[str] = "inception-sfid"
    summary: ClassVar[str] = "Frechet distance in seven channels of Inception's mixed_6, pixel by pixel (sfid)"
    network_name: ClassVar[str | None] = "inception-pt"
    part: ClassVar[str] = "spatial"
    measure_name: ClassVar[str] = "sfid"
    needs: ClassVar[tuple[Weights, ...]] = weights_of("inception-pt")
