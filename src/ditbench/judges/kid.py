"""KID: the maximum mean discrepancy of Inception features under a cubic kernel (Binkowski et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

from ditbench.judges.base import Pictures, Result
from ditbench.judges.kernels import cubic, sums
from ditbench.judges.sets import SetJudge, weights_of
from ditbench.judges.weights import Weights
from ditbench.statistics import jackknife


class Kid(SetJudge):
    """The unbiased estimate over all pairs; its expectation is that of the mean over subsets that others print."""

    name: ClassVar[str] = "kid"
    summary: ClassVar[str] = "unbiased kernel distance to the references in Inception's pooled features (kid)"
    network_name: ClassVar[str | None] = "inception"
    part: ClassVar[str] = "pool"
    needs: ClassVar[tuple[Weights, ...]] = weights_of("inception")

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        mine, real = self.features(pictures, "pictures"), self.features(references, "references")
        value, left_out = sums(mine, real, cubic, self.device).leaving_out(unbiased=True)
        estimate = jackknife(value, left_out, len(pictures))
        return [Result("kid", "", "lower", estimate, left_out=left_out)]
