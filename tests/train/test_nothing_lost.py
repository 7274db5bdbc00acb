"""What a failed or hostile resume must leave as it was."""

import json
import os
import shutil
import signal
import sys

import pytest
from rnn_lab.errors import CheckpointError, ConfigError, DataError, RnnLabError
from rnn_lab.train.rundir import RunDir

from .conftest import Recorder, resume, run
from .test_resume import start_child


@pytest.fixture
def finished(tiny, tmp_path, corpus):
    data = tmp_path / "bytes.bin"
    data.write_bytes(corpus.read_bytes())
    run(tiny(train={"steps": 5}, data={"path": str(data)}), tmp_path / "r")
    return tmp_path / "r"


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def refuse(path, error, text):
    before = contents(path)
    with pytest.raises(error, match=text):
        resume(path, steps=9)
    assert contents(path) == before


def test_missing_data_leaves_the_run_as_it_was(finished):
    (finished.parent / "bytes.bin").rename(finished.parent / "away.bin")
    refuse(finished, DataError, r"bytes\.bin")


def test_missing_checkpoints_of_an_ended_run_are_an_error(finished):
    shutil.rmtree(finished / "checkpoints")
    refuse(finished, CheckpointError, "is missing, though this run ended after 5 steps")


def test_a_run_killed_before_its_first_checkpoint_says_that_it_starts_again(finished):
    shutil.rmtree(finished / "checkpoints")
    (finished / "result.json").unlink()
    seen = Recorder()
    assert resume(finished, seen)["steps"] == 5
    assert seen.notes == ["this run has no checkpoint yet: it starts from its first step"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch_size = 4", "batch_size = 8", "train.batch_size = 8, the run was trained with 4"),
        ("seed = 42", "seed = 7", "train.seed"),
        ("lr = 0.0003", "lr = 0.5", "optimizer.lr"),
        ("dim = 16", "dim = 32", "model.dim"),
    ],
)
def test_an_edited_configuration_is_refused(finished, old, new, says):
    config = finished / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    refuse(finished, RnnLabError, says)


def test_edited_metrics_are_refused(finished):
    metrics = finished / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:2], "garbage\n", *lines[3:]]))
    with pytest.raises(CheckpointError, match="line 3: not a line of metrics"):
        resume(finished, steps=9)
    metrics.write_text("".join([*lines[:2], *lines[3:]]))
    with pytest.raises(CheckpointError, match="does not hold steps 1 to 5"):
        resume(finished, steps=9)


def test_a_run_without_a_result_keeps_its_last_loss(finished):
    loss = json.loads((finished / "result.json").read_text())["loss"]
    (finished / "result.json").unlink()
    assert resume(finished)["loss"] == loss is not None


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_during_validation_is_an_interruption(tiny, tmp_path):
    plan = tiny(train={"steps": 1, "batch_size": 1}, eval={"tokens": 400})
    big = tmp_path / "val.bin"
    big.write_bytes(os.urandom(1 << 22))
    plan = tiny(train={"steps": 1, "batch_size": 1}, eval={"tokens": 4_000_000}, data={
        "path": plan.resolved.config.data.path, "val_path": str(big)})  # fmt: skip
    child = start_child(plan, tmp_path / "r")
    for line in child.stdout:
        if "step 1" in line:
            break
    while not (tmp_path / "r" / "checkpoints" / "step_1").exists():
        pass
    child.send_signal(signal.SIGTERM)
    child.stdout.read()
    child.stdout.close()
    child.wait()
    assert RunDir(tmp_path / "r").status() == "interrupted"


@pytest.mark.parametrize("betas", [(-1.0, 0.9), (0.9, 1.0), (0.9, float("nan"))])
def test_decay_rates_outside_their_range_are_refused(tiny, betas):
    with pytest.raises(ConfigError, match=r"optimizer\.betas"):
        tiny(optimizer={"betas": betas})
