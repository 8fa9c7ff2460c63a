from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import t

from ditbench.statistics import (
    Estimate,
    FrechetTo,
    bootstrap_mean,
    frechet,
    jackknife,
    paired_mean,
    paired_share,
    quantile,
    wilson,
)


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def gaussians(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    return rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) + rng.standard_normal(width)


def frechet_by_sqrtm(one: np.ndarray, other: np.ndarray) -> float:
    shift = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    return float(shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real))


def test_wilson_is_the_textbook_interval_and_survives_all_and_none() -> None:
    # 8 of 10, by hand: centre (0.8 + 0.19207) / 1.38415 = 0.7167, half width 0.2266.
    estimate = wilson([1] * 8 + [0] * 2)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.4902, 0.8, 0.9433), abs=1e-4)
    assert wilson([1] * 10).low == pytest.approx(0.7225, abs=1e-4)
    assert wilson([1] * 10).high == 1.0
    assert wilson([0] * 10).low == 0.0


def test_intervals_of_means_and_shares_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    runs = 300
    means = sum(covers(bootstrap_mean(rng.exponential(size=80), seed=i, draws=400), 1.0) for i in range(runs))
    shares = sum(covers(wilson(rng.random(80) < 0.9), 0.9) for _ in range(runs))
    # 95 % of 300 with the slack of three standard deviations, and of a skewed distribution for the mean.
    assert 0.88 <= means / runs <= 0.99
    assert 0.91 <= shares / runs <= 0.99


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_intervals_of_quantiles_cover_the_truth_at_least_as_often_as_they_say(share: float) -> None:
    rng = np.random.default_rng(1)
    truth = -np.log(1 - share)  # of the exponential distribution
    found = [quantile(rng.exponential(size=200), share) for _ in range(400)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.94 <= covered <= 0.99, covered
    few = quantile([3.0, 1.0, 2.0], share)
    assert (few.low, few.high, few.n) == (1.0, 3.0, 3)


def test_pairing_sees_a_small_difference_that_separate_intervals_hide() -> None:
    rng = np.random.default_rng(1)
    full = rng.normal(0, 1, 200)
    arm = full - 0.05 + rng.normal(0, 0.1, 200)
    assert covers(paired_mean(arm, full), -0.05)
    assert paired_mean(arm, full).excludes_zero()
    assert bootstrap_mean(arm).low < bootstrap_mean(full).value < bootstrap_mean(arm).high


def test_paired_shares_cover_and_agreement_everywhere_is_no_proof_of_equality() -> None:
    rng = np.random.default_rng(2)
    runs, hits = 400, 0
    for _ in range(runs):
        full = rng.random(100) < 0.9
        arm = np.where(rng.random(100) < 0.05, rng.random(100) < 0.5, full)
        # Five of a hundred are redrawn at 0.5: the share falls by 0.05 x (0.9 - 0.5).
        hits += covers(paired_share(arm, full), -0.02)
    assert 0.93 <= hits / runs <= 1.0
    same = paired_share(np.ones(50), np.ones(50))
    assert same.value == 0 and same.low < 0 < same.high


def test_bootstraps_are_seeded_and_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=50)
    whole = bootstrap_mean(values, seed=4)
    assert whole == bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)
    monkeypatch.setattr("ditbench.statistics.CHUNK", 50 * 7)
    assert whole == bootstrap_mean(values, seed=4)


@pytest.mark.parametrize("empty", [wilson, bootstrap_mean])
def test_no_samples_are_refused(empty: object) -> None:
    with pytest.raises(ValueError, match="no samples"):
        empty([])  # type: ignore[operator]


def test_frechet_agrees_with_sqrtm_and_with_hand_work() -> None:
    rng = np.random.default_rng(6)
    one, other = gaussians(rng, 400, 24), gaussians(rng, 300, 24)
    ours = frechet(one.mean(0), np.cov(one, rowvar=False), other.mean(0), np.cov(other, rowvar=False))
    assert ours == pytest.approx(frechet_by_sqrtm(one, other), rel=1e-9)
    # Diagonal covariances: (1 - 2)^2 + (3 - 1)^2 of the roots, and the means 3, 4 apart.
    assert frechet([0, 0], np.diag([1, 9]), [3, 4], np.diag([4, 1])) == pytest.approx(25 + 1 + 4)


@pytest.mark.parametrize("n", [400, 25, 20, 7])
def test_frechet_of_features_agrees_with_that_of_moments_also_with_few_samples(n: int) -> None:
    rng = np.random.default_rng(n)
    references, features = gaussians(rng, 500, 20), gaussians(rng, n, 20)
    moments = (features.mean(0), np.cov(features, rowvar=False), references.mean(0), np.cov(references, rowvar=False))
    assert FrechetTo(references)(features) == pytest.approx(frechet(*moments), rel=1e-6)


@pytest.mark.parametrize("n", [60, 12])
def test_leaving_out_a_group_is_the_distance_without_it(n: int) -> None:
    rng = np.random.default_rng(8)
    to, features = FrechetTo(gaussians(rng, 100, 15)), gaussians(rng, n, 15)
    value, left_out = to.leaving_out(features, groups=4)
    direct = [to(features[np.arange(n) % 4 != group]) for group in range(4)]
    assert value == pytest.approx(to(features))
    assert left_out == pytest.approx(direct, rel=1e-6)


def test_the_jackknife_of_a_mean_is_the_textbook_interval() -> None:
    values = np.random.default_rng(9).normal(size=12)
    left_out = np.array([np.delete(values, i).mean() for i in range(12)])
    estimate = jackknife(values.mean(), left_out, 12)
    half = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_frechet_intervals_cover_the_expected_distance_of_that_many_samples() -> None:
    rng = np.random.default_rng(10)
    to = FrechetTo(rng.standard_normal((2000, 6)))

    def draw() -> np.ndarray:
        return rng.standard_normal((150, 6)) * 1.3 + 0.3

    expected = np.mean([to(draw()) for _ in range(400)])
    runs = 150
    hits = sum(covers(jackknife(*to.leaving_out(draw(), 30), 150), expected) for _ in range(runs))
    assert 0.88 <= hits / runs <= 1.0


def test_paired_frechet_differences_are_surer_than_separate_ones() -> None:
    rng = np.random.default_rng(11)
    to, full = FrechetTo(rng.standard_normal((1000, 6))), rng.standard_normal((200, 6)) * 1.5
    arm = full + 0.1 * rng.standard_normal((200, 6)) + 0.1
    (a, a_out), (b, b_out) = to.leaving_out(arm), to.leaving_out(full)
    paired = jackknife(a - b, a_out - b_out, 200)
    separate = jackknife(a, a_out, 200)
    assert paired.high - paired.low < 0.5 * (separate.high - separate.low)
