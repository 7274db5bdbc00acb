"""A protocol on a local Ray of three workers, one of which is killed in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rnn_lab.comparison.records import read_series

pytest.importorskip("ray", reason="ray is not installed (the extra rnn-lab-core[ray])")

CLI = [sys.executable, "-m", "rnn_lab_cli"]
SETTINGS = [
    "--models", "e1,e61,mingru,minlstm", "--seeds", "1", "--steps", "110", "--gpus", "none", "--slots", "3",
    "--executor", "ray", "-x", "address=local", "-o", "train.seq_len=16", "-o", "eval.tokens=64",
    "-o", "checkpoint.every=10", "-o", "log.trackers=[]",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shared", ["auto", "no"])
def test_a_killed_worker_loses_nothing_and_runs_nothing_twice(tmp_path, shared):
    out = tmp_path / "s"
    run = [*CLI, "protocol", "run", "micro", *SETTINGS, "-x", f"shared={shared}", "--out", str(out)]
    env = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "RAY_TMPDIR": "/tmp"}
    (tmp_path / "scratch").mkdir()
    driver = subprocess.Popen([*run, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    half = out / "runs" if shared == "auto" else tmp_path / "scratch"
    until = time.monotonic() + 300
    while not (victim := next((path for path in half.rglob("e1-s42/metrics.jsonl") if _lines(path) > 30), None)):
        assert driver.poll() is None and time.monotonic() < until, driver.communicate()[1]
        time.sleep(0.02)
    os.kill(_worker_of(victim.parent), signal.SIGKILL)
    told, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert {job["state"] for job in json.loads(told)["jobs"]} == {"done"}
    found = {path.stem: json.loads(path.read_text()) for path in out.glob("jobs/*.json")}
    first, second = found.pop("e1-s42")["attempts"]
    assert "vanished" in first["lost"] and second["lost"] is None
    assert second["command"][1] == ("resume" if shared == "auto" else "fit")
    assert all(len(job["attempts"]) == 1 for job in found.values()), "nothing else ran twice"
    for path in out.glob("runs/*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == list(range(1, 111)), "no step lost, none twice"
    series = read_series(out)
    assert [run.status for run in series.runs] == ["ok"] * 4 and len({run.chain for run in series.runs}) == 1
    report = subprocess.run([*CLI, "report", str(out)], capture_output=True, text=True, check=False)
    assert report.returncode == 0 and (out / "report.json").is_file(), report.stderr
    if shared == "no":
        left = [path for path in (tmp_path / "scratch").rglob("metrics.jsonl") if path.parent.name != "e1-s42"]
        assert not left and not list(out.glob("runs/*/checkpoints"))


def _lines(path):
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def _worker_of(folder):
    """Process of the Ray worker that runs what trains in `folder`: the parent of its guard."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_text().split("\0")
            if "rnn_lab.lab.guard" in command and str(folder) in command:
                return int(re.match(r"\d+ \(.*\) \S (\d+)", (process / "stat").read_text(), re.DOTALL)[1])
    raise AssertionError(f"nothing trains in {folder}")
