"""Rows of `rnn-lab bench train`: whole training steps of models and of their peers, in one loop, one after another."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rnn_lab.bench.isolated import rows_of
from rnn_lab.bench.machine import ceilings, header
from rnn_lab.bench.rows import failure, free
from rnn_lab.bench.shells import foreign_model
from rnn_lab.bench.step import make_step
from rnn_lab.bench.timing import Spread, intervals, synchronise, time_eager, time_graph
from rnn_lab.config import ModelSection, OptimizerSection
from rnn_lab.data.batches import RandomWindows
from rnn_lab.data.corpus import open_split
from rnn_lab.data.default import default_corpus
from rnn_lab.lm import LM
from rnn_lab.modelspec import ModelSpec, model_spec
from rnn_lab.registry import Registry, registry
from rnn_lab.train.device import peak_memory_bytes
from rnn_lab.train.optimizers import set_mode

OURS = "rnn-lab"
WARM_UP, PROFILED, LEAST = 3, 3, 3
LONG_MS = 3000.0
"""A slower eager step is a plain loop of some hundred thousand launches: it is not captured unasked."""
PROFILE_MS = 500.0
"""A slower step is not profiled: its events would take minutes to read."""
UPDATE_SECONDS = 0.5
"""For clip and optimizer by themselves."""


@dataclass(frozen=True)
class TrainSetting:
    """Batch, budget and how the step is run.

    `graph` is auto, on or off; `kernels` a value of RNN_LAB_KERNELS; a slow model is timed for `seconds`, however
    few steps these are; `wavefront` is train.wavefront; `limit` is how many seconds a row may take in a process of its
    own, None: in this one. `optimizer` is the `[optimizer]` table.
    """

    batch: int
    seq_len: int
    steps: int
    dtype: torch.dtype
    device: torch.device
    graph: str = "auto"
    kernels: str = "auto"
    seconds: float = 15.0
    wavefront: int | None = None
    limit: float | None = None
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)

    @property
    def modes(self) -> tuple[str, ...]:
        """Launched from Python and as a CUDA graph; only the former on the CPU."""
        if self.device.type != "cuda":
            return ("eager",)
        return {"auto": ("eager", "graph"), "on": ("graph",), "off": ("eager",)}[self.graph]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "batch": self.batch, "seq_len": self.seq_len, "steps": self.steps, "graph": self.graph,
            "kernels": self.kernels, "dtype": str(self.dtype).removeprefix("torch."),
            **({"wavefront": self.wavefront} if self.wavefront else {}),
            "optimizer": ", ".join([
                self.optimizer.name,
                *(f"{k} = {v}" for k, v in self.optimizer.model_dump(exclude_unset=True).items() if k != "name"),
            ]),
        }  # fmt: skip


def bench_train(
    asked: Sequence[tuple[str, ModelSection]], setting: TrainSetting, show: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:  # fmt: skip
    """The page: header, ceilings, rows.

    Args:
        asked: what each model is called in its rows, and the model.
        setting: sizes.
        show: is handed the page after every row.

    """
    page: dict[str, Any] = {
        "kind": "bench-train",
        "header": header(setting.device),
        "setting": setting.as_dict(),
        "ceilings": ceilings(setting.device),
        "rows": [],
    }
    for _, section in asked:
        model_spec(section, registry(), must_reach=False)  # what cannot be built is an error at once
    for row in rows_of(_rows, (list(asked), setting, page["ceilings"]), setting.limit):
        page["rows"].append(row)
        show(page)
    return page


def _rows(
    asked: Sequence[tuple[str, ModelSection]], setting: TrainSetting, top: dict[str, float | None],
    done: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of all models, each announced first."""
    found, batches = registry(), _batches(setting)
    for label, section in asked:
        spec = model_spec(section, found, must_reach=False)
        for implementation in (OURS, *spec.layer_cls.peers):
            eager_ms = 0.0
            for mode in setting.modes:
                row: dict[str, Any] = {"model": label, "implementation": implementation, "mode": mode}
                if row in done:
                    continue
                yield row
                measured: dict[str, Any]
                if eager_ms > LONG_MS:
                    measured = {"status": "skipped", "reason": "a plain loop; --graph on captures it all the same"}
                else:
                    measured = _row(spec, implementation, mode, setting, found, batches, top)
                eager_ms = measured.get("ms", {}).get("median", 0.0)
                yield row | measured


