"""How sure a number is: 95 % intervals of shares, means, Frechet distances and of paired differences.

Everything random is seeded. Frechet distances are computed in float64 through symmetric eigenvalue problems; their
intervals come from a delete-a-group jackknife over the judged images, the references held fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
Z = 1.959963984540054  # the normal distribution's 97.5 % point
DRAWS = 2000
# Random indices are drawn in chunks, so that 30,000 samples need no gigabytes.
CHUNK = 4_000_000
GROUPS, WIDE_GROUPS = 50, 16
WIDE = 512  # more features than this: fewer groups, each one costs an eigenvalue problem


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from `n` samples."""

    value: float
    low: float
    high: float
    n: int
    method: str

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


# --- shares and means ---


def wilson(flags: ArrayLike) -> Estimate:
    """The share of true flags, with Wilson's score interval: right even where none or all are true."""
    values = np.asarray(flags, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("a share of no samples has no value")
    share = float(values.mean())
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)), n, "Wilson score")


def bootstrap_mean(values: ArrayLike, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """The mean with its percentile bootstrap interval over samples."""
    samples = np.asarray(values, dtype=np.float64)
    n = len(samples)
    if n == 0:
        raise ValueError("a mean of no samples has no value")
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    means = np.concatenate(
        [samples[rng.integers(n, size=(min(rows, draws - i), n))].mean(1) for i in range(0, draws, rows)]
    )
    # The half-widths stretch by what resampling n values of n shrinks them.
    value, stretch = float(samples.mean()), math.sqrt(n / max(n - 1, 1))
    low, high = (value + stretch * (float(q) - value) for q in np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]))
    return Estimate(value, low, high, n, f"percentile bootstrap over samples, {draws} draws")


def quantile(values: ArrayLike, share: float) -> Estimate:
    """The value that `share` of the samples lie below, with the exact interval between two of the samples.

    How many samples lie below the true quantile is binomial, whatever their distribution is. With few samples no two of
    them reach 95 %: the interval then ends at the least or largest sample.
    """
    from scipy.stats import binom

    samples = np.sort(np.asarray(values, dtype=np.float64))
    n = len(samples)
    if n == 0:
        raise ValueError("a quantile of no samples has no value")
    first = int(binom.ppf(0.5 - LEVEL / 2, n, share)) - 1
    last = int(binom.ppf(0.5 + LEVEL / 2, n, share))
    low, high = (float(samples[min(max(i, 0), n - 1)]) for i in (first, last))
    return Estimate(float(np.quantile(samples, share)), low, high, n, "order statistics, binomial")


def paired_mean(values: ArrayLike, baseline: ArrayLike, seed: int = 0) -> Estimate:
    """The mean difference to a baseline on the same captions, bootstrapped over captions."""
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    mean = bootstrap_mean(differences, seed)
    return Estimate(mean.value, mean.low, mean.high, mean.n, f"paired {mean.method}")


def paired_share(flags: ArrayLike, baseline: ArrayLike) -> Estimate:
    """The difference of two shares on the same captions, with Bonett and Price's adjusted interval.

    Two arms that agree on every caption do not prove equality: one imagined disagreement each way keeps the
    interval from collapsing.
    """
    mine, theirs = np.asarray(flags, dtype=bool), np.asarray(baseline, dtype=bool)
    n = len(mine)
    if n == 0 or n != len(theirs):
        raise ValueError("a paired share needs as many flags as the baseline, and at least one")
    gained, lost = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    value, middle = (gained - lost) / n, up - down
    low, high = max(-1.0, min(middle - half, value)), min(1.0, max(middle + half, value))
    return Estimate(value, low, high, n, "paired Bonett-Price adjusted Wald")


# --- Frechet distances ---


def _root(covariance: Floats) -> Floats:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def _root_trace(product: Floats) -> float:
    """The trace of the root of a symmetric matrix without negative eigenvalues but for rounding."""
    return float(np.sqrt(np.linalg.eigvalsh(product).clip(0)).sum())


