"""What the lab itself costs: `python bench/run.py [--json FILE] [--only ROW] [--threads N]`.

Overhead only, never the merit of a model. Each row has a target; the header says when, where and with what it was
measured. The exit code is 0 whether targets are met or missed, 1 when something could not be measured.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure every row, print the table, write the file."""
    parser = argparse.ArgumentParser(description="What the lab itself costs.")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--only", metavar="ROW", action="append", help="only this row; may be repeated")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch; default: 1")
    options = parser.parse_args()
    for name in ("RNN_LAB_KERNELS", "RNN_LAB_LOAD_PLUGINS", "RNN_LAB_PLUGINS_DIR"):
        os.environ.pop(name, None)
    import torch

    torch.set_num_threads(options.threads)
    from rows import ROWS, Missing

    unknown = set(options.only or ()) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"unknown row {sorted(unknown)}; there are: {', '.join(row.name for row in ROWS)}")
    header = describe()
    say("\n".join(f"{name:<8} {value}" for name, value in header.items()) + "\n")
    say(f"{'what':<14}{'measured':<40}{'target':<22}verdict")
    found: list[dict[str, Any]] = []
    failed = False
    for row in ROWS:
        if options.only and row.name not in options.only:
            continue
        try:
            value, shown = row.measure()
            verdict = "met" if row.met(value) else "missed"
        except Missing as error:
            value, shown, verdict, failed = None, str(error), "not measured", True
        found.append({"name": row.name, "value": value, "shown": shown, "target": row.target, "verdict": verdict})
        say(f"{row.name:<14}{shown:<40}{row.target:<22}{verdict}")
    header["load at end"] = load()
    say(f"\nload at end: {header['load at end']}")
    if options.json:
        page = {"kind": "bench", "header": header, "rows": found}
        Path(options.json).write_text(json.dumps(page, indent=1) + "\n")
    return int(failed)


def describe() -> dict[str, str]:
    """When, where and with what."""
    import torch
    from rnn_lab.system.processor import cpu_name

    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "cpu": f"{cpu_name() or 'unknown'}, {len(os.sched_getaffinity(0))} cores",
        "load": load(),
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "commit": commit(),
    }


def load() -> str:
    """Processes that wanted to run in the last minute: above the number of cores, times are not to be trusted."""
    return f"{os.getloadavg()[0]:.1f}"


def commit() -> str:
    """Commit of the tree, with `+` where it has uncommitted changes."""
    git = shutil.which("git")
    if git is None:
        return "unknown"

    def ask(*args: str) -> str:
        done = subprocess.run([git, "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return (ask("rev-parse", "--short=10", "HEAD") or "unknown") + ("+" if ask("status", "--porcelain") else "")


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
