"""Runs of the suite's files: they train every family, resume to the bit, and what is off changes no bit."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from rnn_lab.comparison.records import read_run
from rnn_lab.config import Layer
from rnn_lab.e3.files import read_layers
from rnn_lab.registry import registry
from rnn_lab.train.checkpoint import load_checkpoint
from rnn_lab.train.resume import resume_run
from rnn_lab.train.run import plan_run, start_run

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("e3_models", ROOT / "bench" / "e3_models.py")
e3_models = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = e3_models
SPEC.loader.exec_module(e3_models)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "bytes.bin"
    path.write_bytes(b"".join(b"the quick brown fox number %d jumps. " % i for i in range(500)))
    return str(path)


@pytest.mark.parametrize(("config", "model"), [("full", "gru"), ("full", "e1"), ("full", "e61"), ("muon_8bit", "e88")])
def test_files_train_every_family_and_state_is_as_predicted(config, model, corpus, tmp_path):
    result = e3_models.train(config, model, 3, tmp_path / "run", corpus)
    state = result["optimizer_state"]
    assert result["status"] == "ok" and result["steps"] == 3
    assert state["by_category"] == state["predicted_by_category"]
    assert state["bytes"] < state["reference_bytes"]["adamw"] and 0 < state["matrix_params"] < result["params"]


def run(stem, corpus, out, steps, **changes):
    """Losses of a run of `steps` steps under a file of the suite, wide enough for codes."""
    own = {
        "model": {"name": "e61", "dim": 64, "depth": 1},
        "train": {"batch_size": 2, "seq_len": 16, "device": "cpu", "steps": steps, **changes.pop("train", {})},
        "data": {"path": corpus}, "eval": {"tokens": 32}, "log": {"trackers": []}, "checkpoint": {"every": 3},
        "schedule": {"type": "constant", "warmup": 1}, **changes,
    }  # fmt: skip
    layers = [*read_layers(f"e3/{stem}", own).layers, Layer("test", own)]
    start_run(plan_run(layers, registry()), out, registry(), e3_models.Silent())
    return [line["loss"] for line in read_run(out).lines]


PROJECTED = {"galore_rank": 16, "galore_min_dim": 8, "galore_update_freq": 2}


def test_the_full_file_resumes_to_the_bit(corpus, tmp_path):
    wide = {**PROJECTED, "galore_rank": 32}
    whole = run("full", corpus, tmp_path / "whole", 6, optimizer=wide)
    run("full", corpus, tmp_path / "parts", 3, optimizer=wide)
    state = load_checkpoint(tmp_path / "parts" / "checkpoints" / "step_3").tensors["optimizer"]
    projected = [name.removesuffix("U") for name in state if name.endswith(".U")]
    assert any(f"{name}scales" in state and state[f"{name}codes"].dtype == torch.int8 for name in projected)
    resume_run(tmp_path / "parts", {"steps": 6}, registry(), e3_models.Silent())
    assert [line["loss"] for line in read_run(tmp_path / "parts").lines] == whole


def test_reading_ahead_checkpointing_and_what_weighs_nothing_change_no_loss(corpus, tmp_path):
    plain = run("baseline", corpus, tmp_path / "plain", 3)
    assert run("async_only", corpus, tmp_path / "async", 3) == plain
    assert run("checkpoint_only", corpus, tmp_path / "checkpoint", 3) == pytest.approx(plain, rel=1e-6)
    idle = {"use_mtp": True, "mtp_weight": 0.0, "use_collider": True, "collider_sparsity": 0.0}
    assert run("baseline", corpus, tmp_path / "idle", 3, objective=idle) == plain
