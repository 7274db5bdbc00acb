r"""Whether two runs have one loss curve over their first steps, such as one by kernels and one by the reference's loop.

    rnn-lab fit --preset seed004/e1 --minutes 8 --out runs/kernels
    RNN_LAB_KERNELS=graph rnn-lab fit --preset seed004/e1 --steps 200 --out runs/loops
    python bench/curves.py runs/kernels runs/loops --steps 200 --json docs/benchmarks/NAME.json

Both have to have read the same bytes with the same seed, batch and rate. Exit 1 where the curves part by more than
tests/gpu/test_curves.py allows: a step of the first tenth by 1 % (fp32 0.1 %), the mean of the last quarter by 2 %
(0.5 %).
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path
from statistics import mean
from typing import Any

from rnn_lab.train.metrics import read_metrics

LIMITS = {"float32": (1e-3, 5e-3), "bfloat16": (1e-2, 2e-2)}
SAME = ("model", "params", "dtype", "seed")
CONFIG = ("batch_size", "seq_len", "carry_state", "grad_accum", "seed")


def read(run: Path) -> dict[str, Any]:
    """The result of a run."""
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def config(run: Path) -> dict[str, Any]:
    """Its sections, every value decided."""
    return tomllib.loads((run / "config.toml").read_text())


def machine(run: Path) -> dict[str, Any]:
    """Where it ran, and by what."""
    env = json.loads((run / "env.json").read_text())
    return {key: env[key] for key in ("date", "packages", "gpu", "gpu_driver", "git")}


def differences(one: Path, other: Path) -> list[str]:
    """What makes the curves no answer to the question."""
    a, b = read(one), read(other)
    found = [f"{key}: {a[key]} and {b[key]}" for key in SAME if a[key] != b[key]]
    if a["data"]["fingerprint"] != b["data"]["fingerprint"]:
        found.append("other data")
    ca, cb = config(one), config(other)
    found += [
        f"train.{k}: {ca['train'].get(k)} and {cb['train'].get(k)}"
        for k in CONFIG
        if ca["train"].get(k) != cb["train"].get(k)
    ]
    return found + [f"[{s}] differs" for s in ("optimizer", "schedule", "objective") if ca.get(s) != cb.get(s)]


def main() -> None:
    """Print the curves side by side and what they part by."""
    parser = argparse.ArgumentParser(description="Two runs' loss curves over their first steps.")
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if found := differences(options.one, options.other):
        raise SystemExit("the runs differ in more than how they computed: " + "; ".join(found))
    curves = [
        [line["loss"] for line in read_metrics(run / "metrics.jsonl")][: options.steps]
        for run in (options.one, options.other)
    ]
    if min(map(len, curves)) < max(10, options.steps):
        raise SystemExit(
            f"{options.steps} steps, at least 10, are asked for; the runs have {len(curves[0])} and {len(curves[1])}"
        )
    results = [read(run) for run in (options.one, options.other)]
    early = max(abs(a / b - 1) for a, b in zip(*(curve[: options.steps // 10] for curve in curves), strict=True))
    late = abs(mean(curves[0][-options.steps // 4 :]) / mean(curves[1][-options.steps // 4 :]) - 1)
    limits = LIMITS[results[0]["dtype"]]
    page = {
        "kind": "curves", "model": results[0]["model"], "params": results[0]["params"], "dtype": results[0]["dtype"],
        "device": results[0]["device"], "steps": options.steps, "early": early, "late": late, "limits": limits,
        "runs": [
            {"backends": r["backends"], "graph": r["graph"], "env": machine(run), "loss": c}
            for run, r, c in zip((options.one, options.other), results, curves, strict=True)
        ],
    }  # fmt: skip
    for run in page["runs"]:
        rows = ", ".join(f"{row['op']} {row['backend']}" for row in run["backends"])
        sys.stdout.write(f"{rows}; graph {run['graph']}\n")
    for k in sorted({1, 2, 5, 10, 20, 50, 100, 150, 200, options.steps}):
        if k <= options.steps:
            sys.stdout.write(f"step {k:5}  {curves[0][k - 1]:.4f}  {curves[1][k - 1]:.4f}\n")
    sys.stdout.write(f"first tenth: a step parts by {early:.2%} at most; mean of the last quarter: {late:.2%}\n")
    if options.json:
        options.json.write_text(json.dumps(page, indent=1) + "\n")
    sys.exit(early > limits[0] or late > limits[1])


if __name__ == "__main__":
    main()
