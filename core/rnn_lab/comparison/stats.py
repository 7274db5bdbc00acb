"""Intervals and tests for losses: autocorrelated steps of one run, and seeds.

The mean of a window of steps. Steps are correlated, so the usual s / sqrt(n) is too small. We use the equal-weighted
cosine estimator of the long-run variance (Müller 2007; Lazarus, Lewis, Stock & Watson 2018): with x_t the n values less
their mean and linear trend,

    c_j = sqrt(2/n) sum_t x_t cos(pi j (t - 1/2) / n),        V = mean of c_j^2 over j = 2 .. v + 1,

and sqrt(V / n) is the standard error of the mean, referred to Student's t. A trend lives almost wholly in c_1, which is
left out. v is at most 8 and at most 0.4 n^(2/3); it is the largest whose bias stays below 15 % for a first-order
autoregression with the coefficient phi estimated from the window (the larger of two estimates: the first
autocorrelation, and the one implied by the integrated autocorrelation time of Geyer 1992, both corrected for bias). V
is divided by that bias, and v - 1 degrees of freedom pay for having chosen v. Where not even three frequencies are
left, the window is too short for its autocorrelation and nothing is concluded. docs/comparison.md shows how often the
intervals cover.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_lab.errors import ConfigError

LEVEL = 0.95
POWER = 0.8
MAX_FREQUENCIES, MIN_FREQUENCIES, MAX_BIAS = 8, 3, 0.15
MIN_WINDOW = 21
"""Fewer steps than this leave less than three frequencies, whatever their autocorrelation."""
_PHI_MAX = 0.995
ROUNDING = 1e-13
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, with its standard error.

    Attributes:
        value: the estimate.
        se: its standard error.
        df: degrees of freedom of Student's t.
        n: values that it rests on: steps, or seeds.
        conclusive: False where the values are too few for their autocorrelation, or seeds agree to the last digit; the
            interval then is no basis.
        n_eff: independent values that the steps are worth; None for seeds.
        slope: change per step of the value within the window; None for seeds.
    """

    value: float
    se: float
    df: float
    n: int
    conclusive: bool = True
    n_eff: float | None = None
    slope: float | None = None

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided interval that covers the true value in `level` of all repetitions."""
        half = t_quantile((1 + level) / 2, self.df) * self.se
        return self.value - half, self.value + half

    def p(self, reference: float = 0.0) -> float:
        """Two-sided p-value against `reference`."""
        if self.se == 0 and not self.conclusive:
            return 1.0
        if self.se == 0:
            return 1.0 if self.value == reference else 0.0
        return 2 * t_below(-abs(self.value - reference) / self.se, self.df)

    def smallest_detectable(self, level: float = LEVEL, power: float = POWER) -> float:
        """Difference that a comparison as noisy as this one finds with probability `power`."""
        return (t_quantile((1 + level) / 2, self.df) + t_quantile(power, self.df)) * self.se

    def below(self, margin: float, level: float = LEVEL) -> bool:
        """Whether the value is shown to lie below `margin`: non-inferiority, one-sided at (1 - level) / 2."""
        return self.conclusive and self.interval(level)[1] < margin

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference to an independent estimate; degrees of freedom by Welch and Satterthwaite."""
        variances = (self.se**2, other.se**2)
        spread = sum(v * v / one.df for v, one in zip(variances, (self, other), strict=True))
        return Estimate(
            value=self.value - other.value,
            se=math.sqrt(sum(variances)),
            df=sum(variances) ** 2 / spread if spread else min(self.df, other.df),
            n=min(self.n, other.n),
            conclusive=self.conclusive and other.conclusive,
            n_eff=_least(self.n_eff, other.n_eff),
        )


def mean_of_steps(values: ArrayLike) -> Estimate:
    """Mean of a window of consecutive steps, [n], with an error that counts their autocorrelation.

    Source: the module docstring. Assumes that what is left after a linear trend is stationary over the window.

    Raises:
        ConfigError: fewer than 21 values, or one is not finite.
    """
    x_1n = np.asarray(values, dtype=np.float64).reshape(1, -1)
    if x_1n.shape[1] < MIN_WINDOW:
        raise ConfigError(f"{x_1n.shape[1]} steps are too few for an interval: at least {MIN_WINDOW}")
    if not np.isfinite(x_1n).all():
        raise ConfigError("a loss in the window is not finite")
    many = means_of_steps(x_1n)
    return Estimate(
        value=float(many["value"][0]),
        se=float(many["se"][0]),
        df=float(many["df"][0]),
        n=x_1n.shape[1],
        conclusive=bool(many["conclusive"][0]),
        n_eff=float(many["n_eff"][0]),
        slope=float(many["slope"][0]),
    )


