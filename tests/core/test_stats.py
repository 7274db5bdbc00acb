"""Intervals cover, tests give the published figures, and short series stay unjudged."""

import numpy as np
import pytest
from rnn_lab.comparison import stats
from rnn_lab.errors import ConfigError
from scipy import signal
from scipy import stats as reference

RUNS = 3000
# Thirteen validation losses that a speed run published with their mean, SD and p against 3.28.
PUBLISHED = [3.2791, 3.2773, 3.2783, 3.2775, 3.2781, 3.2775, 3.2793, 3.2772, 3.2769, 3.2775, 3.2806, 3.2779, 3.2816]


def autoregression(phi, n, seed, runs=RUNS):
    noise = np.random.default_rng(seed).standard_normal((runs, n + 200))
    return signal.lfilter([1], [1, -phi], noise, axis=1)[:, 200:]


def judged(x_Rn):
    found = stats.means_of_steps(x_Rn)
    half = reference.t.ppf(0.975, found["df"]) * found["se"]
    return found, half


@pytest.mark.parametrize("n", [400, 1000, 2000])
@pytest.mark.parametrize("phi", [0, 0.5, 0.8, 0.9])
def test_intervals_cover_and_nothing_is_better_by_chance(phi, n):
    found, half = judged(autoregression(phi, n, seed=n + int(100 * phi)))
    covered = np.abs(found["value"]) <= half
    better = (found["value"] + half < 0) & found["conclusive"]
    worse = (found["value"] - half > 0) & found["conclusive"]
    assert 0.93 < covered.mean() < 0.97
    assert better.mean() < 0.05 and worse.mean() < 0.05 and (better | worse).mean() < 0.06
    assert found["conclusive"].mean() > 0.95


@pytest.mark.parametrize("n", [100, 200])
def test_a_window_of_last100_covers_where_steps_are_mildly_correlated(n):
    for phi in (0, 0.5):
        found, half = judged(autoregression(phi, n, seed=1))
        assert 0.93 < (np.abs(found["value"]) <= half).mean() < 0.97 and found["conclusive"].all(where=phi == 0)


@pytest.mark.parametrize(("phi", "n", "share"), [(0.9, 100, 0.8), (0.95, 200, 0.8), (0.98, 400, 0.8)])
def test_series_too_short_for_their_autocorrelation_stay_unjudged(phi, n, share):
    found, half = judged(autoregression(phi, n, seed=3))
    wrong = (np.abs(found["value"]) > half) & found["conclusive"]
    assert (~found["conclusive"]).mean() > share and wrong.mean() < 0.05


def test_a_trend_neither_widens_nor_shifts_the_interval():
    flat = autoregression(0.3, 400, seed=5, runs=50)
    steep = flat + np.linspace(40, -40, 400)
    one, other = stats.means_of_steps(flat), stats.means_of_steps(steep)
    for key in ("value", "se", "df", "n_eff"):
        assert other[key] == pytest.approx(one[key], abs=1e-9), key
    assert other["slope"] - one["slope"] == pytest.approx(-80 / 399)


def test_negative_autocorrelation_is_not_taken_for_noise():
    noise = np.random.default_rng(0).standard_normal((RUNS, 401))
    found, half = judged(noise[:, 1:] - 0.6 * noise[:, :-1])
    assert 0.93 < (np.abs(found["value"]) <= half).mean() < 0.97
    assert half.mean() < 0.6 * 1.96 * np.sqrt(1.36 / 400)


def test_effective_size_and_one_window_agree_with_many():
    x_Rn = autoregression(0.8, 2000, seed=7, runs=20)
    assert np.median(stats.means_of_steps(x_Rn)["n_eff"]) == pytest.approx(2000 / 9, rel=0.1)
    one = stats.mean_of_steps(x_Rn[0])
    many = stats.means_of_steps(x_Rn)
    assert one.value == pytest.approx(x_Rn[0].mean()) and one.se == pytest.approx(many["se"][0]) and one.n == 2000


