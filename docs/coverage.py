"""How often the intervals of rnn_lab.stats cover, for docs/comparison.md: `python docs/coverage.py`."""

import sys

import numpy as np
from rnn_lab.stats import means_of_steps
from scipy import signal, stats

RUNS = 10_000
SERIES = {"0": (0.0, 0.0), "0.5": (0.5, 0.0), "0.8": (0.8, 0.0), "0.9": (0.9, 0.0), "0.95": (0.95, 0.0),
          "0.9 + white": (0.9, 1.0)}  # fmt: skip


def row(name: str, n: int) -> list[str]:
    """Coverage, false claims, windows left unjudged, and width, over windows of `n` steps whose true mean is zero."""
    phi, white = SERIES[name]
    random = np.random.default_rng(n)
    x = signal.lfilter([1], [1, -phi], random.standard_normal((RUNS, n + 400)), axis=1)[:, 400:]
    if white:
        x = x * np.sqrt(1 - phi**2) + white * random.standard_normal(x.shape)
    found = means_of_steps(x)
    half = stats.t.ppf(0.975, found["df"]) * found["se"]
    wrong = (np.abs(found["value"]) > half) & found["conclusive"]
    better = wrong & (found["value"] < 0)
    covered = np.abs(found["value"]) <= half
    shares = (covered, wrong, better, ~found["conclusive"])
    naive = np.abs(found["value"]) <= 1.96 * x.std(axis=1, ddof=1) / np.sqrt(n)
    return [name, str(n), *(f"{100 * share.mean():.1f} %" for share in (*shares, naive))]


def main() -> None:
    """Print the table."""
    headers = ("autocorrelation", "steps", "covered", "false claims", "false better", "unjudged", "s / sqrt(n) covers")
    lines = [headers, ["---"] * len(headers)]
    lines += [row(name, n) for name in SERIES for n in (100, 400, 1000, 4000)]
    for line in lines:
        sys.stdout.write("| " + " | ".join(line) + " |\n")


if __name__ == "__main__":
    main()
