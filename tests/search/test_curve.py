"""The estimator is unbiased, and the band keeps its level."""

import itertools
import math

import numpy as np
import pytest
from rnn_lab.errors import ConfigError
from rnn_lab.search.curve import UNIFORM, band, curve_of, expected_best, median_best, weights
from rnn_lab.search.trials import TrialRow

SEARCH = {"model": "e61", "metric": "val_loss", "sampler": "random"}


def test_the_mean_is_that_of_every_subset():
    losses = np.random.default_rng(0).normal(size=8)
    for k in range(1, 9):
        every = [min(subset) for subset in itertools.combinations(losses, k)]
        assert expected_best(losses)[k - 1] == pytest.approx(np.mean(every), abs=1e-12)
        assert median_best(losses)[k - 1] == pytest.approx(np.quantile(every, 0.5, method="inverted_cdf"))


@pytest.mark.parametrize("n", [1, 2, 64, 500])
def test_weights_sum_to_one(n):
    assert weights(n).sum(axis=0) == pytest.approx(np.ones(n), abs=1e-9)
    assert (weights(n) >= 0).all()


def test_ends_are_the_mean_and_the_best():
    losses = [3.0, 1.0, 2.0, 2.0]
    assert expected_best(losses)[0] == 2.0 and expected_best(losses)[-1] == 1.0
    assert (np.diff(expected_best(losses)) <= 0).all()


def test_unbiased_where_drawing_with_replacement_is_not():
    """On exponential losses the best of k has mean 1 / k exactly."""
    rng = np.random.default_rng(1)
    n, k, repeats = 10, 5, 4000
    draws = rng.exponential(size=(repeats, n))
    ours = np.array([expected_best(row)[k - 1] for row in draws])
    assert abs(ours.mean() - 1 / k) < 4 * ours.std() / math.sqrt(repeats)
    rank = np.arange(n)
    with_replacement = ((1 - rank / n) ** k - (1 - (rank + 1) / n) ** k) * np.sort(draws, axis=1)
    biased = with_replacement.sum(axis=1)
    assert abs(biased.mean() - 1 / k) > 4 * biased.std() / math.sqrt(repeats)


@pytest.mark.parametrize("n", [16, 48])
def test_the_band_covers(n):
    """The true median of the best of k is the quantile at 1 - 2^(-1/k); at least 95 % of intervals hold it."""
    rng = np.random.default_rng(2)
    repeats = 400
    truth = -np.log(2 ** (-1 / np.arange(1, n + 1)))  # quantiles of the exponential distribution
    covered = np.zeros(n)
    resampled = 0
    for _ in range(repeats):
        losses = rng.exponential(size=n)
        low, high = band(losses)
        covered += (np.nan_to_num(low, nan=-np.inf) <= truth) & (truth <= np.nan_to_num(high, nan=np.inf))
        # What a percentile bootstrap of the mean does at k = n / 2, for the record.
        again = np.sort(rng.choice(losses, size=(200, n)), axis=1) @ weights(n)[:, n // 2 - 1]
        resampled += np.percentile(again, 2.5) <= 1 / (n // 2) <= np.percentile(again, 97.5)
    assert (covered / repeats).min() > 0.93
    assert resampled / repeats < 0.9


def test_the_band_has_no_lower_end_where_none_can_be():
    low, high = band(np.random.default_rng(3).normal(size=32))
    first_without = int(np.argmax(np.isnan(low))) + 1
    assert first_without == math.floor(32 / (math.log(0.025) / -math.log(2))) + 1
    assert np.isfinite(high).all()


def rows(*outcomes):
    return [
        TrialRow(i, outcome, value=value if outcome == "ok" else None, reported={"9": 4.0, "10": 3.0}, default=i == 0)
        for i, (outcome, value) in enumerate(outcomes)
    ]


def test_what_counts_in_a_curve():
    every = rows(("ok", 1.0), ("ok", 2.0), ("pruned", None), ("diverged", None), ("failed", None), ("infeasible", None))
    curve = curve_of("e61", SEARCH, every)
    assert curve.n == 3, "the default, the failed and the infeasible trial are left out"
    assert curve.expected[0] == pytest.approx((2.0 + 3.0 + UNIFORM) / 3)
    assert curve.so_far.tolist() == [2.0, 2.0, 2.0]
    noted = " ".join(curve.notes)
    assert all(word in noted for word in ("1 pruned", "1 trials that diverged", "1 trials that failed"))
    assert "independent" not in noted
    assert "random" in curve_of("e61", {**SEARCH, "sampler": "tpe"}, every).notes[-1]


def test_a_curve_needs_trials():
    with pytest.raises(ConfigError, match="no trial has ended"):
        curve_of("e61", SEARCH, rows(("ok", 1.0)))
    with pytest.raises(ConfigError, match="finite"):
        expected_best([1.0, math.nan])


def test_a_trial_that_diverged_is_worth_what_a_model_knows_that_knows_nothing():
    assert pytest.approx(5.545177444479562) == UNIFORM
