"""The rows of the benchmark: what is measured and what is aimed at."""

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rnn_lab.config import Layer
from rnn_lab.data import RandomWindows, default_corpus, open_split
from rnn_lab.registry import registry
from rnn_lab.train import checkpoint as ckpt
from rnn_lab.train.run import build, plan_run
from step import compare_steps

REPEATS = 5
LIBRARIES = "import click, pluggy, pydantic"
BATCH, SEQ_LEN, BATCHES = 256, 512, 1000


class Missing(Exception):
    """A row cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Row:
    """`measure` gives the figure and its text; `met` says whether it reaches the target."""

    name: str
    target: str
    met: Callable[[float], bool]
    measure: Callable[[], tuple[float, str]]


def list_models() -> tuple[float, str]:
    """Wall time of `list-models` over importing the libraries that any such command needs."""
    ours, theirs = _interleaved(["-m", "rnn_lab_cli", "list-models"], ["-c", LIBRARIES])
    return ours / theirs, f"{ours / theirs:.2f} x ({ours:.3f} s / {theirs:.3f} s)"


def size() -> tuple[float, str]:
    """Wall time of `size` beyond importing torch."""
    command = ["-m", "rnn_lab_cli", "size", "e74", "--target", "100M"]
    ours, theirs = _interleaved(command, ["-c", "import torch"])
    return ours - theirs, f"{ours - theirs:.2f} s ({ours:.2f} s - {theirs:.2f} s)"


def _interleaved(first: list[str], second: list[str]) -> tuple[float, float]:
    """Median wall times of two Python processes, run in turn after one round that warms the caches."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(REPEATS + 1):
        for arguments, kept in zip((first, second), times, strict=True):
            began = time.perf_counter()
            done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise Missing(f"{' '.join(arguments)}: {last}")
            if round_ > 0:
                kept.append(time.perf_counter() - began)
    return median(times[0]), median(times[1])


def batches() -> tuple[float, str]:
    """Bytes per second of batches alone."""
    sampler = _sampler()
    for k in range(20):
        sampler.batch(k)
    began = time.perf_counter()
    for k in range(BATCHES):
        sampler.batch(k)
    rate = BATCH * SEQ_LEN * BATCHES / (time.perf_counter() - began)
    return rate, f"{rate / 1e6:.0f}M bytes/s"


def batch_memory() -> tuple[float, str]:
    """Growth of private memory while batches are drawn; pages of the mapped file are the system's."""
    sampler = _sampler()
    for k in range(20):
        sampler.batch(k)
    gc.collect()
    before = _private_bytes()
    for k in range(BATCHES):
        sampler.batch(k)
    gc.collect()
    grown = (_private_bytes() - before) / 2**20
    return grown, f"{grown:+.1f} MiB over {BATCHES:,} batches"


def _sampler() -> RandomWindows:
    split = open_split(default_corpus(), seq_len=SEQ_LEN)
    return RandomWindows(split.train, 42, BATCH, SEQ_LEN)


def _private_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise Missing("this system does not tell private memory") from error
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def e1_step() -> tuple[float, str]:
    """A training step of the lab over one of the plain loop."""
    with tempfile.TemporaryDirectory() as folder:
        lab, plain, worst, steps = compare_steps(Path(folder))
    if worst > 1e-4:
        raise Missing(f"losses differ by {worst:.1e}: the two sides do not train the same model")
    return lab / plain, f"{lab / plain:.3f} x ({lab * 1e3:.0f} / {plain * 1e3:.0f} ms, {steps} steps)"


def checkpoint() -> tuple[float, str]:
    """Seconds to write a 50M model with its optimizer, synced and checksummed."""
    values = {"model": {"name": "e61", "target": "50M"}, "train": {"device": "cpu"}}
    plan = plan_run([Layer("bench", values)], registry())
    model, optimizer = build(plan, registry())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if hasattr(optimizer, "train"):
        optimizer.train()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tensors, state = ckpt.optimizer_tensors(optimizer)
    groups = {"model": dict(model.state_dict()), "optimizer": tensors}
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for step in range(1, 4):
            saved = ckpt.Checkpoint(step, groups, {"optimizer": state})
            began = time.perf_counter()
            path = ckpt.save_checkpoint(Path(folder), saved, keep=1)
            times.append(time.perf_counter() - began)
        written = sum(file.stat().st_size for file in path.iterdir())
    return median(times), f"{median(times):.2f} s for {written / 1e6:,.0f} MB"


ROWS = (
    Row("list-models", "at most 2.5 x", lambda value: value <= 2.5, list_models),
    Row("size", "at most 1 s", lambda value: value <= 1.0, size),
    Row("batches", "at least 50M bytes/s", lambda value: value >= 50e6, batches),
    Row("batch memory", "at most 8 MiB", lambda value: value <= 8, batch_memory),
    Row("E1 step", "at most 1.1 x", lambda value: value <= 1.1, e1_step),
    Row("checkpoint", "at most 3 s", lambda value: value <= 3.0, checkpoint),
)
