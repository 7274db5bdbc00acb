"""A task lives no longer than its scheduler, and never twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.lab import local
from rnn_lab.lab.executor import Task
from rnn_lab.lab.guard import BUSY

from tests.processes import alive, wait_for

from .conftest import Recorder

GUARD = [sys.executable, "-m", "rnn_lab.lab.guard"]
SCHEDULER = """
import sys
from pathlib import Path
from rnn_lab.lab.local import LocalExecutor, cpu_places
from rnn_lab.lab.scheduler import Scheduler
from rnn_lab.lab.series import SeriesDir
from tests.lab.conftest import FAKE, Recorder
path = Path(sys.argv[1])
executor = LocalExecutor(FAKE, cpu_places(2), path / "jobs", grace=5.0)
Scheduler(SeriesDir.open(path), executor, Recorder(), stall=60.0, poll=0.05).run()
"""
ROOT = Path(__file__).resolve().parents[2]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def sleeper(folder: Path, code: str = "") -> list[str]:
    """A command that says its process id, then sleeps for minutes."""
    text = f"import os, pathlib, signal, time; {code}pathlib.Path({str(folder / 'pid')!r}).write_text(str(os.getpid()))"
    return [sys.executable, "-c", f"{text}; time.sleep(300)"]


def begin(folder: Path, command: list[str], grace: float = 5.0) -> tuple[subprocess.Popen, int]:
    guard = subprocess.Popen([*GUARD, str(folder / "lock"), str(grace), *command], stdin=subprocess.PIPE)
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    return guard, int((folder / "pid").read_text())


def test_the_exit_code_is_the_commands(tmp_path):
    with subprocess.Popen(
        [*GUARD, str(tmp_path / "l"), "1", sys.executable, "-c", "exit(3)"], stdin=subprocess.PIPE
    ) as guard:
        assert guard.wait() == 3
    with subprocess.Popen(
        [*GUARD, str(tmp_path / "l"), "1", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"],
        stdin=subprocess.PIPE,
    ) as guard:
        assert guard.wait() == 128 + signal.SIGKILL


def test_the_command_ends_when_the_other_end_of_stdin_closes(tmp_path):
    guard, pid = begin(tmp_path, sleeper(tmp_path))
    guard.stdin.close()
    assert guard.wait(10) == 128 + signal.SIGTERM and not alive(pid)


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    guard, pid = begin(tmp_path, sleeper(tmp_path, "signal.signal(15, signal.SIG_IGN); "), grace=0.3)
    guard.stdin.close()
    assert guard.wait(10) == 128 + signal.SIGKILL and not alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent-death signal")
def test_the_command_dies_with_a_killed_guard(tmp_path):
    guard, pid = begin(tmp_path, sleeper(tmp_path))
    guard.kill()
    guard.wait()
    guard.stdin.close()
    wait_for(lambda: not alive(pid), 5)


def test_one_lock_one_command(tmp_path):
    guard, _ = begin(tmp_path, sleeper(tmp_path))
    second = subprocess.run(
        [*GUARD, str(tmp_path / "lock"), "1", sys.executable, "-c", ""], stdin=subprocess.DEVNULL, check=False
    )
    assert second.returncode == BUSY
    guard.stdin.close()
    guard.wait(10)
    with subprocess.Popen(
        [*GUARD, str(tmp_path / "lock"), "1", sys.executable, "-c", ""], stdin=subprocess.PIPE
    ) as third:
        assert third.wait() == 0


def test_a_killed_scheduler_leaves_nothing_running_and_resume_goes_on(lab):
    series = lab.begin(a="slow ok", b="slow ok", c="ok")
    series.unlock()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    scheduler = subprocess.Popen([sys.executable, "-c", SCHEDULER, str(lab.path)], env=env)
    metrics = [lab.path / f"runs/{name}-s42/metrics.jsonl" for name in "ab"]
    wait_for(lambda: all(lines(path) >= 2 for path in metrics))
    scheduler.kill()
    scheduler.wait()
    assert {lab.record(name)["state"] for name in "ab"} == {"running"}, "what the killed one last knew"
    # Taken up at once: the old runs are waited for, have written checkpoints, and go on where they were.
    seen = Recorder()
    lab.resume(seen)
    assert lab.states() == {"a": "done", "b": "done", "c": "done"}
    assert {lab.record(name)["attempts"][1]["command"][1] for name in "ab"} == {"resume"}
    assert all((lab.path / f"runs/{name}-s42/checkpoints/step_5").is_dir() for name in "ab")


def test_a_run_that_somebody_else_trains_is_left_alone(lab):
    import fcntl

    lab.run(lab.begin(a="kill ok", b="ok"))
    with (lab.path / "runs/a-s42/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lab.resume()
        assert lab.states() == {"a": "failed", "b": "done"}
        assert "another process trains" in lab.record("a")["reason"]
    lab.resume()
    assert lab.states() == {"a": "done", "b": "done"}


def test_what_cannot_be_ended_is_named(lab, monkeypatch):
    import fcntl

    lab.begin(a="ok").unlock()
    (lab.path / "jobs").mkdir()
    monkeypatch.setattr(local, "MARGIN_SECONDS", 0.1)
    with (lab.path / "jobs/a-s42.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RnnLabError, match="job a-s42 still runs: end its process"):
            lab.resume(executor=lab.executor(grace=0.1))


def test_a_program_that_is_not_there(lab):
    executor = local.LocalExecutor(["/nowhere/rnn-lab"], local.cpu_places(1), lab.path / "jobs", grace=1.0)
    lab.run(lab.begin(a="ok"), executor=executor)
    assert lab.states() == {"a": "failed"} and "nowhere" in lab.record("a")["reason"]


def test_places(monkeypatch):
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [place.name for place in local.places(None, None)] == ["gpu 0", "gpu 1", "gpu 2"]
    (second,) = local.places("1", None)
    assert second.env == {"CUDA_VISIBLE_DEVICES": "1"} and second.args == ("--device", "cuda")
    slots = local.places("none", 2)
    assert [place.args for place in slots] == [("--device", "cpu")] * 2
    assert slots[0].env == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    assert local.places("GPU-8a,MIG-1", None)[1].env == {"CUDA_VISIBLE_DEVICES": "MIG-1"}
    for wrong in ("5", "0,0", "x", "GPU-8a,GPU-8a"):
        with pytest.raises(ConfigError, match=f"--gpus {wrong}: {wrong.split(',')[0]} is named twice or is not there"):
            local.places(wrong, None)
    with pytest.raises(ConfigError, match="--slots is for CPUs"):
        local.places("0", 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [place.name for place in local.places(None, None)] == ["gpu 2", "gpu 0"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert local.places(None, 3)[2].name == "cpu 2"
    for wrong in ("2", "GPU-8a"):
        with pytest.raises(ConfigError, match=f"{wrong} is named twice or is not there; there are: none"):
            local.places(wrong, None)


def test_runs_that_start_at_once_have_time_to_import(lab, monkeypatch):
    monkeypatch.delenv("RNN_LAB_PLUGIN_TIMEOUT", raising=False)
    lab.run(lab.begin(a="patient"))
    assert lab.states() == {"a": "done"}


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="asks for a GPU that is not there")
def test_a_gpu_that_is_not_there_does_not_answer():
    assert not local.gpu_answers("0")


def test_arguments_of_a_task_know_the_place_and_the_folder_last(tmp_path):
    task = Task("a", ("--plugins-dir", "x", "fit", "--model", "e61"), tmp_path, tmp_path / "log")
    assert task.arguments("F", ("--device", "cpu"))[2:] == ["fit", "--model", "e61", "--device", "cpu", "--out", "F"]
    again = Task("a", ("--plugins-dir", "x"), tmp_path, tmp_path / "log", resumes=True)
    assert again.arguments("F", ("--device", "cpu")) == ["--plugins-dir", "x", "resume", "F"]
