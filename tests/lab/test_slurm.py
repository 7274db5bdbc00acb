"""Batch jobs: the script, the whole life of jobs under a stand-in for SLURM, and what an earlier scheduler left."""

import os
import signal
import stat
import sys
import time
from itertools import count
from pathlib import Path

import pytest
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.lab.executor import Setting, Task

from . import fake_slurm
from .conftest import FAKE, Recorder

pytest.importorskip("submitit", reason="submitit is not installed (the extra rnn-lab-core[slurm])")

from rnn_lab.lab import on_slurm
from rnn_lab.lab.on_slurm import SLURM

NUMBERS = count(1001, 100)
"""First job number of each test's cluster: submitit remembers those that have ended."""


@pytest.fixture
def slurm(lab, tmp_path, monkeypatch):
    """`slurm()` is the executor of the lab's series over a fake cluster in `tmp_path / "cluster"`."""
    cluster, bin_ = tmp_path / "cluster", tmp_path / "bin"
    cluster.mkdir()
    bin_.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        script = bin_ / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_slurm.__file__} {name} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(cluster))
    monkeypatch.setattr(on_slurm, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(fake_slurm, "HOME", cluster)

    def make(**options):
        setting = Setting(lab.path, tuple(FAKE[1:]), "none", 2, {"minutes": 60, "partition": "short", **options})
        return SLURM.open(setting)

    make.cluster, make.first = cluster, next(NUMBERS)
    (cluster / "first").write_text(str(make.first))
    yield make
    for pid in cluster.glob("*.pid"):
        fake_slurm._end(pid.stem, "CANCELLED", signal.SIGKILL)


def task_of(lab, name="a"):
    return Task(f"{name}-s42", ("fit",), lab.path / f"runs/{name}-s42", lab.path / f"logs/{name}-s42.1.log")


def test_the_dry_run_is_the_script(lab):
    options = {"minutes": 240, "partition": "gpu", "cpus": 8, "constraint": "h100", "setup": ["module load cuda"]}
    script = SLURM.preview(Setting(lab.path, (), options=options | {"extra": {"reservation": "lab"}}), task_of(lab))
    lines = script.splitlines()
    wanted = (
        "job-name=rnn-lab-a-s42 partition=gpu time=240 gpus-per-node=1 cpus-per-task=8 constraint=h100 nodes=1 "
        "ntasks-per-node=1 signal=USR2@180 reservation=lab no-requeue"
    )
    assert {f"#SBATCH --{flag}" for flag in wanted.split()} <= set(lines) and lines[0] == "#!/bin/bash"
    assert "module load cuda" in lines and any(line.startswith("srun ") for line in lines)
    on_cpu = SLURM.preview(Setting(lab.path, (), "none", options={"minutes": 5}), task_of(lab))
    assert "gpus" not in on_cpu and not lab.path.exists()
    spaced = Setting(lab.path / "$(id) x", (), "none", options={"minutes": 5})
    assert f" '{lab.path}/$(id) x/" in SLURM.preview(spaced, task_of(lab))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({}, "-x minutes=240"),
        ({"options": {"minutes": 5, "partion": "x"}}, "-x partion: unknown key. Did you mean 'partition'"),
        ({"options": {"minutes": 5}, "gpus": "1"}, "SLURM chooses the GPUs"),
        ({"options": {"minutes": 5}}, "Start it where sbatch and srun are on the PATH"),
    ],
)
def test_what_cannot_be_submitted_is_said_before_anything_is_written(lab, setting, says, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=says):
        SLURM.open(Setting(lab.path, (), **setting))
    assert not lab.path.exists()