def test_equal_values_have_no_error():
    same = stats.mean_of_steps(np.full(100, 0.1) + 0.2)
    assert same.se == 0 and same.value == pytest.approx(0.3) and same.conclusive
    assert same.p() == 0 and stats.mean_of_steps(np.zeros(100)).p() == 1


def test_seeds_that_agree_to_the_last_digit_show_nothing():
    for values in ([-0.01, -0.01], [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0]):
        same = stats.mean_of_seeds(values)
        assert not same.conclusive and same.p() == 1 and not same.below(1.0)
    assert not stats.mean_of_seeds([1.0, 2.0]).minus(same).conclusive
    test = stats.against_figure([3.27, 3.27], 3.28, "less")
    assert (test.mean, test.t, test.p) == (3.27, None, None)


@pytest.mark.parametrize("values", [np.zeros(stats.MIN_WINDOW - 1), [1.0] * 50 + [np.nan]])
def test_unusable_windows_are_refused(values):
    with pytest.raises(ConfigError):
        stats.mean_of_steps(values)


def test_the_published_list_gives_the_published_figures():
    test = stats.against_figure(PUBLISHED, 3.28, "less")
    assert (test.mean, test.sd) == pytest.approx((3.2783692308, 0.0014156180), abs=5e-11)
    assert test.p == pytest.approx(0.00066906, abs=5e-9) and test.n == 13
    assert test.p == pytest.approx(reference.ttest_1samp(PUBLISHED, 3.28, alternative="less").pvalue, rel=1e-9)
    assert stats.against_figure(PUBLISHED, 3.28).p == pytest.approx(2 * test.p)
    assert stats.against_figure(PUBLISHED, 3.28, "greater").p == pytest.approx(1 - test.p)


def test_seeds_agree_with_scipy():
    a, b = [1.2, 1.5, 1.1, 1.4], [1.0, 1.2, 1.05]
    mean = stats.mean_of_seeds(a)
    assert mean.interval() == pytest.approx(reference.ttest_1samp(a, 0).confidence_interval(0.95))
    welch = mean.minus(stats.mean_of_seeds(b))
    scipy = reference.ttest_ind(a, b, equal_var=False)
    assert welch.p() == pytest.approx(scipy.pvalue) and welch.df == pytest.approx(scipy.df)
    assert welch.interval(0.9) == pytest.approx(scipy.confidence_interval(0.9))
    with pytest.raises(ConfigError, match="two seeds"):
        stats.mean_of_seeds([1.0])


def test_the_smallest_detectable_difference_is_detected_four_times_in_five():
    n, runs = 12, 20000
    x = np.random.default_rng(1).standard_normal((runs, n))
    known = stats.Estimate(0.0, 1 / np.sqrt(n), n - 1, n)
    x += known.smallest_detectable()
    se = x.std(axis=1, ddof=1) / np.sqrt(n)
    assert (x.mean(axis=1) > reference.t.ppf(0.975, n - 1) * se).mean() == pytest.approx(0.8, abs=0.02)


def test_non_inferiority_needs_the_whole_interval_below_the_margin():
    gap = stats.Estimate(0.01, 0.005, 20, 21)
    _, high = gap.interval()
    assert gap.below(high + 1e-6) and not gap.below(high - 1e-6)
    assert not stats.Estimate(0.01, 0.005, 20, 21, conclusive=False).below(1.0)


def test_holm_adjusts_step_by_step():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0] and stats.holm([]) == []


@pytest.mark.parametrize("phi", [0, 0.5, 0.9])
def test_differences_of_independent_windows_cover(phi):
    a, b = (stats.means_of_steps(autoregression(phi, 400, seed, runs=1000) * seed) for seed in (1, 3))
    covered = 0
    for k in range(1000):
        one, other = (stats.Estimate(x["value"][k], x["se"][k], x["df"][k], 400) for x in (a, b))
        low, high = one.minus(other).interval()
        covered += low <= 0 <= high
    assert 930 < covered < 975
