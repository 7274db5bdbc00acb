"""What becomes of jobs that end, crash, hang, diverge, run out of memory, or lose their place."""

import json
import os
import shutil
import signal
from collections import namedtuple

import pytest
from rnn_lab.errors import ConfigError, RnnLabError, RunError
from rnn_lab.lab.local import gpu_places
from rnn_lab.lab.outcome import judge
from rnn_lab.lab.series import SeriesDir

from .conftest import Recorder, job, plan_of


def test_one_bad_run_stops_no_other(lab):
    seen = Recorder()
    scheduler = lab.run(lab.begin(a="crash", b="nan", c="kill", d="ok"), seen)
    assert lab.states() == {"a": "failed", "b": "diverged", "c": "failed", "d": "done"}
    reasons = {name: lab.record(name)["reason"] for name in "abcd"}
    assert reasons["a"] == "exit code 1: RuntimeError: planted" and reasons["b"] == "step 4: loss nan"
    assert reasons["c"].startswith("killed by signal 9") and reasons["d"] is None
    assert len(seen.notes) == 3 and not scheduler.interrupted
    attempt = lab.record("a")["attempts"][0]
    assert attempt["exit_code"] == 1 and attempt["seconds"] > 0 and attempt["place"].startswith("cpu")
    assert attempt["command"][:2] == ["rnn-lab", "fit"] and attempt["command"][-1].endswith("runs/a-s42")
    assert [(row.job.label, row.state, row.line.get("step")) for row in seen.rows][3] == ("d", "done", 10)


def test_no_more_runs_at_once_than_places(lab):
    most = []
    seen = Recorder(lambda rows: most.append([row.place for row in rows if row.state == "running"]))
    lab.run(lab.begin(a="ok", b="ok", c="ok", d="ok", e="ok"), seen)
    assert set(lab.states().values()) == {"done"}
    assert max(map(len, most)) == 2 and all(len(set(places)) == len(places) for places in most)


def test_a_hung_run_is_ended_though_it_ignores_sigterm(lab):
    lab.run(lab.begin(a="hang", b="ok"), stall=5.0, executor=lab.executor(grace=0.3))
    assert lab.states() == {"a": "timeout", "b": "done"}
    assert "no sign of life" in lab.record("a")["reason"] and lab.record("a")["attempts"][0]["exit_code"] == 137


def test_memory_is_retried_once_with_half_the_micro_batch(lab):
    lab.run(lab.begin(a="oom ok", b="oom oom ok"))
    assert lab.states() == {"a": "done", "b": "oom"}
    first, second = lab.record("a")["attempts"]
    assert first["changes"] == {} and second["changes"] == {"train.grad_accum": [1, 2]}
    assert "train.grad_accum=2" in second["command"] and "train.grad_accum=2" not in first["command"]
    assert "grad_accum = 2" in (lab.path / "runs/a-s42/config.toml").read_text()
    assert "grad_accum = 1" in (lab.path / "attempts/a-s42.1/config.toml").read_text()
    assert len(lab.record("b")["attempts"]) == 2


def test_resume_repeats_what_failed_and_nothing_else(lab):
    lab.run(lab.begin(a="crash ok", b="nan ok", c="kill ok", d="ok crash"))
    lab.resume()
    assert lab.states() == {"a": "done", "b": "diverged", "c": "done", "d": "done"}
    assert [len(lab.record(name)["attempts"]) for name in "abcd"] == [2, 1, 2, 1]
    # The killed run had a checkpoint and went on; the crashed one had none and began anew, its folder kept.
    assert lab.record("c")["attempts"][1]["command"][:2] == ["rnn-lab", "resume"]
    assert lab.record("a")["attempts"][1]["command"][:2] == ["rnn-lab", "fit"]
    assert len((lab.path / "attempts/a-s42.1/metrics.jsonl").read_text().splitlines()) == 3