def _batches(setting: TrainSetting) -> list[Tensor]:
    """Windows `[B, T + 1]` for every step, on the device: loading them is not what is measured."""
    split = open_split(default_corpus(), seq_len=setting.seq_len)
    sampler = RandomWindows(split.train, 42, setting.batch, setting.seq_len)
    steps = WARM_UP + max(LEAST, setting.steps) + 1 + PROFILED
    return [torch.from_numpy(sampler.batch(k).bytes_BT1).to(setting.device) for k in range(1, steps + 1)]


def _row(
    spec: ModelSpec, implementation: str, mode: str, setting: TrainSetting, found: Registry,
    batches: list[Tensor], top: dict[str, float | None],
) -> dict[str, Any]:  # fmt: skip
    """Figures of one model, or why there are none; nothing of it stays in memory."""
    if implementation != OURS and setting.device.type != "cuda":
        return {"status": "refused", "reason": "it needs a CUDA device"}
    if implementation != OURS and (setting.wavefront or 1) > 1:
        return {"status": "refused", "reason": "its block takes no state, so that time cannot be cut for a wavefront"}
    try:
        with mock.patch.dict(os.environ, {"RNN_LAB_KERNELS": setting.kernels}):
            return _measured(spec, implementation, mode, setting, found, batches, top)
    except Exception as error:
        return failure(error)
    finally:
        free()


def _measured(
    spec: ModelSpec, implementation: str, mode: str, setting: TrainSetting, found: Registry,
    batches: list[Tensor], top: dict[str, float | None],
) -> dict[str, Any]:  # fmt: skip
    device = setting.device
    torch.manual_seed(42)
    model = spec.build().to(device)
    if implementation != OURS:
        model = foreign_model(model, implementation)
    optimizer = found.load("optimizers", setting.optimizer.name)(model, setting.optimizer)
    set_mode(optimizer, "train")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step = make_step(model, optimizer, setting.dtype, batches[0], mode == "graph", setting.wavefront)
    pending = iter(batches)

    def one() -> Tensor:
        return step(next(pending))

    one()
    synchronise(device)
    once = intervals([one], WARM_UP - 1, device)[-1]
    steps = max(LEAST, min(setting.steps, int(1e3 * setting.seconds / once)))
    times = Spread.of(intervals([one], steps, device))
    loss = float(one())
    memory = peak_memory_bytes(device)
    busy = None if once > PROFILE_MS else _busy_ms(one, device)
    timed = time_graph if mode == "graph" else time_eager
    update = step.update and timed([step.update], device, UPDATE_SECONDS)
    tokens = setting.batch * setting.seq_len
    work = 3 * spec.flops_per_token(setting.seq_len) * tokens
    rate = work / times.median * 1e3
    return {
        "status": "ok",
        "params": sum(p.numel() for p in model.parameters()),
        "config": spec.table(),
        "ms": times.as_dict(),
        "tokens_per_s": {key: 1e3 * tokens / value for key, value in _named(times).items()},
        "peak_memory_bytes": memory,
        "flops": work,
        "mfu_datasheet": _share(rate, top["datasheet_flops_per_s"]),
        "mfu_measured": _share(rate, top["matmul_flops_per_s"]),
        "gpu_busy_ms": busy,
        "launch_overhead": None if busy is None else max(0.0, 1 - busy / times.median),
        "update_ms": update and update.as_dict(),
        "update_share": update and update.median / times.median,
        "loss": loss,
        "backends": _backends(model),
        "wavefront": getattr(model.walk, "chunks", 1),
    }


def _named(times: Spread) -> dict[str, float]:
    """Rates go the other way round: the third quartile of the time is the first of the rate."""
    return {"median": times.median, "q1": times.q3, "q3": times.q1}


def _share(rate: float, top: float | None) -> float | None:
    return None if top is None else rate / top


def _backends(model: LM) -> list[dict[str, Any]]:
    """What ran in the first layer; all layers are alike."""
    return [choice.as_dict() for choice in getattr(model.layers[0], "backends", {}).values()]


def _busy_ms(step: Callable[[], object], device: torch.device) -> float | None:
    """Milliseconds per step in which the GPU ran anything, as CUPTI saw it; None on the CPU and without CUPTI."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            step()
        synchronise(device)
    # Annotations of host ranges are events of the device too, and cover its pauses.
    found = [e for e in profiler.events() or () if e.device_type.name == "CUDA" and not e.is_user_annotation]
    spans = [(e.time_range.start, e.time_range.end) for e in found]
    return covered(spans) / 1e3 / PROFILED if spans else None


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
