"""Run folders and series are read as they are, and what is damaged says where."""

import json

import numpy as np
import pytest
from rnn_lab.comparison.records import read_run, read_runs, read_series
from rnn_lab.errors import RunError
from rnn_lab_cli.main import main

from .folders import curve, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "a", curve(120))


def test_a_run_tells_all_that_its_folder_holds(run):
    record = read_run(run)
    assert (record.name, record.label, record.model, record.seed, record.params) == ("a", "e61", "e61", 1, 50_000)
    assert record.status == "ok" and record.clock["budget"] == "train" and not record.external
    assert record.config["train"]["batch_size"] == 4 and record.env["gpu"] == "H100"
    assert record.series("tokens")[-1] == 120 * 64 and np.isnan(record.series("mfu")).all()
    assert record.last100 == pytest.approx(curve(120)[-100:].mean(), rel=1e-12)
    assert read_run(write_run(run.parent / "short", curve(99))).last100 is None


def test_what_fit_writes_can_be_read(tmp_path):
    corpus = tmp_path / "bytes.bin"
    corpus.write_bytes(b"the quick brown fox \x1e" * 500)
    tiny = "--dim 16 --depth 1 --batch-size 2 --seq-len 16 --steps 3 -o eval.tokens=32 -o log.trackers=[] --quiet"
    out = tmp_path / "run"
    assert main(["fit", "--model", "e1", *tiny.split(), "--data", str(corpus), "--out", str(out)]) == 0
    record = read_run(out)
    assert record.series("step").tolist() == [1, 2, 3] and record.result["data"]["bytes"] > 0
    from rnn_lab.comparison.pairing import replayed, source_of

    assert replayed(source_of(record), 3) == record.chain
    assert replayed(source_of(record), 2) != record.chain


def test_a_crash_before_the_result_is_a_row(run):
    (run / "result.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "lo')
    record = read_run(run)
    assert record.status == "killed" and record.params is None and record.seed == 1
    assert len(record.series("loss")) == 120


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("result.json", '{"status": ', "result.json: cannot be read as JSON"),
        ("result.json", "[]", "holds no JSON object"),
        ("result.json", '{"status": "great", "model": "e61"}', "status = 'great'"),
        ("result.json", '{"status": "ok", "model": "e61", "params": "many"}', "params = 'many'"),
        ("result.json", '{"status": "ok", "model": "e1"}', "trains 'e61'"),
        ("config.toml", "[model]\nname = 'e61'\n[train]\nstepz = 1", "stepz"),
        ("env.json", "{", "env.json"),
    ],
)
def test_damaged_files_name_themselves_and_a_cure(run, file, text, said):
    (run / file).write_text(text)
    with pytest.raises(RunError, match="restore it from a copy") as caught:
        read_run(run)
    assert said in str(caught.value) and str(run / file) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        (5, '{"step": 7, "loss": 1.0}', "line 5: step 7 where step 5 belongs"),
        (5, '{"step": 5, "loss": NaN}', "line 5: loss = nan"),
        (5, '{"step": 5, "loss": "1"}', "line 5: loss = '1'"),
        (5, "torn", "line 5: not a line of metrics"),
        (120, None, "holds 119 steps, but result.json says 120"),
    ],
)
def test_edited_metrics_name_the_line(run, line, text, said):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError) as caught:
        read_run(run).series("loss")
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_folders_that_hold_no_run_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(RunError):
            read_runs(path)
        with pytest.raises(RunError, match="not a run"):
            read_run(path)


def series(tmp_path):
    jobs = [{"name": name, "label": name.upper(), "model": "e61", "seed": 1, "group": "g"} for name in "abc"]
    external = [{"label": "E1", "document": "d.md", "bpb": 2.0, "more": 1}]
    (tmp_path / "series.json").write_text(json.dumps({"protocol": "micro", "jobs": jobs, "external": external}))
    write_run(tmp_path / "runs" / "b", curve(120))
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "b.json").write_text(json.dumps({"state": "done", "attempts": []}))
    (tmp_path / "jobs" / "c.json").write_text(json.dumps({"state": "timeout", "attempts": []}))
    return tmp_path


def test_every_job_of_a_series_is_a_row_in_the_order_of_the_plan(tmp_path):
    found = read_series(series(tmp_path))
    assert [(run.name, run.label, run.status) for run in found.runs] == [
        ("a", "A", "pending"), ("b", "B", "ok"), ("c", "C", "timeout"),
    ]  # fmt: skip
    assert found.runs[1].group == "g" and found.runs[1].job["state"] == "done" and found.noise is None
    assert found.external[0].nats == pytest.approx(2 * np.log(2)) and found.meta["protocol"] == "micro"
    assert [run.name for run in read_runs(tmp_path)] == ["a", "b", "c"]


def test_a_job_that_was_killed_has_the_state_that_its_scheduler_saw(tmp_path):
    write_run(series(tmp_path) / "runs" / "c", curve(30))
    (tmp_path / "runs" / "c" / "result.json").unlink()
    assert read_series(tmp_path).runs[2].status == "timeout"


@pytest.mark.parametrize("plan", ['{"jobs": [{}]}', '{"jobs": 3}', "{}", '{"jobs": [], "external": [{"label": "x"}]}'])
def test_a_damaged_plan_is_refused(tmp_path, plan):
    (series(tmp_path) / "series.json").write_text(plan)
    with pytest.raises(RunError, match=r"series\.json: not the plan"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    ("file", "cure"), [("series.json", "move it away"), ("jobs/b.json", "remove it"), ("noise.json", "remove it")]
)
def test_the_cure_of_what_stands_beside_the_runs_works(tmp_path, file, cure):
    (series(tmp_path) / file).write_text("{")
    with pytest.raises(RunError, match=cure):
        read_runs(tmp_path)
    (tmp_path / file).unlink()
    assert [run.status for run in read_runs(tmp_path) if run.name == "b"] == ["ok"]
