"""verify-report: one changed digit, wherever it is, is found and named."""

import json
import random
import re

import pytest
from rnn_lab.errors import RunError
from rnn_lab.report.tensorboard import FILE, FOLDER, write_text
from rnn_lab.report.verify import uncovered, verify
from rnn_lab.report.write import HTML, JSON, MARKDOWN

from .folders import copy


@pytest.fixture(scope="module")
def series(reported, tmp_path_factory):
    """A copy that tests change and put back."""
    return copy(reported, tmp_path_factory.mktemp("edited") / "s")


@pytest.fixture
def edited(series):
    """`edited(path)`: write text there, and the old text after the test."""
    before = {}

    def edit(path, text):
        before.setdefault(path, path.read_text())
        path.write_text(text)

    yield edit
    for path, text in before.items():
        path.write_text(text)


def other_digit(text, at):
    return f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"


def test_an_untouched_report_says_what_its_runs_say(series):
    assert verify(series) == []


@pytest.mark.parametrize("name", [JSON, MARKDOWN, HTML])
@pytest.mark.parametrize("seed", range(3))
def test_any_digit_of_the_report(series, edited, name, seed):
    text = (series / name).read_text()
    at = random.Random(seed).choice([match.start() for match in re.finditer(r"\d", text)])
    edited(series / name, other_digit(text, at))
    found = verify(series)
    assert found and all(place.startswith(name) for place in found)
    if name != JSON:
        assert f"line {text[:at].count(chr(10)) + 1}:" in found[0]


def test_a_figure_of_the_facts_is_named(series, edited):
    facts = json.loads((series / JSON).read_text())
    facts["standings"][1]["loss"]["value"] += 0.001
    edited(series / JSON, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    (found,) = verify(series)
    assert found.startswith("report.json: standings[1].loss.value is ")


def test_all_three_edited_alike(series, edited):
    for name in (JSON, MARKDOWN, HTML):
        edited(series / name, (series / name).read_text().replace("2.7077", "2.6077"))
    assert {re.match(r"[\w.]+", place)[0] for place in verify(series)} >= {MARKDOWN, HTML}


@pytest.mark.parametrize("file", ["metrics.jsonl", "result.json", "env.json", "config.toml"])
def test_any_digit_of_a_run(series, edited, file):
    path = series / "runs" / "e68-s2" / file
    text = path.read_text()
    at = random.Random(file).choice([match.start() for match in re.finditer(r"(?<=[\d.])\d(?=\d)|\d\b", text)])
    edited(path, other_digit(text, at))
    assert f"run e68-s2: {file} was changed since the report was written" in verify(series)[0]


def test_any_change_of_plan_and_jobs(series, edited):
    table = json.loads((series / "series.json").read_text())
    edited(series / "series.json", json.dumps(table | {"args": ["fit"]}))
    table = json.loads((series / "jobs" / "e61-s1.json").read_text())
    edited(series / "jobs" / "e61-s1.json", json.dumps(table | {"attempts": [{"command": ["x"], "exit_code": 0}]}))
    changed = [f"{file} was changed since the report was written" for file in ("jobs/e61-s1.json", "series.json")]
    assert verify(series)[:2] == changed


def test_a_run_that_is_gone_or_new(series, reported, tmp_path):
    fewer = copy(reported, tmp_path / "s")
    (fewer / "runs" / "gru-s1" / "result.json").unlink()
    assert verify(fewer)[0].startswith("run gru-s1: result.json is gone")


def test_white_space_and_ends_of_lines_count(series, edited):
    edited(series / JSON, (series / JSON).read_text() + " ")
    assert verify(series)
    edited(series / JSON, json.dumps(json.loads((series / JSON).read_text())))
    assert verify(series)[0].startswith(f"{JSON}, line 1")


def test_not_a_report(series, edited, tmp_path):
    edited(series / JSON, "{}")
    assert verify(series) == ["report.json: not the facts of a report (KeyError: 'allowed')"]
    with pytest.raises(RunError, match="rnn-lab report"):
        verify(series, tmp_path)


def test_other_versions_have_to_be_accepted(series, edited):
    for name in (JSON, MARKDOWN, HTML):
        text = re.sub(r'(matplotlib"?:? "?)[\d.]+\d', r"\g<1>3.0.1", (series / name).read_text())
        edited(series / name, text)
    before = (series / FOLDER / FILE).read_bytes()
    write_text(series, (series / MARKDOWN).read_text())
    assert any("made_with.matplotlib" in place for place in verify(series))
    assert verify(series, other_versions=True) == []
    edited(series / MARKDOWN, (series / MARKDOWN).read_text().replace("2.7077", "2.6077"))
    assert verify(series, other_versions=True)
    (series / FOLDER / FILE).write_bytes(before)


def test_the_copy_for_tensorboard(series):
    file = series / FOLDER / FILE
    before = file.read_bytes()
    at = before.index(b"2.7077")
    file.write_bytes(before[:at] + b"3" + before[at + 1 :])
    (series / FOLDER / "events.out.tfevents.1.x").write_text("")
    edited, added = verify(series)
    assert edited.startswith(f"report/{FILE}: ") and "3.7077" in edited and "where the runs give" in edited
    assert added.startswith("report/events.out.tfevents.1.x is no file of the report")
    (series / FOLDER / "events.out.tfevents.1.x").unlink()
    file.unlink()
    assert verify(series) == [f"report/{FILE} is missing: `rnn-lab report` writes it"]
    file.write_bytes(before)
    assert verify(series) == []


def test_what_is_not_covered_is_named(series):
    run = series / "runs" / "e61-s1"
    for path in (series / "logs" / "e61-s1.1.log", run / "events.out.tfevents.7.host", run / "checkpoints" / "a" / "b"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert uncovered(series) == {"logs/": 1, "runs/*/checkpoints/": 1, "runs/*/events.out.tfevents.*": 1}


def test_a_single_run_is_a_folder_of_runs(series):
    run = series / "runs" / "e61-s1"
    (run / "events.out.tfevents.7.host").write_text("")
    assert uncovered(run, series / "elsewhere")["events.out.tfevents.*"] == 1
