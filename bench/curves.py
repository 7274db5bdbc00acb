r"""Whether two runs have one loss curve over their first steps, such as one by kernels and one by the reference's loop.

    rnn-lab fit --preset seed004/e1 --minutes 8 --out runs/kernels
    RNN_LAB_KERNELS=graph rnn-lab fit --preset seed004/e1 --steps 200 --out runs/loops
    python bench/curves.py runs/kernels runs/loops --steps 200 --json docs/benchmarks/NAME.json

Exit 1 where the curves part by more than tests/gpu/test_curves.py allows: a step of the first tenth by 1 % (fp32
0.1 %), the mean of the last quarter by 2 % (0.5 %). Where rounding grows within the first tenth, `--exact RUN`, the
second run again in fp32 for at least so many steps, tells by how much: then the first run may be off by twice of what
the second is. Exit 2 where that cannot be asked: the runs read other bytes, are configured in another way than how long
and by what they run, had other rates, or lack a step or a loss.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn

from asked import file
from rnn_lab.errors import CheckpointError
from rnn_lab.train.metrics import read_metrics

LIMITS = {"float32": (1e-3, 5e-3), "bfloat16": (1e-2, 2e-2)}
BESIDES = ("checkpoint", "eval", "loader", "log", "origins")
MAY_DIFFER = {"data.path", *(f"train.{key}" for key in ("device", "graph", "minutes", "steps", "tokens", "wavefront"))}
"""Sections and keys that no loss depends on; the data are compared by what is in them."""


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A run's result, what its curve depends on, and where it ran."""
    try:
        result = json.loads((run / "result.json").read_text())
        sections = tomllib.loads((run / "config.toml").read_text())
        env = json.loads((run / "env.json").read_text())
        found = {f"{name}.{k}": v for name in sections if name not in BESIDES for k, v in sections[name].items()}
        found = {key: value for key, value in found.items() if key not in MAY_DIFFER}
        found |= {"data": result["data"]["fingerprint"], "dtype": result["dtype"], "parameters": result["params"]}
        result = {key: result[key] for key in ("model", "params", "dtype", "backends", "graph")}
        return result, found, {key: env[key] for key in ("date", "packages", "gpu", "gpu_driver", "git")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        refuse(f"{run} is no finished run ({type(error).__name__}: {error})")


def curve(run: Path, steps: int) -> list[tuple[float, float]]:
    """Loss and rate of each of the first steps."""
    try:
        lines = [line for _, line in zip(range(steps), read_metrics(run / "metrics.jsonl"), strict=False)]
    except CheckpointError as error:
        refuse(str(error))
    if [line["step"] for line in lines] != list(range(1, steps + 1)):
        refuse(f"{run} does not have the steps 1 to {steps}")
    losses = [line["loss"] for line in lines]
    if not all(isinstance(loss, float) and 0 < loss < float("inf") for loss in losses):
        refuse(f"{run} has a step without a loss")
    return list(zip(losses, [line.get("lr") for line in lines], strict=True))


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What two runs are not configured alike in."""
    return [key for key in one | other if one.get(key) != other.get(key)]


def together(curves: list[list[tuple[float, float]]]) -> list[list[float]]:
    """The losses of two curves, whose rates have to be the same in every step."""
    pairs = list(zip(*curves, strict=True))
    if parted := next((k for k, ((_, mine), (_, other)) in enumerate(pairs, 1) if mine != other), None):
        refuse(f"the learning rates differ in step {parted}: give both runs one budget, or a schedule without one")
    return [[pair[i][0] for pair in pairs] for i in (0, 1)]


def apart(curves: list[list[float]], steps: int) -> float:
    """Largest relative difference in the first steps."""
    return max(abs(x / y - 1) for x, y in list(zip(*curves, strict=True))[:steps])


def refuse(why: str) -> NoReturn:
    """End with 2."""
    sys.stderr.write(f"error: {why}\n")
    sys.exit(2)


def main() -> None:
    """Print the curves side by side and what they part by."""
    parser = argparse.ArgumentParser(description="Two runs' loss curves over their first steps.")
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--exact", type=Path, help="the other run again in fp32, a tenth of the steps or more")
    parser.add_argument("--json", type=file)
    options = parser.parse_args()
    if options.steps < 10:
        parser.error("--steps: at least 10")
    runs = (options.one, options.other)
    if options.one.resolve() == options.other.resolve():
        refuse("that is one run")
    (a, a_set, _), (b, b_set, _) = found = [read(run) for run in runs]
    if differ := [f"{key}: {a_set.get(key)} and {b_set.get(key)}" for key in differing(a_set, b_set)]:
        refuse("the runs differ in more than how they computed: " + "; ".join(differ))
    if a["dtype"] not in LIMITS:
        refuse(f"no limits for {a['dtype']}")
    first, last = options.steps // 10, options.steps // 4
    told = [curve(run, options.steps) for run in runs]
    curves = together(told)
    early = apart(curves, first)
    late = abs(mean(curves[0][-last:]) / mean(curves[1][-last:]) - 1)
    limit, late_limit = LIMITS[a["dtype"]]
    off: list[float] | None = None
    if options.exact:
        exact, exact_set, env = read(options.exact)
        if differ := [key for key in differing(b_set, exact_set) if key not in ("dtype", "train.dtype")]:
            refuse(f"{options.exact} differs from {options.other} in more than its dtype: {', '.join(differ)}")
        if exact["dtype"] != "float32":
            refuse(f"{options.exact} ran in {exact['dtype']}, not in fp32")
        close = curve(options.exact, first)
        off = [apart(together([one[:first], close]), first) for one in told]
        found.append((exact, exact_set, env))
        curves.append([loss for loss, _ in close])
    same = late <= late_limit and (early <= limit if off is None else off[0] <= max(limit, 2 * off[1]))
    page = {
        "kind": "curves", "model": a["model"], "params": a["params"], "dtype": a["dtype"], "steps": options.steps,
        "early": early, "late": late, "limits": LIMITS[a["dtype"]], "off": off,
        "runs": [
            {"backends": result["backends"], "graph": result["graph"], "env": env, "loss": losses}
            for (result, _, env), losses in zip(found, curves, strict=True)
        ],
    }  # fmt: skip
    for result in (a, b):
        rows = ", ".join(f"{row['op']} {row['backend']}" for row in result["backends"])
        sys.stdout.write(f"{rows}; graph {result['graph']}\n")
    for k in (1, 2, 5, 10, 20, 50, 100, 150, 200, options.steps):
        if k <= options.steps:
            sys.stdout.write(f"step {k:5}  {curves[0][k - 1]:.4f}  {curves[1][k - 1]:.4f}\n")
    sys.stdout.write(f"first tenth: a step parts by {early:.2%} at most; mean of the last quarter: {late:.2%}\n")
    if off:
        sys.stdout.write(f"first tenth, from the run in fp32: {off[0]:.2%} and {off[1]:.2%}\n")
    if options.json:
        options.json.write_text(json.dumps(page, indent=1) + "\n")
    sys.exit(not same)


if __name__ == "__main__":
    main()
