"""Run folders as `fit` writes them, with losses that a test chooses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from rnn_lab.comparison.pairing import replayed

FINGERPRINT, BYTES, BATCH, LENGTH = "ab" * 32, 100_000, 4, 16


def noise(n: int, seed: int, phi: float = 0.0, scale: float = 0.01) -> np.ndarray:
    """AR(1) noise, [n], of standard deviation `scale` / sqrt(1 - phi^2)."""
    drawn, out = np.random.default_rng(seed).standard_normal(n + 100) * scale, np.zeros(n + 100)
    for k in range(1, n + 100):
        out[k] = phi * out[k - 1] + drawn[k]
    return out[100:]


def curve(n: int, seed: int = 0) -> np.ndarray:
    """A falling loss, [n], with the noise of the batches that every model meets alike."""
    return 2 + 2 / np.sqrt(1 + np.arange(n) / 50) + noise(n, 1000 + seed, scale=0.05)


def last100(loss: Any, step: int) -> float | None:
    """Mean loss of the hundred steps up to `step`."""
    return math.fsum(float(value) for value in loss[step - 100 : step]) / 100 if step >= 100 else None


def write_run(
    path: Path, loss: Any, *, model: str = "e61", seed: int = 1, step_seconds: float = 0.01, step_flops: int = 1000,
    params: int = 50_000, status: str = "ok", train: dict[str, Any] | None = None, result: dict[str, Any] | None = None,
    env: dict[str, Any] | None = None, optimizer: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A finished run with the given losses, [steps]."""
    path.mkdir(parents=True)
    section = {"batch_size": BATCH, "seq_len": LENGTH, "carry_state": False, "seed": seed, **(train or {})}
    tables = {"model": {"name": model, "dim": 16}, "train": section, "optimizer": {"lr": 3e-4, **(optimizer or {})}}
    (path / "config.toml").write_text(tomli_w.dumps(tables))
    tokens = section["batch_size"] * section["seq_len"]
    lines = [
        {"step": k, "tokens": k * tokens, "flops": k * step_flops, "seconds": (k - 1) * step_seconds,
         "loss": float(value), "bpb": float(value) / math.log(2), "last100": last100(loss, k), "grad_norm": 1.0}
        for k, value in enumerate(loss, 1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "env.json").write_text(
        json.dumps({"gpu": "H100", "packages": {"torch": "2.13"}, "git": "a", **(env or {})})
    )
    sampler = "contiguous-streams" if section["carry_state"] else "random-windows"
    source = (sampler, BYTES, FINGERPRINT, seed, section["batch_size"], section["seq_len"])
    mean, val_loss = last100(loss, len(lines)), (result or {}).get("val_loss")
    known = {
        "loss": lines[-1]["loss"] if lines else None,
        "last100": mean, "bpb": None if mean is None else mean / math.log(2),
        "val_bpb": None if val_loss is None else val_loss / math.log(2),
        "status": status, "error": None, "model": model, "seed": seed, "params": params, "steps": len(lines),
        "tokens": len(lines) * tokens, "flops": len(lines) * step_flops, "device": "cuda", "dtype": "bfloat16",
        "data": {"path": "/d", "fingerprint": FINGERPRINT, "bytes": BYTES}, "data_chain": replayed(source, len(lines)),
        "backends": [{"op": "recurrence", "backend": "diagonal", "refused": {}, "layers": [0, 1]}],
        "clock": {"buckets": {}, "total": 1.0, "budget": "train"}, "graph": {"used": True, "reason": None},
    }  # fmt: skip
    (path / "result.json").write_text(json.dumps({**known, **(result or {})}))
    return path
