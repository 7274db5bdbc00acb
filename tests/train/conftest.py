"""A tiny corpus and tiny runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rnn_lab.config import Layer
from rnn_lab.registry import registry
from rnn_lab.train import graph, optimizers
from rnn_lab.train.resume import resume_run
from rnn_lab.train.run import Plan, plan_run, start_run

from .fake_queue import FakeQueue

TEXT = b"the quick brown fox jumps over the lazy dog. \x1e"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 40 kB of short documents with random words."""
    path = tmp_path_factory.mktemp("corpus") / "bytes.bin"
    words = TEXT[:-1].split()
    rng = np.random.default_rng(0)
    documents = [b" ".join(rng.choice(words, size=12)) for _ in range(700)]
    path.write_bytes(b"\x1e".join(documents))
    return path


class Recorder:
    """An observer that keeps everything, and may act on a step."""

    def __init__(self, on_step: Callable[[int], None] | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.on_step = on_step

    def step(self, line: dict[str, Any], fraction: float) -> None:
        self.lines.append(line)
        if self.on_step:
            self.on_step(line["step"])

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def tiny(corpus: Path) -> Callable[..., Plan]:
    """Plans of tiny runs: `tiny(steps=3, model={"name": "e1"}, optimizer={…})`."""

    def plan(model: dict[str, Any] | None = None, **sections: Any) -> Plan:
        train = {"batch_size": 4, "seq_len": 16, "device": "cpu", **sections.pop("train", {})}
        values = {
            "model": {"name": "e61", "dim": 16, "depth": 2, **(model or {})},
            "data": {"path": str(corpus)},
            "eval": {"tokens": 256},
            "log": {"trackers": []},
            "diagnostics": {"ignore": ["D-WARMUP"]},  # which runs of few steps cannot but meet
            "train": train,
            **sections,
        }
        return plan_run([Layer("test", values)], registry())

    return plan


def run(plan: Plan, out: Path, observer: Recorder | None = None) -> dict[str, Any]:
    return start_run(plan, out, registry(), observer or Recorder())


def resume(out: Path, observer: Recorder | None = None, **extend: Any) -> dict[str, Any]:
    return resume_run(out, extend, registry(), observer or Recorder())


@pytest.fixture
def fused_on_the_cpu(monkeypatch):
    """AdamW whose counters are on the device, as a captured step needs."""
    monkeypatch.setattr(optimizers, "WarmupAdamW", optimizers.FusedAdamW)


@pytest.fixture
def queue(monkeypatch):
    """The queue of a captured step, without a GPU."""
    made = FakeQueue()
    monkeypatch.setattr(graph, "queue_of", lambda device: made)
    return made
