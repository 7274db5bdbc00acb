"""How often the intervals of rnn_lab.comparison.stats cover, for docs/comparison.md: `python docs/coverage.py`."""

import sys
from collections.abc import Iterator

import numpy as np
from rnn_lab.comparison.stats import means_of_steps
from scipy import signal, stats

RUNS, PART = 10_000, 1_000
SERIES = {"0": (0.0, 0.0), "0.5": (0.5, 0.0), "0.8": (0.8, 0.0), "0.9": (0.9, 0.0), "0.95": (0.95, 0.0),
          "0.9 + white": (0.9, 1.0)}  # fmt: skip


def windows(name: str, n: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """RUNS series of `n` steps whose true mean is zero, [PART, n] at a time."""
    phi, white = SERIES[name]
    for _ in range(RUNS // PART):
        x = signal.lfilter([1], [1, -phi], random.standard_normal((PART, n + 400)), axis=1)[:, 400:]
        yield x * np.sqrt(1 - phi**2) + white * random.standard_normal(x.shape)


def row(name: str, n: int) -> list[str]:
    """Shares of windows: covered, claimed wrongly, called better wrongly, left unjudged; and covered by s / sqrt(n)."""
    counts = np.zeros(5)
    for x in windows(name, n, np.random.default_rng(n)):
        found = means_of_steps(x)
        half = stats.t.ppf(0.975, found["df"]) * found["se"]
        off = np.abs(found["value"])
        wrong = (off > half) & found["conclusive"]
        naive = off <= 1.96 * x.std(axis=1, ddof=1) / np.sqrt(n)
        shares = (off <= half, wrong, wrong & (found["value"] < 0), ~found["conclusive"], naive)
        counts += [share.sum() for share in shares]
    return [name, str(n), *(f"{100 * count / RUNS:.1f} %" for count in counts)]


def main() -> None:
    """Print the table."""
    headers = ("autocorrelation", "steps", "covered", "false claims", "false better", "unjudged", "s / sqrt(n) covers")
    lines = [headers, ["---"] * len(headers)]
    lines += [row(name, n) for name in SERIES for n in (100, 400, 1000, 4000)]
    for line in lines:
        sys.stdout.write("| " + " | ".join(line) + " |\n")


if __name__ == "__main__":
    main()
