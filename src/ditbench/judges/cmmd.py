"""CMMD: the maximum mean discrepancy of CLIP embeddings under a Gaussian kernel (Jayasumana et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

from ditbench.judges.base import Pictures, Result
from ditbench.judges.kernels import gaussian, sums
from ditbench.judges.sets import SetJudge, weights_of
from ditbench.judges.weights import Weights
from ditbench.statistics import jackknife

SIGMA, SCALE = 10.0, 1000.0


class Cmmd(SetJudge):
    """The biased estimate times a thousand, as published."""

    name: ClassVar[str] = "cmmd"
    summary: ClassVar[str] = "kernel distance to the references in CLIP ViT-L/14-336's embeddings, x1000 (cmmd)"
    network_name: ClassVar[str | None] = "clip-l14-336"
    part: ClassVar[str] = "embedding"
    needs: ClassVar[tuple[Weights, ...]] = weights_of("clip-l14-336")

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        mine, real = self.features(pictures, "pictures"), self.features(references, "references")
        value, left_out = sums(mine, real, gaussian(SIGMA), self.device).leaving_out(unbiased=False)
        estimate = jackknife(SCALE * value, SCALE * left_out, len(pictures))
        return [Result("cmmd", "", "lower", estimate, left_out=SCALE * left_out)]