def frechet(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """The squared Frechet distance of two Gaussians."""
    shift = np.asarray(mean1, dtype=np.float64) - np.asarray(mean2, dtype=np.float64)
    first, second = np.asarray(cov1, dtype=np.float64), np.asarray(cov2, dtype=np.float64)
    root = _root(first)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * _root_trace(root @ second @ root))


class FrechetTo:
    """Squared Frechet distances of feature sets [n, D] to one set of references [m, D], which is prepared once."""

    def __init__(self, references: ArrayLike) -> None:
        features = np.asarray(references, dtype=np.float64)
        if features.ndim != 2 or len(features) < 2:
            raise ValueError("references are features [m, D] with m >= 2")
        self._prepare(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))

    @classmethod
    def of(cls, mean: ArrayLike, covariance: ArrayLike) -> FrechetTo:
        """Distances to references of which only mean and covariance are known."""
        made = cls.__new__(cls)
        made._prepare(np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64))
        return made

    def _prepare(self, mean: Floats, covariance: Floats) -> None:
        self.mean, self.trace, self.root = mean, float(np.trace(covariance)), _root(covariance)

    def __call__(self, features: ArrayLike) -> float:
        """The distance of all the features."""
        return _Moments(self, features).distance(None)

    def leaving_out(self, features: ArrayLike, groups: int | None = None) -> tuple[float, Floats]:
        """The distance, and the distances with each of `groups` interleaved groups of samples left out."""
        moments = _Moments(self, features)
        n, width = moments.centred.shape
        count = min(n, groups or (GROUPS if width <= WIDE else WIDE_GROUPS))
        left_out = [moments.distance(np.arange(n) % count == group) for group in range(count)]
        return moments.distance(None), np.array(left_out)


class _Moments:
    """Sums over features, from which the distance without some samples follows cheaply.

    The features are multiplied with the references' root once: the spectrum that matters is then that of a
    covariance, D x D, or where there are fewer samples than features of a Gram matrix, n x n.
    """

    def __init__(self, to: FrechetTo, features: ArrayLike) -> None:
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or len(values) < 2 or values.shape[1] != len(to.mean):
            raise ValueError(f"features [n, {len(to.mean)}] with n >= 2 are needed, got {values.shape}")
        self.to = to
        # Sums around the references' mean: no digits are lost to a common offset.
        self.centred = values - to.mean
        self.rotated = self.centred @ to.root
        self.squares = np.einsum("nd,nd->n", self.centred, self.centred)
        self.sum = self.centred.sum(0)
        self.few = len(values) <= values.shape[1]
        self.gram = self.rotated @ self.rotated.T if self.few else self.rotated.T @ self.rotated

    def distance(self, without: NDArray[np.bool_] | None) -> float:
        gone = np.zeros(len(self.centred), dtype=bool) if without is None else without
        n = int((~gone).sum())
        if n < 2:
            raise ValueError("a Frechet distance needs two samples or more")
        shift = (self.sum - self.centred[gone].sum(0)) / n
        trace = (self.squares[~gone].sum() - n * (shift @ shift)) / (n - 1)
        if self.few:
            gram = self.gram[np.ix_(~gone, ~gone)]
            means = gram.mean(0)
            spectrum = (gram - means - means[:, None] + means.mean()) / (n - 1)
        else:
            rotated = self.rotated[gone]
            middle = shift @ self.to.root
            spectrum = (self.gram - rotated.T @ rotated - n * np.outer(middle, middle)) / (n - 1)
        return float(shift @ shift + trace + self.to.trace - 2 * _root_trace(spectrum))


def jackknife(value: float, left_out: Floats, n: int, floor: float | None = None) -> Estimate:
    """A value's interval from its values with each group left out (Student's t with groups - 1 degrees)."""
    groups = len(left_out)
    if groups < 2:
        raise ValueError("a jackknife needs two groups or more")
    error = math.sqrt((groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum()))
    half = _student(groups - 1) * error
    low = value - half if floor is None else max(floor, value - half)
    return Estimate(value, low, value + half, n, f"delete-a-group jackknife over images, {groups} groups")


def _student(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))
