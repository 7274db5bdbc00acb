"""The E3 suite as a user runs it, with one configuration that crashes."""

import json
from pathlib import Path

import pytest
from rnn_lab_cli.main import main

FAULTS = ["--plugins-dir", str(Path(__file__).parents[1] / "faults")]

pytestmark = pytest.mark.slow


def test_a_crash_leaves_a_complete_report(tmp_path, capfd, monkeypatch):
    from rnn_lab.registry import registry
    from rnn_lab_cli.plugin_commands import plugin_commands

    monkeypatch.setenv("RNN_LAB_PLUGINS_DIR", "")  # so that it is taken away again
    out = tmp_path / "suite"
    asked = ["bench", "e3", "--tiny", "--steps", "22", "--configs", "galore2", "--instead", "galore2=crash"]
    asked += ["--out", str(out), "--quiet", "--gpus", "none", "-o", "log.trackers=[]", "-o", "eval.tokens=64"]
    try:
        registry.cache_clear()
        plugin_commands.cache_clear()
        assert main([*FAULTS, *asked, "--dry-run", "--json"]) == 0
        plan = json.loads(capfd.readouterr().out)
        assert [job["name"] for job in plan["jobs"]] == ["baseline-s42", "galore2-s42"] and not out.exists()
        assert str(out / "suite" / "galore2.toml") in plan["jobs"][1]["args"]
        assert main([*FAULTS, *asked]) == 1
        told = capfd.readouterr()
        assert "C4\teverything together" in told.out and "go on with: rnn-lab" in told.err
        _complete(out)
        # The same runs give the same bytes, and a suite goes on with the options that it began with only.
        before = {name: (out / name).read_bytes() for name in ("e3.json", "REPORT.md", "report.html")}
        assert main(["bench", "report", str(out)]) == 0
        assert before == {name: (out / name).read_bytes() for name in before}
        assert main(["verify-report", str(out)]) == 0
        (out / "e3.json").write_bytes(before["e3.json"].replace(b'"last": 5', b'"last": 6'))
        capfd.readouterr()
        assert main(["verify-report", str(out)]) == 1 and "e3.json, line" in capfd.readouterr().out
        assert main([*FAULTS, *asked, "--resume", "--target", "1M"]) == 2
        assert "of a suite with other options" in capfd.readouterr().err
        assert main(["fit", "--config", str(out / "suite" / "baseline.toml"), "--dry-run"]) == 0
    finally:
        registry.cache_clear()
        plugin_commands.cache_clear()


def _complete(out: Path) -> None:
    facts = json.loads((out / "e3.json").read_text())
    assert [row["status"] for row in facts["rows"]] == ["1 ok", "1 failed"]
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
    assert "o Baseline" in page
    (again,) = [line for line in page.splitlines() if " fit " in line and "baseline.toml" in line]
    assert "--protocol DIR/suite/e3.toml --config DIR/suite/baseline.toml" in again
    assert "train.seed=42" in again and "--out" not in again and str(out) not in again
    html = (out / "report.html").read_text()
    assert "<svg" in html and "<script" not in html and "http" not in html
