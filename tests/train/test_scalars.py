"""Every figure of a run with everything switched on: in metrics.jsonl, and in TensorBoard under its published name."""

import json
import math
import time

import pytest
import torch
from rnn_lab.registry import registry
from rnn_lab.train import gpu_load
from rnn_lab.train.gpu_load import GpuLoad
from rnn_lab.train.run import build

from .conftest import Recorder, run

EVERYTHING = {
    "model": {"dim": 96, "depth": 1},
    "train": {"steps": 10, "clip": 0.01},
    "optimizer": {"name": "galore_muon", "bits": 8, "galore_force": True, "galore_rank": 48, "galore_update_freq": 3},
    "objective": {
        "use_mtp": True, "mtp_n_tokens": 3, "use_collider": True, "collider_min_dim": 0, "collider_start_step": 2,
        "entropy_weight": 0.01,
    },
    "schedule": {"type": "wsd", "warmup": 1},
    "loader": {"workers": 1},
    "eval": {"every": 5, "tokens": 64},
    "diagnostics": {"every": 2},
    "log": {"trackers": ["tensorboard"]},
}  # fmt: skip
PUBLISHED = {
    "loss/total", "loss/ce", "loss/entropy", "loss/ce_last100", "loss/bpb", "loss/mtp_total", "loss/mtp_k2",
    "loss/mtp_k3", "training/lr", "training/lr_aux", "training/grad_norm", "training/clip_fraction",
    "training/param_norm", "training/update_rms", "training/wsd_mult", "throughput/tokens_per_sec",
    "throughput/step_ms", "throughput/elapsed_s", "eval/perplexity", "eval/accuracy", "eval/ce", "collider/sparsity",
    "collider/kept_ce", "collider/filtered_ce", "collider/grad_cos", "loader/data_wait_frac", "loader/queue_depth",
    "loader/starved_steps", "memory/opt_state_bytes", "memory/peak_allocated", "galore/energy", "galore/energy_stale",
    "galore/subspace_overlap", "galore/refresh_ms", "quant/rel_err_median", "quant/rel_err_max",
}  # fmt: skip
"""Those that a run of few steps on a CPU can have, but for the mean of 100 losses and what diagnostics find."""


def test_every_published_name_is_there(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = tiny(**{**EVERYTHING, "train": {**EVERYTHING["train"], "steps": 10}})
    result = run(plan, tmp_path / "r")
    events = EventAccumulator(str(tmp_path / "r"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert PUBLISHED - tags == {"loss/ce_last100"}
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr_factor"] for line in lines][:3] == [1.0, 1.0, 1.0] and lines[-1]["lr_factor"] < 1
    assert lines[0]["lr_aux"] == pytest.approx(3e-4) and lines[-1]["clip_fraction"] == 1.0
    assert [line["step"] for line in lines if "param_norm" in line] == [2, 4, 6, 8, 10]
    assert [line["step"] for line in lines if "collider_grad_cos" in line] == [10]
    assert lines[4]["val_perplexity"] == pytest.approx(math.exp(lines[4]["val_loss"]))
    assert 0 < result["val_accuracy"] < 1 and 0 < lines[4]["val_entropy"] < 5.546
    assert result["optimizer_state"]["bytes"] == lines[-1]["opt_state_bytes"]


def test_norm_and_update_are_those_of_the_parameters(tiny, tmp_path):
    seen, norms = Recorder(), {}
    plan = tiny(
        train={"steps": 4}, optimizer={"name": "adamw"}, diagnostics={"every": 4}, checkpoint={"every": 1, "keep": 9}
    )
    run(plan, tmp_path / "r", seen)
    from .test_resume import weights

    for step in (3, 4):
        found = weights(tmp_path / "r", step)
        norms[step] = torch.cat([found[name].flatten() for name in sorted(found) if name.startswith("model.")])
    assert seen.lines[3]["param_norm"] == pytest.approx(norms[4].norm().item())
    assert seen.lines[3]["update_rms"] == pytest.approx((norms[4] - norms[3]).square().mean().sqrt().item(), rel=1e-3)


def test_what_diagnoses_changes_nothing(tiny, tmp_path):
    weights = []
    for every in (1, 100):
        plan = tiny(**{**EVERYTHING, "log": {"trackers": []}, "diagnostics": {"every": every}})
        seen = Recorder()
        run(plan, tmp_path / str(every), seen)
        weights.append([line["loss"] for line in seen.lines])
    assert weights[0] == weights[1] and build(plan, registry())


def test_the_gpus_load_is_sampled_beside_training(monkeypatch):
    readings = iter(range(1000))
    monkeypatch.setattr(gpu_load, "_reader", lambda device: lambda: (float(next(readings)), 5.0))
    load = GpuLoad(torch.device("cuda"), 0.05, print)
    assert load.step(9) == {} and load.step(10) == {}
    until = time.monotonic() + 5
    while not load.samples and time.monotonic() < until:
        time.sleep(0.002)
    load.close()
    count = len(load.samples)
    assert load.step(11) == {"gpu_util": (count - 1) / 2, "gpu_memory_used_bytes": 5.0} and load.step(12) == {}
    assert load.summary() == {"util_mean": (count - 1) / 2, "util_p10": float(count // 10), "samples": count}


def test_no_library_and_no_gpu_are_no_trouble(monkeypatch):
    def missing(device):
        raise ImportError("pynvml")

    monkeypatch.setattr(gpu_load, "_reader", missing)
    notes = []
    for load in (GpuLoad(torch.device("cuda"), 0.2, notes.append), GpuLoad(torch.device("cpu"), 0.2, notes.append)):
        assert load.step(20) == {} and load.summary() is None
        load.close()
    monkeypatch.setattr(gpu_load, "_reader", lambda device: 1 / 0)
    GpuLoad(torch.device("cuda"), 0.2, notes.append).close()
    assert len(notes) == 1 and "no figures of the GPU's load: ZeroDivisionError" in notes[0]
