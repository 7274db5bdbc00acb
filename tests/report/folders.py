"""A small series whose answer is known: crafted runs that are whole, and every way in which a job can fail."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from compare.folders import curve, noise, write_run

STEPS = 400
OFFSETS = {"e61": 0.0, "e68": 0.002, "e1": 0.15, "gru": 0.3}
NOISE = {"e61": 3, "e68": 4, "e1": 2, "gru": 5}
SPEEDS = {"e61": 0.01, "e68": 0.02, "e1": 0.04, "gru": 0.005}
CERTIFICATE = {"embedding": 4096, "layers.in_proj": 45_904}


def complete(run: Path, **result: Any) -> Path:
    """Give a crafted run every figure that the trainer writes twice, so that its files agree."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        window = [other["loss"] for other in lines[max(0, line["step"] - 100) : line["step"]]]
        line["bpb"] = line["loss"] / math.log(2)
        line["last100"] = math.fsum(window) / 100 if len(window) == 100 else None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = json.loads((run / "result.json").read_text())
    last, train = lines[-1], lines[-1]["seconds"]
    per_step = known["tokens"] / known["steps"]
    known |= {
        "loss": last["loss"], "last100": last["last100"],
        "bpb": None if last["last100"] is None else last["last100"] / math.log(2),
        "val_loss": last["loss"] + 0.01, "val_bpb": (last["loss"] + 0.01) / math.log(2),
        "tokens_per_s": (known["steps"] - 1) * per_step / train, "peak_memory_bytes": 450_000_000,
        "certificate": {
            "target": 50_000, "params": known["params"], "deviation": 0.0, "counted": True, "breakdown": CERTIFICATE,
        },
        "clock": {"buckets": {"train": train, "warmup": 0.5}, "total": train + 0.5, "budget": "train"},
        **result,
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(known, indent=1) + "\n")
    env = {"command": ["rnn-lab", "fit", "--model", known["model"], "--out", run.name], "date": "2026-01-05T10:00:00"}
    (run / "env.json").write_text(json.dumps(json.loads((run / "env.json").read_text()) | env))
    return run


def write_job(series: Path, name: str, state: str, **job: Any) -> None:
    (series / "jobs").mkdir(exist_ok=True)
    (series / "jobs" / f"{name}.json").write_text(json.dumps({"name": name, "state": state, "attempts": [], **job}))


def write_series(path: Path, seeds: int = 2, **meta: Any) -> Path:
    """Four models, `seeds` seeds each, a crash, an OOM and a job that never began; published figures; a noise floor."""
    jobs = []
    for model, offset in OFFSETS.items():
        for seed in range(1, seeds + 1):
            name = f"{model}-s{seed}"
            loss = curve(STEPS, seed) + offset + noise(STEPS, 10 * seed + NOISE[model], scale=0.004)
            speed = SPEEDS[model]
            complete(write_run(path / "runs" / name, loss, model=model, seed=seed, step_seconds=speed))
            write_job(path, name, "done")
            jobs.append({"name": name, "label": model.upper(), "model": model, "seed": seed, "group": model})
    attempt = {"exit_code": -11, "seconds": 3.2, "reason": "killed by signal 11", "changes": None}
    write_job(path, "crash-s1", "failed", attempts=[attempt])
    smaller = {"train.grad_accum": [1, 2]}
    write_job(path, "big-s1", "oom", attempts=[attempt, attempt | {"reason": "out of memory", "changes": smaller}])
    for name in ("crash-s1", "big-s1", "late-s1"):
        jobs.append({"name": name, "label": f"<b>{name}|$x^", "model": "e88", "seed": 1, "group": name})
    external = [
        {"label": label, "document": "table.md", "loss": loss, "tokens_per_s": rate, "run": run, "caveat": "<i>old</i>"}
        for label, loss, rate, run in (
            ("E61", 1.35, 9e4, "E61"), ("E68", 1.37, 8e4, "E68"), ("E1", 1.33, 4e4, "E1"), ("Mamba2", 1.27, 7e4, None),
        )
    ]  # fmt: skip
    plan = {
        "protocol": "micro", "description": "A small series", "metric": "last100", "notes": ["Small."],
        "jobs": jobs, "external": external, "command": ["rnn-lab", "protocol", "run", "micro"],
        "noise": {"model": "e61", "n": 3, "sd": 0.002, "floor": 0.005}, **meta,
    }  # fmt: skip
    (path / "series.json").write_text(json.dumps(plan))
    return path


def copy(series: Path, to: Path) -> Path:
    return Path(shutil.copytree(series, to))


def losses(run: Path) -> np.ndarray:
    return np.array([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])
