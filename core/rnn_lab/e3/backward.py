"""Time of a whole model's backward pass with and without Collider: what the claim of a faster backward is judged by.

A GPU replays CUDA graphs, so that launches from Python count for nothing; backward is forward and backward less
forward alone. Rounds alternate, and each gives a reduction; the interval is of those.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from rnn_lab.bench.machine import header
from rnn_lab.bench.timing import Call, time_eager, time_graph
from rnn_lab.comparison.records import RunRecord, read_series
from rnn_lab.comparison.stats import mean_of_seeds
from rnn_lab.config import ModelSection
from rnn_lab.errors import RnnLabError
from rnn_lab.lm import LM
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import Registry
from rnn_lab.sections import ObjectiveSection
from rnn_lab.train.device import autocast
from rnn_lab.train.graph import uncapturable
from rnn_lab.train.objective import Objective

BACKWARD = "backward.json"
WIDTH = 1024
"""Least width that the claim is about: narrower products do not pay for gathering their rows."""
DEPTH = 4
ROUNDS = 5
_CURE = "remove it, and `rnn-lab bench e3 --resume` measures again"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Timed(_Strict):
    forward_ms: float
    both_ms: float


class _Round(_Strict):
    dense: _Timed
    filtered: _Timed


class _Means(_Strict):
    forward_ms: float
    backward_ms: float


class _Reduction(_Strict):
    value: float
    low: float
    high: float


class _Graph(_Strict):
    used: bool
    reason: str | None


class _Measured(_Strict):
    """What backward.json holds, to the key; `sum` is that of all the rest."""

    kind: Literal["backward"]
    header: dict[str, Any]
    model: str
    dim: int = Field(ge=1)
    depth: int = Field(ge=1)
    params: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seq_len: int = Field(ge=1)
    sparsity: float = Field(ge=0, lt=1)
    device: str
    gpu: str | None
    dtype: str
    graph: _Graph
    rounds: list[_Round]
    dense: _Means
    filtered: _Means
    backward_reduction: _Reduction
    step_reduction: _Reduction
    sum: str | None = None


def arguments(series: Path) -> list[str] | None:
    """Arguments of `rnn-lab bench backward` for a suite that has run; None where no run came to an end on a GPU.

    The model is at least as wide as the claim asks for.
    """
    runs = read_series(series, keep_damaged=True).runs
    done = [run for run in runs if run.status == "ok" and str(run.result.get("device")).startswith("cuda")]
    if not done:
        return None
    run = next((run for run in done if run.config["objective"]["use_collider"]), done[0])
    return _arguments(run)


def _arguments(run: RunRecord) -> list[str]:
    train, dim = run.config["train"], int(run.config["model"]["dim"])
    given = {
        "--model": run.model, "--dim": max(dim, WIDTH), "--depth": DEPTH, "--seq-len": train["seq_len"],
        "--batch-size": train["batch_size"] // train["grad_accum"], "--device": "cuda",
        "--dtype": {"bfloat16": "bf16"}.get(str(run.result["dtype"]), "fp32"),
        "--sparsity": run.config["objective"]["collider_sparsity"],
    }  # fmt: skip
    return [str(word) for pair in given.items() for word in pair]


def measure(
    section: ModelSection, found: Registry, *, batch_size: int, seq_len: int, sparsity: float, dtype: torch.dtype,
    device: torch.device, seconds: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """Milliseconds of forward and backward, dense and filtered, of the model that `section` describes.

    Args:
        section: the model; its width and depth are held.
        found: registry.
        batch_size: sequences.
        seq_len: bytes of each.
        sparsity: share of the positions that is filtered.
        dtype: of the autocast.
        device: where.
        seconds: bound on what one kind of call takes.

    """
    spec = model_spec(section, found, must_reach=False)
    torch.manual_seed(0)
    model = spec.build().to(device)
    objective = Objective(ObjectiveSection(use_collider=True, collider_sparsity=sparsity))
    window = torch.randint(0, 256, (batch_size, seq_len + 1), device=device, dtype=torch.uint8)
    calls = {kind: _calls(model, objective, window, dtype, kind == "filtered") for kind in ("dense", "filtered")}
    for forward, both in calls.values():
        forward(), both()  # compiles, tunes, certifies
    reason = "no GPU" if device.type != "cuda" else next(uncapturable(model), None) or _uncaptured(calls, device)
    timed: Callable[..., Any] = time_eager if reason else time_graph
    rounds = [
        {kind: {"forward_ms": timed([forward], device, seconds / ROUNDS).median,
                "both_ms": timed([both], device, seconds / ROUNDS).median} for kind, (forward, both) in calls.items()}
        for _ in range(ROUNDS)
    ]  # fmt: skip
    return sealed({
        "kind": "backward", "header": header(device),
        "model": spec.name, "dim": int(spec.layer_cfg.dim), "depth": spec.lm_cfg.depth,
        "params": spec.certificate.params, "batch_size": batch_size, "seq_len": seq_len, "sparsity": sparsity,
        "device": str(device), "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "graph": {"used": reason is None, "reason": reason}, "rounds": rounds, **_summary(rounds),
    })  # fmt: skip


def sealed(found: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured with its sum, by which `read` knows it again."""
    return {**found, "sum": _sum_of(found)}


def _sum_of(found: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in found.items() if key != "sum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _uncaptured(calls: dict[str, tuple[Call, Call]], device: torch.device) -> str | None:
    """Why a call cannot be part of a CUDA graph after all; None where all can."""
    try:
        for pair in calls.values():
            for call in pair:
                time_graph([call], device, 0.0)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def _calls(
    model: LM, objective: Objective, window: torch.Tensor, dtype: torch.dtype, filtering: bool
) -> tuple[Call, Call]:
    """Forward alone, and forward with backward; gradients are not kept."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    step = torch.zeros((), dtype=torch.float64, device=window.device)

    def forward() -> torch.Tensor:
        with autocast(window.device, dtype):
            return objective(model, window, None, None, filtering=filtering, step=step).objective

    def both() -> object:
        return torch.autograd.grad(forward(), parameters, allow_unused=True)

    return forward, both


def _summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means over rounds, and the reductions with their 95 % intervals."""
    found: dict[str, Any] = {}
    for kind in ("dense", "filtered"):
        forward = [one[kind]["forward_ms"] for one in rounds]
        both = [one[kind]["both_ms"] for one in rounds]
        found[kind] = {
            "forward_ms": sum(forward) / len(forward),
            "backward_ms": (sum(both) - sum(forward)) / len(both),
        }
    back = [1 - _backward(one["filtered"]) / _backward(one["dense"]) for one in rounds]
    step = [1 - one["filtered"]["both_ms"] / one["dense"]["both_ms"] for one in rounds]
    for name, values in (("backward", back), ("step", step)):
        mean = mean_of_seeds(values)
        low, high = mean.interval()
        found[f"{name}_reduction"] = {"value": mean.value, "low": low, "high": high}
    return found


def _backward(one: dict[str, float]) -> float:
    return one["both_ms"] - one["forward_ms"]


def read(series: Path) -> dict[str, Any] | None:
    """What was measured for a suite, or None; of a file that is not as it was written no more than `edited`, a reason.

    Raises:
        RnnLabError: the file is damaged.

    """
    path = series / BACKWARD
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _Measured.model_validate(found)
    except (OSError, ValueError, RecursionError) as error:
        raise RnnLabError(f"{path}: damaged: {_CURE}") from error
    if found.get("sum") != _sum_of(found):
        return {"edited": f"edited: the sum in {BACKWARD} is not that of its figures: {_CURE}"}
    return found