def test_jobs_from_the_queue_to_their_results(lab, slurm):
    def lose(rows):
        if rows[1].line.get("step") and rows[1].attempt == 1 and rows[1].state == "running":
            number = (lab.path / "slurm/b-s42.id").read_text().strip()
            if (slurm.cluster / f"{number}.state").read_text() == "RUNNING":
                fake_slurm.fail(number)

    lab.run(lab.begin(a="oom ok", b="keep ok", c="crash"), Recorder(lose), executor=slurm())
    assert lab.states() == {"a": "done", "b": "done", "c": "failed"}
    assert (lab.starts("a"), lab.starts("b"), lab.starts("c")) == (["fit", "fit"], ["fit", "resume"], ["fit"])
    first, second = lab.record("b")["attempts"]
    assert "ended as NODE_FAIL on node1" in first["lost"] and second["lost"] is None
    assert lab.record("a")["attempts"][1]["changes"] == {"train.grad_accum": [1, 2]}
    assert lab.record("c")["reason"] == "exit code 1: RuntimeError: planted"
    script = (slurm.cluster / f"{slurm.first}.script").read_text()
    assert "#SBATCH --partition=short" in script and "#SBATCH --no-requeue" in script
    assert not list(lab.path.glob("slurm/*.id"))


def test_an_interrupt_asks_jobs_to_end_and_resume_goes_on(lab, slurm):
    def stop(rows):
        if rows[0].line.get("step") and rows[0].state == "running":
            os.kill(os.getpid(), signal.SIGINT)

    scheduler = lab.run(lab.begin(a="slow ok"), Recorder(stop), executor=slurm())
    assert scheduler.interrupted and lab.record("a")["attempts"][0]["exit_code"] == 130
    assert (lab.path / "runs/a-s42/checkpoints/step_5").is_dir()
    assert not (slurm.cluster / "ended").exists(), "a job that runs is asked by its file, not by scancel"
    lab.resume(executor=slurm())
    assert lab.states() == {"a": "done"} and lab.starts("a") == ["fit", "resume"]


def test_what_waits_in_the_queue_is_cancelled(lab, slurm):
    (slurm.cluster / "full").touch()

    def stop(rows):
        if rows[0].place and rows[0].state == "running":
            os.kill(os.getpid(), signal.SIGINT)

    assert lab.run(lab.begin(a="ok"), Recorder(stop), executor=slurm()).interrupted
    assert (slurm.cluster / f"{slurm.first}.state").read_text().startswith("CANCELLED") and lab.states() == {
        "a": "pending"
    }


def test_jobs_of_a_killed_scheduler_are_ended_before_they_run_again(lab, slurm):
    series = lab.begin(a="slow ok")
    left = slurm()
    log = lab.path / "logs/a-s42.0.log"
    left.submit(task := Task("a-s42", ("fit", "-o", "train.seed=42"), task_of(lab).folder, log))
    while not left.poll(task.name).line.get("step"):
        time.sleep(0.05)
    executor = slurm()  # of a scheduler that comes after the death of the first
    executor.recover(["a-s42"])
    assert (lab.path / "runs/a-s42/result.json").is_file(), "it ended in order"
    lab.run(series, executor=executor)
    assert lab.states() == {"a": "done"} and lab.starts("a") == ["fit", "resume"]


def test_a_job_that_slurm_ends_early_writes_its_checkpoint(lab, slurm):
    """The signal before the time limit goes to every process of the job; so does scancel's."""

    def announce(rows):
        if rows[0].line.get("step") and rows[0].attempt == 1 and not announced:
            announced.append(True)
            for process in fake_slurm._family(int((slurm.cluster / f"{slurm.first}.pid").read_text()))[1:]:
                os.kill(process, signal.SIGUSR2)

    announced = []
    lab.run(lab.begin(a="slow ok"), Recorder(announce), executor=slurm())
    assert lab.states() == {"a": "done"} and lab.starts("a") == ["fit", "resume"]
    assert "the job's time was up" in lab.record("a")["attempts"][0]["lost"]


def test_a_queue_that_refuses_is_an_error(lab, slurm):
    executor = slurm()
    Path(os.environ["PATH"].split(os.pathsep)[0], "sbatch").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(RnnLabError, match="SLURM did not take it"):
        lab.run(lab.begin(a="ok"), executor=executor)
