"""Figures and safeguards that are easy to get wrong by one."""

import pytest
import torch
from rnn_lab.train import checkpoint, loop
from rnn_lab.train.metrics import MetricsLog, read_metrics

from .conftest import Recorder, resume, run


def test_tokens_per_s_counts_timed_steps_only(tiny, tmp_path):
    run(tiny(train={"steps": 5}), tmp_path / "r")
    result = resume(tmp_path / "r", steps=9)
    # Each session's first step is a warm-up: 4 + 3 of the 9 steps are timed.
    assert result["tokens_per_s"] == pytest.approx(7 * 64 / result["clock"]["buckets"]["train"])


def test_mfu_is_the_models_flops_per_second_over_the_peak(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e9)
    plan = tiny(train={"steps": 4})
    result = run(plan, tmp_path / "r")
    per_step = 3 * plan.spec.flops_per_token(16) * 64
    for line in read_metrics(tmp_path / "r" / "metrics.jsonl"):
        assert line["mfu"] == pytest.approx(per_step * line["tokens_per_s"] / 64 / 1e9)
    assert result["mfu"] == pytest.approx(3 * per_step / result["clock"]["buckets"]["train"] / 1e9)


def test_schedule_free_warms_up_linearly(tiny, tmp_path):
    run(tiny(train={"steps": 6}, optimizer={"warmup_steps": 4, "lr": 0.4e-3}), tmp_path / "r")
    lrs = [line["lr"] for line in read_metrics(tmp_path / "r" / "metrics.jsonl")]
    assert lrs == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4, 4e-4, 4e-4])


def test_metrics_are_durable_before_a_checkpoint_claims_their_step(tiny, tmp_path, monkeypatch):
    order = []
    sync, save = MetricsLog.sync, checkpoint.save_checkpoint

    def synced(self):
        sync(self)
        order.append(("sync", [line["step"] for line in read_metrics(tmp_path / "r" / "metrics.jsonl")][-1]))

    def saved(folder, found, keep):
        order.append(("save", found.step))
        return save(folder, found, keep)

    monkeypatch.setattr(MetricsLog, "sync", synced)
    monkeypatch.setattr(checkpoint, "save_checkpoint", saved)
    run(tiny(train={"steps": 5}, checkpoint={"every": 2}), tmp_path / "r")
    assert order == [(what, step) for step in (2, 4, 5) for what in ("sync", "save")]


def test_random_numbers_go_on_where_the_checkpoint_left_them(tiny, tmp_path):
    def draws(into):
        return Recorder(lambda step: into.append(torch.rand(()).item()))

    whole, parts = [], []
    run(tiny(train={"steps": 8}, checkpoint={"every": 4}), tmp_path / "whole", draws(whole))
    run(tiny(train={"steps": 4}, checkpoint={"every": 4}), tmp_path / "parts", draws(parts))
    torch.manual_seed(999)
    resume(tmp_path / "parts", draws(parts), steps=8)
    assert parts == whole and len(set(whole)) == 8
