"""The E3 suite as a user runs it, with one configuration that crashes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "rnn_lab_cli"]
FAULTS = ["--plugins-dir", str(Path(__file__).parents[1] / "faults")]

pytestmark = pytest.mark.slow


def cli(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([*CLI, *args], capture_output=True, text=True, check=False, timeout=600, env=dict(os.environ))


def test_a_crash_leaves_a_complete_report(tmp_path):
    out = tmp_path / "suite"
    asked = ["bench", "e3", "--tiny", "--steps", "22", "--configs", "full,galore2", "--instead", "galore2=crash"]
    asked += ["--out", str(out), "--quiet", "-o", "log.trackers=[]", "-o", "eval.tokens=64"]
    done = cli(*FAULTS, *asked)
    assert done.returncode == 1, done.stderr
    assert "C4\teverything together" in done.stdout and "go on with: rnn-lab" in done.stderr
    facts = json.loads((out / "e3.json").read_text())
    assert [row["status"] for row in facts["rows"]] == ["1 ok", "1 failed", "1 ok"]
    assert {claim["id"] for claim in facts["claims"]} == {"C1", "C1 (loss)", *(f"C{i}" for i in range(2, 8))}
    assert len(facts["items"]) == 7 and all(claim["verdict"] for claim in facts["claims"])
    state = [part for part in facts["memory"] if part["part"].startswith("state")]
    assert state and all(part["predicted"] == part["measured"] for part in state)
    (failure,) = facts["failures"]
    assert failure["name"] == "galore2-s42" and "killed by signal 9" in failure["reason"] and failure["log"]
    page = (out / "REPORT.md").read_text()
    for title in ("Claims", "Configurations", "Losses", "Speed and memory", "Memory", "Checklist", "Diagnostics",
                  "Failures", "Curves", "Limits", "Environment", "Again"):  # fmt: skip
        assert f"\n## {title}\n" in page
    assert "o Baseline  x E3_Full" in page and "rnn-lab fit --config DIR/suite/full.toml" in page
    html = (out / "report.html").read_text()
    assert "<svg" in html and "<script" not in html and "http" not in html.replace("http://www.w3.org", "")
    # The same runs give the same bytes, and a suite goes on with the options that it began with only.
    assert cli("bench", "report", str(out), "--json").stdout == (out / "e3.json").read_text()
    assert (out / "REPORT.md").read_text() == page
    other = cli(*FAULTS, *asked, "--resume", "--target", "1M")
    assert other.returncode == 2 and "of a suite with other options" in other.stderr
    assert cli("fit", "--config", str(out / "suite" / "full.toml"), "--dry-run").returncode == 0


def test_the_plan_is_shown_and_nothing_begins(tmp_path):
    asked = ["bench", "e3", "--tiny", "--seeds", "2", "--dry-run", "--json", "--out", str(tmp_path / "s")]
    plan = json.loads(cli(*asked).stdout)
    assert len(plan["jobs"]) == 10 and not (tmp_path / "s").exists()
    assert str(tmp_path / "s" / "suite" / "baseline.toml") in plan["jobs"][0]["args"]
