"""A run that was stopped in any way goes on exactly where it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rnn_lab.errors import CheckpointError, ConfigError, RnnLabError
from rnn_lab.parallel.world import World
from rnn_lab.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rnn_lab.train.loop import Trainer
from rnn_lab.train.rundir import RunDir, list_checkpoints

from tests.facts import facts

from .conftest import Recorder, resume, run


def weights(path: Path, step: int) -> dict[str, torch.Tensor]:
    saved = load_checkpoint(path / "checkpoints" / f"step_{step}")
    return {
        f"{group}.{k}": t for group, tensors in saved.tensors.items() if group != "random" for k, t in tensors.items()
    }


def assert_same_run(a: Path, b: Path, step: int) -> None:
    assert facts(a) == facts(b)
    one, two = weights(a, step), weights(b, step)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    result_a, result_b = (json.loads((p / "result.json").read_text()) for p in (a, b))
    for key in ("status", "steps", "loss", "val_loss", "last100", "data_chain"):
        assert result_a[key] == result_b[key]


CASES = [
    {"model": {"name": "e1"}},
    {"model": {"name": "e74", "n_state": 8}, "optimizer": {"name": "adamw", "warmup_steps": 15}},
    {"model": {"name": "e61", "use_conv": True}, "train": {"carry_state": True, "grad_accum": 2}},
]


@pytest.mark.parametrize("case", CASES, ids=["e1-spectral", "e74-adamw-warmup", "e61-carried-state"])
def test_twenty_steps_are_ten_plus_ten(tiny, tmp_path, case):
    def plan(steps):
        return tiny(**{**case, "train": {**case.get("train", {}), "steps": steps}})

    run(plan(20), tmp_path / "whole")
    run(plan(10), tmp_path / "parts")
    resume(tmp_path / "parts", steps=20)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 20)


CHILD = """
import json, sys
from pathlib import Path
from rnn_lab.registry import registry
from rnn_lab.config import Layer
from rnn_lab.train.run import plan_run, start_run

class Watch:
    def step(self, line, fraction):
        print("step", line["step"], flush=True)
    def note(self, text):
        print("note", text, flush=True)

