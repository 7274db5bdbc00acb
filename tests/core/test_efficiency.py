"""E_data against curves whose answer is known."""

import numpy as np
import pytest
from rnn_lab.comparison.efficiency import as_loss, efficiency, exponent, judge, smoothed
from rnn_lab.errors import ConfigError

K = np.arange(1, 2001, dtype=float)


def test_a_curve_that_needs_less_data_by_a_known_factor():
    base = 3 * K**-0.2
    for gain in (1.2, 1.0, 0.8):
        # Windows reach back by 100 steps, which the factor stretches too: hence the tolerance.
        assert efficiency(base, K, 3 * (gain * K) ** -0.2, K) == pytest.approx(gain, rel=0.01)
        assert efficiency(base, K, 3 * (gain * K) ** -0.2, K, window=1) == pytest.approx(gain, rel=1e-5)


def test_time_in_place_of_steps():
    base = 3 * K**-0.2
    assert efficiency(base, 0.1 * K, base, 0.2 * K) == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="diverged"):
        efficiency(base, K, np.full(2000, np.nan), K)


def test_interpolates_between_logged_points():
    assert efficiency([4, 2], [10, 20], [4, 1], [10, 20], window=1) == pytest.approx(20 / (10 + 10 * 2 / 3))
    assert efficiency([4, 2], [10, 20], [4, 3], [10, 20], window=1) == pytest.approx(15 / 20)
    assert smoothed([1, 2, 3, 4], 2).tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("gains", "verdict", "rider"),
    [
        ([1.3, 1.31, 1.32], "verified", ""),
        ([1.04, 1.05, 1.06], "refuted", "some gain"),
        ([0.9, 0.91, 0.92], "refuted", "harm"),
        ([0.99, 1.0, 1.01], "refuted", ""),
        ([1.0, 1.2, 1.4], "inconclusive", ""),
    ],
)
def test_verdicts(gains, verdict, rider):
    found = judge(gains)
    assert (found.verdict, found.rider) == (verdict, rider)
    assert found.lower < found.value < found.upper and found.n == 3


def test_bounds_are_one_sided():
    found = judge([np.exp(0.0), np.exp(0.1), np.exp(0.2)])
    # Student's t of two degrees of freedom at 0.95; the two-sided 4.303 would be wider.
    assert np.log([found.lower, found.upper]) == pytest.approx(0.1 + 2.919986 * 0.1 / 3**0.5 * np.array([-1, 1]))


def test_one_seed_gives_no_verdict():
    with pytest.raises(ConfigError, match="two seeds"):
        judge([1.3])


def test_the_slope_is_that_of_the_last_half():
    bent = np.where(K <= 1000, 3 * K**-0.5, 3 * 1000**-0.4 * K**-0.1)
    assert exponent(bent, K, window=1) == pytest.approx(0.1)


def test_what_a_gain_is_worth_in_loss():
    assert exponent(3 * K**-0.037, K, window=1) == pytest.approx(0.037)
    # The two figures that the seeds' runs at 16.4 and 131 MB imply for 15 and 20 %.
    assert [1.4742 * as_loss(e, 0.037) for e in (1.15, 1.2)] == pytest.approx([0.0076, 0.0099], abs=1e-4)
