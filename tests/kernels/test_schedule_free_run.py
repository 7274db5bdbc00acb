"""Runs with our schedule-free AdamW: the same figures as with the library's, across checkpoints of either."""

from contextlib import contextmanager

import pytest
import torch
from rnn_lab.config import Layer
from rnn_lab.registry import registry
from rnn_lab.train import schedule_free
from rnn_lab.train.metrics import read_metrics
from rnn_lab.train.resume import resume_run
from rnn_lab.train.run import plan_run, start_run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Quiet:
    def step(self, line, fraction):
        pass

    def note(self, text):
        pass


@pytest.fixture(autouse=True)
def plain_layers(monkeypatch):
    monkeypatch.setenv("RNN_LAB_KERNELS", "reference")


@contextmanager
def the_library():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule_free, "refuses_fused", lambda parameters: "not wanted")
        yield


def plan(tmp_path, steps):
    data = tmp_path / "bytes.bin"
    data.write_bytes(bytes(range(32, 127)) * 100)
    values = {
        "model": {"name": "gru", "dim": 16, "depth": 1},
        "data": {"path": str(data)},
        "train": {"steps": steps, "batch_size": 2, "seq_len": 8, "device": DEVICE, "dtype": "fp32"},
        "optimizer": {"decay": "matrices", "warmup_steps": 4, "lr": 1e-2},
        "eval": {"tokens": 64, "every": 3},
        "log": {"trackers": []},
    }
    return plan_run([Layer("test", values)], registry())


def figures(path):
    names = ("loss", "grad_norm", "lr", "val_loss")
    return [line.get(n) or 0.0 for line in read_metrics(path / "metrics.jsonl") for n in names]


def start(tmp_path, name, steps):
    return start_run(plan(tmp_path, steps), tmp_path / name, registry(), Quiet())


def test_runs_of_either_go_on_with_the_other(tmp_path):
    with the_library():
        start(tmp_path, "library", 10)
        start(tmp_path, "theirs first", 5)
    start(tmp_path, "ours", 10)
    start(tmp_path, "ours first", 5)
    resume_run(tmp_path / "theirs first", {"steps": 10}, registry(), Quiet())
    with the_library():
        resume_run(tmp_path / "ours first", {"steps": 10}, registry(), Quiet())
    expected = figures(tmp_path / "library")
    for name in ("ours", "theirs first", "ours first"):
        assert figures(tmp_path / name) == pytest.approx(expected, rel=1e-4), name


def test_a_resumed_run_is_the_whole_run_to_the_last_bit(tmp_path):
    start(tmp_path, "whole", 8)
    start(tmp_path, "parts", 4)
    resume_run(tmp_path / "parts", {"steps": 8}, registry(), Quiet())
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
