"""rnn-lab report and verify-report."""

import json

import pytest
from rnn_lab_cli.main import main

from .folders import copy


@pytest.fixture
def series(reported, tmp_path):
    return copy(reported, tmp_path / "s")


def test_report_and_verify_report(series, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["report", str(series), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "E61 has the lowest Last100" in said.out and "verify-report" in said.err
    assert sorted(path.name for path in out.iterdir()) == ["REPORT.md", "report", "report.html", "report.json"]
    assert main(["verify-report", str(series), "--out", str(out)]) == 0
    page = out / "REPORT.md"
    page.write_text(page.read_text().replace("2.7077", "2.7078"))
    assert main(["verify-report", str(series), "--out", str(out)]) == 1
    assert "REPORT.md, line" in capsys.readouterr().out
    assert main(["verify-report", str(series), "--out", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False and found["differences"]


def test_json_is_the_facts(series, capsys):
    assert main(["report", str(series), "--json"]) == 0
    assert capsys.readouterr().out == (series / "report.json").read_text()


def test_what_is_allowed_is_kept_and_verified(series, capsys):
    assert main(["report", str(series), "--allow", "params"]) == 0
    assert json.loads((series / "report.json").read_text())["allowed"] == ["params"]
    assert main(["verify-report", str(series)]) == 0


def test_errors_say_what_to_do(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert "holds no runs" in capsys.readouterr().err
    assert main(["verify-report", str(tmp_path)]) == 2
    assert "`rnn-lab report` writes it" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(series, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", str(series), "--out", str(tmp_path / "file")]) == 2
    assert "cannot write the report there" in capsys.readouterr().err


def test_a_report_needs_its_libraries(series, monkeypatch, capsys):
    monkeypatch.setattr("rnn_lab.report.find_spec", lambda name: None if name == "matplotlib" else object())
    assert main(["report", str(series)]) == 2
    assert "pip install 'rnn-lab-core[report]'" in capsys.readouterr().err
