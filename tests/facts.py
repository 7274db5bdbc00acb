"""What two runs of one configuration have in common, whatever machine or moment ran them."""

import json
from pathlib import Path

TIMED = {"seconds", "tokens_per_s", "flops_per_s", "memory_bytes", "mfu", "data_wait_frac", "step_ms", "elapsed_s"}
"""Figures of the clock and of the machine."""
TOLD = {"diag/D-LOADER"}
"""Diagnostics that are judged by them: a busy machine makes steps wait for batches."""


def facts(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl without what the clock decides."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMED | TOLD} for line in lines]