def means_of_steps(x_Rn: Floats) -> dict[str, NDArray[Any]]:
    """`mean_of_steps` of R windows at once, float64 [R, n]: value, se, df, conclusive, n_eff and slope, each [R]."""
    from scipy.fft import dct

    n = x_Rn.shape[1]
    value_R = x_Rn.mean(axis=1)
    time_n = np.arange(n) - (n - 1) / 2
    rest_Rn = x_Rn - value_R[:, None]
    slope_R = rest_Rn @ time_n / (time_n @ time_n)
    rest_Rn = rest_Rn - slope_R[:, None] * time_n
    # Rounding of the mean leaves crumbs in a window of equal values, which are no noise.
    rest_Rn[np.abs(rest_Rn).max(axis=1) <= ROUNDING * np.abs(x_Rn).max(axis=1)] = 0
    phi_R = _autoregression(rest_Rn)
    most = min(MAX_FREQUENCIES, int(0.4 * n ** (2 / 3)))
    angle_v = np.pi * np.arange(2, most + 2) / n
    # Spectrum of the autoregression at each frequency over that at zero; averages over the first 1, 2, ... of them.
    ratio_Rv = (1 - phi_R[:, None]) ** 2 / (1 - 2 * phi_R[:, None] * np.cos(angle_v) + phi_R[:, None] ** 2)
    kept_Rv = np.cumsum(ratio_Rv, axis=1) / np.arange(1, most + 1)
    usable_R = (1 - kept_Rv <= MAX_BIAS).sum(axis=1)
    v_R = np.maximum(usable_R, 1)
    row_R = np.arange(len(x_Rn))
    power_Rj = np.cumsum((dct(rest_Rn, type=2, axis=1) * math.sqrt(1 / (2 * n)))[:, 2 : most + 2] ** 2, axis=1)
    variance_R = power_Rj[row_R, v_R - 1] / v_R / kept_Rv[row_R, v_R - 1]
    return {
        "value": value_R,
        "se": np.sqrt(variance_R / n),
        "df": np.maximum(v_R - 1, 1),
        "conclusive": usable_R >= MIN_FREQUENCIES,
        "n_eff": n * (1 - phi_R) / (1 + phi_R),
        "slope": slope_R,
    }


def _autoregression(rest_Rn: Floats) -> Floats:
    """First-order coefficient [R] in [0, 0.995] that stands for all of the autocorrelation of detrended windows."""
    n = rest_Rn.shape[1]
    spectrum = np.abs(np.fft.rfft(rest_Rn, 2 * n)) ** 2
    cov_Rn = np.fft.irfft(spectrum, 2 * n)[:, :n]
    rho_Rn = cov_Rn / np.where(cov_Rn[:, :1] > 0, cov_Rn[:, :1], 1)
    first_R = rho_Rn[:, 1]
    # Mean and trend, both estimated, pull the first autocorrelation down by (1 + 5 phi) / n.
    direct_R = first_R + (1 + 5 * first_R) / n
    even = n - n % 2
    pair_Rm = rho_Rn[:, 0:even:2] + rho_Rn[:, 1:even:2]
    positive_Rm = np.cumprod(pair_Rm > 0, axis=1)
    tau_R = 2 * (np.minimum.accumulate(pair_Rm, axis=1) * positive_Rm).sum(axis=1) - 1
    tau_R = np.maximum(tau_R, 1)
    tau_R = tau_R / np.maximum(1 - 2 * tau_R / n, 0.2)
    phi_R: Floats = np.clip(np.maximum(direct_R, (tau_R - 1) / (tau_R + 1)), 0, _PHI_MAX)
    return np.where(cov_Rn[:, 0] > 0, phi_R, 0.0)


def mean_of_seeds(values: Sequence[float]) -> Estimate:
    """Mean of independent runs, or of their paired differences: Student's t.

    Values that agree to the last digit show no spread of seeds at all, so nothing is concluded from them.

    Raises:
        ConfigError: fewer than two values.
    """
    if len(values) < 2:
        raise ConfigError("one run says nothing about how runs differ: at least two seeds")
    sd = float(np.std(values, ddof=1))
    mean = math.fsum(values) / len(values)
    if sd <= ROUNDING * max(map(abs, values)):
        return Estimate(mean, 0.0, len(values) - 1, len(values), conclusive=False)
    return Estimate(mean, sd / math.sqrt(len(values)), len(values) - 1, len(values))


@dataclass(frozen=True)
class OneSample:
    """Runs against a published figure: mean, sample SD, Student's t and its p-value.

    Both are None where the runs agree to the last digit: that shows no spread, so nothing is tested.
    """

    mean: float
    sd: float
    n: int
    t: float | None
    p: float | None
    alternative: Literal["less", "greater", "two-sided"]


def against_figure(
    values: Sequence[float], figure: float, alternative: Literal["less", "greater", "two-sided"] = "two-sided"
) -> OneSample:
    """One-sample t-test of runs against a `figure` that is taken as exact.

    `less` asks whether the runs' mean is below it, which is how records in speed runs are claimed.

    Raises:
        ConfigError: fewer than two values.
    """
    mean = mean_of_seeds(values)
    gap = mean.value - figure
    if not mean.conclusive:
        return OneSample(mean.value, 0.0, mean.n, None, None, alternative)
    t = gap / mean.se
    lower = t_below(t, mean.df)
    p = {"less": lower, "greater": t_below(-t, mean.df), "two-sided": 2 * min(lower, t_below(-t, mean.df))}
    return OneSample(mean.value, mean.se * math.sqrt(mean.n), mean.n, t, p[alternative], alternative)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): below alpha wherever all of a family's claims hold at once at level alpha."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def t_quantile(probability: float, df: float) -> float:
    """Value that Student's t with `df` degrees of freedom stays below with `probability`."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def t_below(value: float, df: float) -> float:
    """Probability that Student's t with `df` degrees of freedom is below `value`."""
    from scipy.special import stdtr

    return float(stdtr(df, value))


def _least(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else min(a, b)