def test_an_interrupt_ends_runs_with_a_checkpoint_and_resume_goes_on(lab):
    def stop(rows):
        if rows[0].state == "running" and rows[0].line.get("step"):
            os.kill(os.getpid(), signal.SIGINT)

    series = lab.begin(a="slow ok", b="ok")
    scheduler = lab.run(series, Recorder(stop), executor=lab.executor(slots=1))
    assert scheduler.interrupted and lab.record("a")["state"] == "pending" and "b" not in lab.states()
    assert lab.record("a")["attempts"][0]["exit_code"] == 130 and (lab.path / "runs/a-s42/checkpoints/step_5").is_dir()
    lab.resume()
    assert lab.states() == {"a": "done", "b": "done"}
    assert lab.record("a")["attempts"][1]["command"][1] == "resume"


def test_two_schedulers_on_one_folder(lab):
    series = lab.begin(a="ok")
    with pytest.raises(RnnLabError, match=rf"another scheduler works on this series \(pid {os.getpid()} on .* since"):
        SeriesDir.open(lab.path)
    with pytest.raises(ConfigError, match="is already a series: add --resume"):
        SeriesDir.create(lab.path, plan_of(job("z")))
    lab.run(series)
    SeriesDir.open(lab.path).unlock()


def test_a_folder_that_is_no_series(lab, tmp_path):
    with pytest.raises(ConfigError, match="is no series"):
        SeriesDir.open(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        SeriesDir.create(tmp_path, plan_of(job("a")))


def test_a_full_disk_starts_nothing_and_loses_nothing(lab, monkeypatch):
    usage = namedtuple("usage", "total used free")
    series = lab.begin(a="ok", b="ok")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 2**20))
        with pytest.raises(RnnLabError, match=r"only 1 MiB are free .* go on with --resume"):
            lab.run(series)
    assert lab.states() == {}
    lab.resume()
    assert lab.states() == {"a": "done", "b": "done"}


def test_a_disk_that_fills_up_while_jobs_run(lab, monkeypatch):
    def full(path, text):
        if path.name == "b-s42.json":
            raise OSError(28, "No space left on device")
        real(path, text)

    from rnn_lab.lab import series as module

    real = module.write_text_atomic
    begun = lab.begin(a="slow ok", b="ok")
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_text_atomic", full)
        with pytest.raises(RnnLabError, match=r"b-s42\.json: cannot be written: No space left on device"):
            lab.run(begun)
    assert lab.states() == {"a": "pending"}, "what ran was ended and can go on"
    lab.resume()
    assert lab.states() == {"a": "done", "b": "done"}


def test_a_gpu_that_disappears_costs_no_run(lab):
    gone = {"1"}
    executor = lab.executor(places=gpu_places(["0", "1"]), answers=lambda gpu: gpu not in gone)
    lab.run(lab.begin(a="ok", b="refuse ok", c="ok", d="ok"), executor=executor)
    assert set(lab.states().values()) == {"done"}
    first, second = lab.record("b")["attempts"]
    assert (first["place"], first["lost"]) == ("gpu 1", "gpu 1 does not answer any more")
    assert second["place"] == "gpu 0" and second["lost"] is None


def test_the_last_gpu_disappears(lab):
    executor = lab.executor(places=gpu_places(["0"]), answers=lambda gpu: False)
    with pytest.raises(RnnLabError, match="no place is left to run on: gpu 0 does not answer any more"):
        lab.run(lab.begin(a="kill ok", b="ok"), executor=executor)
    assert lab.states() == {"a": "pending"}
    lab.resume()
    assert lab.states() == {"a": "done", "b": "done"}


def test_a_finished_run_that_was_edited_is_named_and_left_alone(lab):
    lab.run(lab.begin(a="ok", b="crash ok"))
    result = lab.path / "runs/a-s42/result.json"
    text = result.read_text()
    result.write_text(text.replace("2.0", "1.0"))
    lab.resume()
    assert lab.states() == {"a": "failed", "b": "done"} and len(lab.record("a")["attempts"]) == 1
    assert "result.json was changed after the run ended: restore it, or remove" in lab.record("a")["reason"]
    result.write_text(text)
    lab.resume()
    assert lab.states() == {"a": "done", "b": "done"}


