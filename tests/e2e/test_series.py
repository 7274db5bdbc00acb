"""A series as a user runs it: planted faults, a killed scheduler, `--resume`, and the noise floor."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rnn_lab.comparison.records import read_series

CLI = [sys.executable, "-m", "rnn_lab_cli"]
FAULTS = ["--plugins-dir", str(Path(__file__).parents[1] / "faults")]
SETTINGS = [
    "--steps", "110", "--gpus", "none", "-o", "train.seq_len=16", "-o", "eval.tokens=64", "-o", "checkpoint.every=10",
    "-o", "log.trackers=[]",
]  # fmt: skip

pytestmark = pytest.mark.slow


def cli(*args: str, **env: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, **env}
    return subprocess.run([*CLI, *args], capture_output=True, text=True, check=False, timeout=600, env=environ)


def jobs(series: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(series.glob("jobs/*.json"))}


def test_faults_a_kill_and_resume(tmp_path):
    """The first run takes long enough to be killed in its middle, however busy the machine is."""
    out = tmp_path / "s"
    run = [*FAULTS, "protocol", "run", "micro", "--models", "slow,crash,nan,oom,mingru", "--seeds", "1"]
    run += ["--out", str(out), *SETTINGS]
    first = subprocess.Popen([*CLI, *run], stderr=subprocess.PIPE, text=True)
    half = out / "runs/slow-s42/metrics.jsonl"
    until = time.monotonic() + 300
    while not (half.exists() and half.read_bytes().count(b"\n") > 30):
        assert first.poll() is None and time.monotonic() < until, first.stderr.read()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stderr.close()
    second = cli(*run, "--resume", "--json")
    states = {job["name"]: job["state"] for job in json.loads(second.stdout)["jobs"]}
    assert states == {
        "slow-s42": "done", "crash-s42": "failed", "nan-s42": "diverged", "oom-s42": "done", "mingru-s42": "done",
    }, second.stderr  # fmt: skip
    assert second.returncode == 1 and "go on with: rnn-lab" in second.stderr
    found = jobs(out)
    assert [attempt["command"][3] for attempt in found["slow-s42"]["attempts"]] == ["fit", "resume"]
    assert found["oom-s42"]["attempts"][-1]["changes"] == {"train.grad_accum": [1, 2]}
    assert "killed by signal 9" in found["crash-s42"]["reason"]
    lines = [json.loads(line) for line in half.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 111)), "no step lost, none twice"
    series = read_series(out)
    assert {run.name: run.status for run in series.runs} == {
        "slow-s42": "ok", "crash-s42": "failed", "nan-s42": "diverged", "oom-s42": "ok", "mingru-s42": "ok",
    }  # fmt: skip
    ok = {run.name: run for run in series.runs if run.status == "ok"}
    assert len({run.chain for run in ok.values()}) == 1 and all(run.last100 for run in ok.values())
    assert [run.label for run in series.runs] == ["slow", "crash", "nan", "oom", "mingru"]
    # Nothing is left to do but what failed: finished runs stay as they are, to the byte.
    before = {name: (out / "runs" / name / "metrics.jsonl").read_bytes() for name in ok}
    cli(*run, "--resume")
    assert before == {name: (out / "runs" / name / "metrics.jsonl").read_bytes() for name in ok}
    assert len(jobs(out)["mingru-s42"]["attempts"]) == len(found["mingru-s42"]["attempts"])
    other = cli(*run, "--resume", "--seeds", "2")
    assert other.returncode == 2 and "was planned by other options" in other.stderr


def test_a_run_whose_disk_is_full_and_resume(tmp_path):
    out = tmp_path / "s"
    run = ["protocol", "run", "micro", "--models", "e61", "--seeds", "1", "--out", str(out), *SETTINGS]

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    full = subprocess.run([*CLI, *run], capture_output=True, text=True, check=False, preexec_fn=no_large_files)
    assert full.returncode == 1 and "File too large" in jobs(out)["e61-s42"]["reason"], full.stderr
    assert cli(*run, "--resume").returncode == 0
    assert read_series(out).runs[0].status == "ok" and len(jobs(out)["e61-s42"]["attempts"]) == 2


def test_the_noise_floor_is_carried_by_later_series(tmp_path):
    data = {"RNN_LAB_DATA": str(tmp_path / "data")}
    argv = ["noise", "--protocol", "micro", "--model", "e61", "--n", "2", "--out", str(tmp_path / "n"), *SETTINGS]
    measured = json.loads(cli(*argv, "--json", **data).stdout)
    assert measured["n"] == 2 and measured["floor"] > measured["sd"] > 0
    assert json.loads((tmp_path / "n/noise.json").read_text()) == measured
    run = ["protocol", "run", "micro", "--models", "llama", "--seeds", "1", "--out", str(tmp_path / "s"), *SETTINGS]
    assert cli(*run, "--quiet", **data).returncode == 0
    assert read_series(tmp_path / "s").noise == measured