start_run(plan_run([Layer("test", json.loads(sys.argv[1]))], registry()), Path(sys.argv[2]), registry(), Watch())
"""


def start_child(plan, out: Path) -> subprocess.Popen:
    tables = plan.tables()
    values = {name: {k: v for k, v in table.items() if v is not None} for name, table in tables.items()}
    command = [sys.executable, "-c", CHILD, json.dumps(values), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def wait_for(child: subprocess.Popen, text: str) -> None:
    for line in child.stdout:
        if text in line:
            return
    raise AssertionError(f"the child ended before it printed {text!r}")


@pytest.mark.parametrize("when", [1, 7, 12])
def test_kill_9_loses_nothing_that_a_checkpoint_holds(tiny, tmp_path, when):
    plan = tiny(train={"steps": 20}, checkpoint={"every": 5})
    run(plan, tmp_path / "whole")
    child = start_child(tiny(train={"steps": 20}, checkpoint={"every": 5}), tmp_path / "killed")
    wait_for(child, f"step {when}\n")
    child.kill()
    child.wait()
    child.stdout.close()
    assert RunDir(tmp_path / "killed").status() == "killed"
    resume(tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed", 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_so(tiny, tmp_path, number):
    child = start_child(tiny(train={"steps": 100000}), tmp_path / "r")
    wait_for(child, "step 3\n")
    child.send_signal(number)
    rest = child.stdout.read()
    child.wait()
    child.stdout.close()
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert "stopping after this step" in rest
    assert result["status"] == "interrupted"
    assert list_checkpoints(tmp_path / "r" / "checkpoints")[-1][0] == result["steps"] >= 3
    assert resume(tmp_path / "r", steps=result["steps"] + 2)["status"] == "ok"


def test_a_signal_in_the_middle_of_agreeing_is_not_lost(tiny, tmp_path, monkeypatch):
    """It comes behind what this rank told the others, and before what all of them decided."""
    agree, times = World.agree, []

    def interrupted(world, go, stop):
        times.append(stop)
        if len(times) == 3:
            signal.raise_signal(signal.SIGTERM)
        return agree(world, go, stop)

    monkeypatch.setattr(World, "agree", interrupted)
    result = run(tiny(train={"steps": 50}), tmp_path / "r")
    assert (result["status"], times[:4]) == ("interrupted", [None, None, None, signal.SIGTERM])
    assert list_checkpoints(tmp_path / "r" / "checkpoints")[-1][0] == result["steps"] == 3


def test_a_signal_behind_the_last_step_is_not_lost(tiny, tmp_path, monkeypatch):
    """While the last checkpoint is written: the validation that would follow is left out."""
    save = Trainer.save

    def interrupted(trainer):
        signal.raise_signal(signal.SIGTERM)
        save(trainer)

    monkeypatch.setattr(Trainer, "save", interrupted)
    result = run(tiny(train={"steps": 3}), tmp_path / "r")
    assert (result["status"], result["steps"]) == ("interrupted", 3)


def test_a_finished_run_asks_for_a_longer_budget(tiny, tmp_path):
    run(tiny(train={"steps": 3}), tmp_path / "r")
    with pytest.raises(ConfigError, match="has spent its budget at step 3"):
        resume(tmp_path / "r")
    result = resume(tmp_path / "r", minutes=0.005)
    assert result["status"] == "ok" and result["steps"] > 3
    config = RunDir(tmp_path / "r").read_config()
    assert config.config.train.minutes == 0.005 and config.config.train.steps is None
    assert config.origin("train.minutes") == "resume"


def test_time_budgets_count_what_was_spent_before(tiny, tmp_path):
    first = run(tiny(train={"minutes": 0.01}), tmp_path / "r")
    second = resume(tmp_path / "r", minutes=0.02)
    assert first["clock"]["buckets"]["train"] < second["clock"]["buckets"]["train"] < 1.9
    assert second["clock"]["total"] > first["clock"]["total"]


def test_a_run_killed_between_its_last_step_and_its_result_still_gets_one(tiny, tmp_path):
    whole = run(tiny(train={"steps": 3}), tmp_path / "r")
    (tmp_path / "r" / "result.json").unlink()
    again = resume(tmp_path / "r")
    assert again["status"] == "ok" and again["val_loss"] == whole["val_loss"]


def test_only_the_newest_checkpoints_are_kept(tiny, tmp_path):
    run(tiny(train={"steps": 7}, checkpoint={"every": 2, "keep": 3}), tmp_path / "r")
    assert [step for step, _ in list_checkpoints(tmp_path / "r" / "checkpoints")] == [4, 6, 7]


def damage_truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def damage_tamper(path: Path) -> None:
    file = path / "state.json"
    file.write_bytes(file.read_bytes().replace(b'"timed_steps": 5', b'"timed_steps": 9'))


def damage_remove(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


def damage_pickle(path: Path) -> None:
    import pickle

    (path / "model.safetensors").write_bytes(pickle.dumps({"evil": os.getcwd}))


@pytest.mark.parametrize("damage", [damage_truncate, damage_tamper, damage_remove, damage_pickle])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny, tmp_path, damage):
    plan = tiny(train={"steps": 6}, checkpoint={"every": 3})
    run(plan, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "r")
    damage(tmp_path / "r" / "checkpoints" / "step_6")
    (tmp_path / "r" / "result.json").unlink()
    seen = Recorder()
    resume(tmp_path / "r", seen)
    assert len(seen.notes) == 1 and "step_6" in seen.notes[0] and "Falling back" in seen.notes[0]
    assert [line["step"] for line in seen.lines] == [4, 5, 6]
    assert_same_run(tmp_path / "whole", tmp_path / "r", 6)


def test_when_no_checkpoint_is_intact_nothing_is_guessed(tiny, tmp_path):
    run(tiny(train={"steps": 4}, checkpoint={"every": 2}), tmp_path / "r")
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    for _, path in list_checkpoints(tmp_path / "r" / "checkpoints"):
        damage_truncate(path)
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is intact"):
        resume(tmp_path / "r", steps=8)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_that_is_replaced_is_never_missing(tmp_path, monkeypatch):
    """Stopped between the two renames, the old one counts; written again, nothing of it is left."""
    rename = Path.rename

    def stop(path, target):
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(path, target)

    def save(value):
        save_checkpoint(tmp_path, Checkpoint(3, {"model": {"w": torch.tensor([value])}}, {}), keep=2)

    def held():
        ((step, path),) = list_checkpoints(tmp_path)
        return step, load_checkpoint(path).tensors["model"]["w"].item()

    save(1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stop)
        save(2.0)
    assert held() == (3, 1.0)
    save(3.0)
    assert held() == (3, 3.0) and [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_changed_data_is_refused(tiny, tmp_path, corpus):
    mine = tmp_path / "mine.bin"
    mine.write_bytes(corpus.read_bytes())
    run(tiny(train={"steps": 2}, data={"path": str(mine)}), tmp_path / "r")
    mine.write_bytes(bytes(reversed(corpus.read_bytes())))
    with pytest.raises(CheckpointError, match="is not the data this run began with"):
        resume(tmp_path / "r", steps=4)


def test_two_processes_never_train_one_run(tiny, tmp_path):
    child = start_child(tiny(train={"steps": 100000}), tmp_path / "r")
    try:
        wait_for(child, "step 1\n")
        assert RunDir(tmp_path / "r").status() == "running"
        with pytest.raises(RnnLabError, match="another process is training this run"):
            resume(tmp_path / "r")
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_full_disk_keeps_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    from rnn_lab.train import checkpoint

    real = checkpoint.write_bytes_atomic

    def full(path: Path, data: bytes) -> None:
        if "step_4" in str(path) and "optimizer" in str(path):
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        run(tiny(train={"steps": 6}, checkpoint={"every": 2}), tmp_path / "r")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "r" / "checkpoints").iterdir()] == ["step_2"]
    assert json.loads((tmp_path / "r" / "result.json").read_text())["status"] == "failed"
    run(tiny(train={"steps": 6}, checkpoint={"every": 2}), tmp_path / "whole")
    resume(tmp_path / "r")
    assert_same_run(tmp_path / "whole", tmp_path / "r", 6)


def test_a_config_edited_into_nonsense_is_named(tiny, tmp_path):
    run(tiny(train={"steps": 2}), tmp_path / "r")
    config = tmp_path / "r" / "config.toml"
    config.write_text(config.read_text().replace("batch_size", "batch_sise"))
    with pytest.raises(ConfigError, match=r"train\.batch_sise: unknown key .*Did you mean 'batch_size'"):
        resume(tmp_path / "r", steps=4)


def test_automatic_checkpoints_follow_the_clock(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rnn_lab.train.loop.AUTO_CHECKPOINT_SECONDS", 0.0)
    run(tiny(train={"steps": 3}, checkpoint={"keep": 9}), tmp_path / "r")
    assert [step for step, _ in list_checkpoints(tmp_path / "r" / "checkpoints")] == [1, 2, 3]


OPTIMIZERS = [
    {"name": "muon8bit", "aux_8bit": True, "warmup_steps": 4, "stochastic_rounding": True},
    {"name": "galore_muon", "bits": 8, "galore_rank": 8, "galore_update_freq": 4, "galore_force": True},
    {"name": "galore_adamw", "galore_rank": 8, "galore_update_freq": 4, "galore_force": True},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=[each["name"] for each in OPTIMIZERS])
def test_optimizers_of_matrices_go_on_exactly(tiny, tmp_path, optimizer):
    def plan(steps):
        return tiny(model={"name": "e1", "dim": 64}, optimizer=optimizer, train={"steps": steps})

    observer = Recorder()
    result = run(plan(9), tmp_path / "whole", observer)
    run(plan(6), tmp_path / "parts")
    resume(tmp_path / "parts", steps=9)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 9)
    state = result["optimizer_state"]
    assert state["bytes"] == state["predicted_bytes"] > 0
    assert any(note.startswith("routing: layers.*.W_x.weight [2 of") for note in observer.notes)