def test_a_finished_run_that_was_removed_runs_again_once_its_record_is_removed_too(lab):
    lab.run(lab.begin(a="ok"))
    shutil.rmtree(lab.path / "runs/a-s42")
    lab.resume()
    assert lab.states() == {"a": "failed"}
    (lab.path / "jobs/a-s42.json").unlink()
    lab.resume()
    assert lab.states() == {"a": "done"}


def test_a_strangers_run_is_not_taken_for_the_jobs(lab):
    lab.run(lab.begin(a="ok", b="ok"))
    (lab.path / "jobs/a-s42.json").unlink()
    config = lab.path / "runs/a-s42/config.toml"
    config.write_text(config.read_text().replace("seed = 42", "seed = 7"))
    lab.resume()
    assert "holds a run of e61 with seed 7, and the plan says e61 with seed 42" in lab.record("a")["reason"]


@pytest.mark.parametrize("text", ["{", "[]", '{"jobs": [{"name": "a"}]}', "null"])
def test_a_damaged_plan(lab, text):
    lab.begin(a="ok").unlock()
    (lab.path / "series.json").write_text(text)
    with pytest.raises(RunError, match=r"series\.json: damaged or edited .*: restore it from a copy"):
        lab.resume()


@pytest.mark.parametrize("text", ["", '{"state": "done"}', "[1]"])
def test_a_damaged_job_file(lab, text):
    lab.run(lab.begin(a="ok"))
    (lab.path / "jobs/a-s42.json").write_text(text)
    with pytest.raises(RunError, match=r"a-s42\.json: damaged or edited: .*: restore it, or remove it"):
        lab.resume()
    (lab.path / "jobs/a-s42.json").unlink()
    lab.resume()
    assert lab.record("a")["state"] == "done" and lab.record("a")["attempts"] == [], "the run's folder told"


def test_an_old_result_does_not_speak_for_a_new_attempt(lab):
    lab.run(lab.begin(a="oom oom refuse"))
    (lab.path / "runs/a-s42/checkpoints/step_3").mkdir(parents=True)
    lab.resume()
    assert lab.states() == {"a": "failed"} and "torch sees 0 CUDA devices" in lab.record("a")["reason"]


def test_a_damaged_result_of_an_unfinished_job_is_not_believed(lab):
    lab.run(lab.begin(a="kill ok"))
    (lab.path / "runs/a-s42/result.json").write_text("[]")
    lab.resume()
    assert lab.states() == {"a": "done"}


@pytest.mark.parametrize(
    ("code", "result", "log", "state", "says"),
    [
        (0, {"status": "ok"}, "", "done", None),
        (0, None, "", "failed", "without a result.json"),
        (1, None, "noise\nerror: unknown model 'x'\nmore", "failed", "exit code 1: unknown model 'x'"),
        (1, None, "", "failed", "exit code 1: no message"),
        (1, {"status": "failed", "error": "No space left"}, "", "failed", "exit code 1: No space left"),
        (1, {"status": "oom", "error": "out of memory"}, "", "oom", "out of memory"),
        (3, {"status": "diverged", "error": "step 4"}, "", "diverged", "step 4"),
        (130, {"status": "interrupted"}, "", "failed", "interrupted from outside"),
        (139, None, "", "failed", "killed by signal 11"),
    ],
)
def test_exit_codes_and_results_are_judged(code, result, log, state, says):
    assert judge(code, result, log)[0] == state
    assert judge(code, result, log)[1] == says if says is None else says in judge(code, result, log)[1]


def test_who_killed_a_run_is_not_guessed():
    said = judge(137, None, "")[1]
    assert said == "killed by signal 9: by somebody, or by the system, whose log then says so (out of memory)"


def test_a_job_file_says_what_readers_are_promised(lab):
    lab.run(lab.begin(a="ok"))
    record = json.loads((lab.path / "jobs/a-s42.json").read_text())
    assert set(record) == {"name", "state", "reason", "attempts", "changes", "sums"}
    assert set(record["attempts"][0]) >= {"command", "started", "seconds", "exit_code", "reason", "changes"}
    assert (lab.path / "logs/a-s42.1.log").is_file()
