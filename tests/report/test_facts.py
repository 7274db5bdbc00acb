"""What a report says follows from the runs."""

import json
import math

import numpy as np
import pytest
from compare.folders import curve, write_run
from rnn_lab.comparison.compare import Group, compare_runs
from rnn_lab.comparison.records import read_series
from rnn_lab.errors import RunError
from rnn_lab.report.build import facts
from rnn_lab.report.facts import settled
from rnn_lab.report.published import agreement
from rnn_lab.report.ranking import front, groups
from rnn_lab.report.render import markdown
from rnn_lab.report.write import MARKDOWN, pages

from .folders import OFFSETS, complete, copy, losses, write_job, write_series


@pytest.fixture(scope="module")
def report(reported):
    return facts(reported)


def test_the_ranking_is_by_the_mean_over_seeds(report, reported):
    assert [one.label for one in report.standings] == ["E61", "E68", "E1", "GRU"]
    best = report.standings[0]
    means = [losses(reported / "runs" / name)[-100:].mean() for name in ("e61-s1", "e61-s2")]
    assert best.loss.value == pytest.approx(np.mean(means), rel=1e-6)
    half = 12.706 * np.std(means, ddof=1) / math.sqrt(2)
    assert best.loss.high - best.loss.value == pytest.approx(half, rel=1e-3)
    assert [round(one.gap, 3) for one in report.standings] == pytest.approx(list(OFFSETS.values()), abs=2e-3)


def test_groups_and_noise(report):
    assert [one.group for one in report.standings] == [1, 1, 2, 3]
    assert [one.below_noise for one in report.standings] == [False, True, False, False]
    assert "no difference was shown from E68" in report.findings[0]
    assert "better than E1 and GRU" in report.findings[0]


def test_a_difference_below_the_noise_floor_begins_no_group(reported, tmp_path):
    series = copy(reported, tmp_path / "s")
    plan = json.loads((series / "series.json").read_text())
    (series / "series.json").write_text(json.dumps(plan | {"noise": {"model": "e61", "n": 3, "sd": 0.1, "floor": 0.2}}))
    assert [one.group for one in facts(series).standings] == [1, 1, 1, 2]


def test_a_group_is_what_was_not_shown_to_differ_from_its_head():
    differ = {("a", "c"), ("c", "e")}
    assert groups("abcde", lambda head, label: (head, label) in differ) == [1, 1, 2, 2, 3]


def test_the_front_holds_what_nobody_beats_in_both():
    assert front([(1.0, 10.0), (1.1, 9.0), (1.2, 20.0), (1.0, None), (1.0, 10.0)]) == [True, False, True, False, True]
    assert front([(1.0, 10.0), (1.1, 10.0), (1.0, 9.0)]) == [True, False, False]


def test_verdicts_and_reversals_are_those_of_compare(report, reported):
    assert {(one.a, one.b) for one in report.reversals if one.decided} == {("E68", "GRU")}
    runs = {run.name: run for run in read_series(reported).runs}
    e61, e1 = (Group(name, tuple(runs[f"{name}-s{seed}"] for seed in (1, 2))) for name in ("e61", "e1"))
    judged = compare_runs(e1, e61)
    (said,) = [v for v in report.verdicts if (v.a, v.b, v.axis) == ("E61", "E1", "steps")]
    assert said.verdict == judged.verdict == "better"
    assert (said.effect, said.low, said.high) == pytest.approx((judged.effect, *judged.interval), rel=1e-6)
    assert said.half == pytest.approx((said.high - said.low) / 2, rel=1e-3)


def test_curves_end_where_the_runs_end_and_at_their_loss(report, reported):
    assert {curve.axis for curve in report.curves} == {"steps", "tokens", "flops", "seconds"}
    (one,) = [curve for curve in report.curves if (curve.label, curve.axis) == ("E1", "steps")]
    last = [losses(reported / "runs" / name)[-report.window :].mean() for name in ("e1-s1", "e1-s2")]
    assert one.at[-1] == 400
    assert one.loss[-1] == pytest.approx(np.mean(last), rel=1e-6)
    assert (one.low[-1], one.high[-1]) == (pytest.approx(min(last), rel=1e-6), pytest.approx(max(last), rel=1e-6))


def test_milestones_are_at_equal_amounts(report):
    assert [m.at for m in report.milestones if m.axis == "steps"] == [(100.0, 200.0, 300.0, 400.0)]
    seconds = next(m for m in report.milestones if m.axis == "seconds")
    assert seconds.at[-1] == pytest.approx(399 * 0.005)
    assert seconds.losses["E1"][-1] > seconds.losses["GRU"][-1]


def test_failures_are_rows(report):
    assert [(run.name, run.status) for run in report.failures] == [
        ("crash-s1", "failed"), ("big-s1", "oom"), ("late-s1", "pending"),
    ]  # fmt: skip
    assert report.failures[0].problem == "killed by signal 11"
    assert "train.grad_accum" in report.failures[1].attempts[1]


def test_published_figures_stand_beside_ours(report):
    ours = {row.label: row.run for row in report.published}
    assert ours == {"E61": "E61", "E68": "E68", "E1": "E1", "Mamba2": None}
    (loss,) = [one for one in report.agreements if one.of == "loss"]
    assert (loss.n, loss.swapped, loss.low) == (3, ("E1 and E61", "E1 and E68"), None)
    assert loss.tau == pytest.approx(-1 / 3)


def test_kendall_against_a_worked_example():
    """Fieller, Hartley and Pearson: tanh(atanh tau ± 1.96 sqrt(0.437 / 6)) over 10 pairs."""
    theirs = list(range(10))
    ours = [0, 1, 2, 3, 9, 8, 7, 6, 5, 4]
    swaps = 15
    pairs = [(str(i), float(a), float(b)) for i, a, b in zip(range(10), theirs, ours, strict=True)]
    found = agreement("d", "loss", pairs)
    assert found.tau == pytest.approx(1 - 2 * swaps / 45)
    assert len(found.swapped) == swaps
    half = 1.959964 * math.sqrt(0.437 / 6)
    assert found.low == pytest.approx(math.tanh(math.atanh(found.tau) - half))
    assert found.high == pytest.approx(math.tanh(math.atanh(found.tau) + half))


def test_perfect_agreement_still_has_an_interval_below_one():
    found = agreement("d", "loss", [(str(i), float(i), float(i)) for i in range(6)])
    assert found.tau == pytest.approx(1) and found.high == found.tau
    assert 0 < found.low < 1


def test_what_else_differs_is_named(reported, tmp_path):
    series = copy(reported, tmp_path / "s")
    env = series / "runs" / "e1-s1" / "env.json"
    env.write_text(json.dumps(json.loads(env.read_text()) | {"gpu": "A100"}))
    (found,) = [one for one in facts(series).confounds if one.key == "gpu"]
    assert found.values["A100"] == "e1-s1"
    report = facts(series)
    refused = [v for v in report.verdicts if v.verdict == "refused"]
    assert {v.axis for v in refused} == {"seconds"}
    assert all("A100" in v.refusal for v in refused)
    allowed = facts(series, ["clock"])
    assert not [v for v in allowed.verdicts if v.verdict == "refused"]


def test_a_plain_folder_of_runs_is_enough(tmp_path):
    for seed in (1, 2):
        complete(write_run(tmp_path / f"a{seed}", curve(150, seed), seed=seed))
    complete(write_run(tmp_path / "b", curve(150, 1) + 0.2, model="e1"))
    report = facts(tmp_path)
    assert [(one.label, len(one.runs)) for one in report.standings] == [("e61", 2), ("e1", 1)]
    assert report.standings[1].loss.method == "within-run only (one seed)"
    assert report.title == "e61, e1"


def test_runs_without_last100_count_for_nothing(tmp_path):
    complete(write_run(tmp_path / "short", curve(60)))
    report = facts(tmp_path)
    assert report.standings == ()
    assert report.failures[0].problem == "too short: it has no Last100"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no runs"):
        facts(tmp_path / "empty")


def test_floats_are_cut_once():
    assert settled((0.123456789, {"a": 1234567.89}, 3)) == (0.1234568, {"a": 1234568.0}, 3)


def test_a_damaged_run_is_a_row(reported, tmp_path):
    series = copy(reported, tmp_path / "s")
    (series / "runs" / "e1-s2" / "result.json").write_text("{")
    report = facts(series)
    (row,) = [run for run in report.failures if run.name == "e1-s2"]
    assert row.status == "damaged"
    assert row.problem.startswith("runs/e1-s2/result.json: cannot be read as JSON")
    assert next(one for one in report.standings if one.label == "E1").runs == ("e1-s1",)


@pytest.mark.parametrize(
    ("file", "key", "said"),
    [
        ("metrics.jsonl", "loss", "metrics.jsonl, line 7: bpb"),
        ("metrics.jsonl", "tokens", "metrics.jsonl, line 7: tokens"),
        ("metrics.jsonl", "seconds", "metrics.jsonl, line 8: the training clock goes back"),
        ("result.json", "last100", "result.json: last100"),
        ("result.json", "tokens_per_s", "result.json: tokens_per_s"),
        ("result.json", "params", "result.json: params"),
        ("result.json", "val_loss", "result.json: val_bpb"),
        ("result.json", "steps", "holds 400 steps, but result.json says 401"),
    ],
)
def test_a_figure_edited_by_hand_contradicts_another(reported, tmp_path, file, key, said):
    series = copy(reported, tmp_path / "s")
    path = series / "runs" / "e61-s1" / file
    if file == "result.json":
        table = json.loads(path.read_text())
        table[key] = table[key] + 1 if isinstance(table[key], int) else table[key] * 1.001
        path.write_text(json.dumps(table))
    else:
        lines = path.read_text().splitlines()
        line = json.loads(lines[6])
        line[key] = line[key] + 1
        path.write_text("\n".join([*lines[:6], json.dumps(line), *lines[7:]]) + "\n")
    (row,) = [run for run in facts(series).failures if run.name == "e61-s1"]
    assert said in row.problem


def test_a_clock_that_somebody_made_faster_contradicts_the_sum_of_its_seconds(reported, tmp_path):
    series = copy(reported, tmp_path / "s")
    path = series / "runs" / "e61-s1" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"seconds": line["seconds"] / 10}) + "\n" for line in lines))
    (row,) = [run for run in facts(series).failures if run.name == "e61-s1"]
    assert "s of training, but the clock of metrics.jsonl ends at 0.399" in row.problem


def test_sums_kept_by_the_scheduler_are_held_against_the_files(reported, tmp_path):
    series = copy(reported, tmp_path / "s")
    write_job(series, "e61-s1", "done", sums={"metrics.jsonl": "0" * 64})
    (row,) = [run for run in facts(series).failures if run.name == "e61-s1"]
    assert row.problem == "edited or damaged after it ended: metrics.jsonl"


def test_no_noise_floor_and_one_seed(tmp_path):
    series = write_series(tmp_path / "s", seeds=1, noise=None)
    report = facts(series)
    assert report.noise is None
    assert not any(one.below_noise for one in report.standings)
    assert any("one seed" in text for text in report.findings)


def test_a_run_that_brought_no_steps_is_ranked_and_stops_no_other(tmp_path):
    for name, shift in (("a", 0.0), ("b", 0.2)):
        complete(write_run(tmp_path / name, curve(200) + shift, model=name))
    known = {"status": "ok", "model": "old", "external": True, "steps": 1000, "last100": 1.5}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "result.json").write_text(json.dumps(known))
    report = facts(tmp_path)
    assert [one.label for one in report.standings] == ["old", "a", "b"]
    found = {(one.a, one.b): one for one in report.verdicts if one.axis == "steps"}
    assert found["a", "b"].verdict == "better" and found["a", "b"].at == 200
    assert found["old", "a"].verdict == "inconclusive" and found["old", "a"].effect is None
    assert report.findings[0].endswith("1.5000 nats per byte; it could not be judged against a and b.")
    assert found["old", "a"].notes == ("old has no loss for every step along steps",)
    page = markdown(report).splitlines()
    (row,) = [line for line in page if line.startswith("| old | a | training loss at equal steps")]
    assert row.endswith("| old has no loss for every step along steps |")


def test_what_nobody_recorded_is_unknown_and_neither_equal_nor_other(tmp_path):
    known = {"status": "ok", "external": True, "steps": 1000, "last100": 1.5, "stated": {"batch_size": 32}}
    for name in ("old", "older"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({**known, "model": name}))
    report = facts(tmp_path)
    assert report.confounds == () and report.settings == {"train.batch_size": "32"}
    (unknown,) = report.unrecorded
    assert unknown.runs == "old, older"
    assert {"data.fingerprint", "optimizer.lr", "bytes consumed", "kernels", "software and machine"} <= {*unknown.what}
    page = pages(report)[MARKDOWN]
    assert "as far as it was recorded" in page and "- old, older: " in page
    complete(write_run(tmp_path / "ours", curve(200)))
    report = facts(tmp_path)
    assert [one.key for one in report.confounds] == ["train.batch_size"]
    assert report.settings["optimizer.lr"] == "0.0003 (where recorded)" and len(report.unrecorded) == 1


def test_a_model_has_one_name_everywhere(reported):
    page = (reported / MARKDOWN).read_text()
    (failed,) = [line for line in page.splitlines() if line.startswith("| crash-s1 |") and "signal" in line]
    assert failed.split(" | ")[1] == r"\<b\>crash-s1\|$x^" == page.split("\n| crash-s1 | ")[2].split(" | ")[0]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_protocol_that_compares_validation_losses_is_ranked_by_them(tmp_path, seeds):
    series = write_series(tmp_path / "s", seeds=seeds, metric="val_loss", noise=None)
    for seed in range(1, seeds + 1):  # the best by training loss is the worst by validation loss
        path = series / "runs" / f"e61-s{seed}" / "result.json"
        loss = 4.0 + seed * 1e-3
        path.write_text(json.dumps(json.loads(path.read_text()) | {"val_loss": loss, "val_bpb": loss / math.log(2)}))
    report = facts(series)
    assert [one.label for one in report.standings] == ["E68", "E1", "GRU", "E61"]
    found = {(one.a, one.b, one.axis): one for one in report.verdicts}
    assert found["E1", "E61", "steps"].verdict == "worse"
    said = found["E1", "E61", "val_loss"]
    assert said.effect == pytest.approx(report.standings[1].val_loss - report.standings[3].val_loss, rel=1e-5)
    if seeds == 1:
        assert said.verdict == "inconclusive" and said.low is None and {one.group for one in report.standings} == {1}
        assert "nothing can be said" in " ".join(report.findings)
    else:
        assert (said.verdict, said.method) == ("better", "paired seeds, 2 seeds")
        assert report.standings[3].group > 1
    page = pages(report)[MARKDOWN]
    assert "validation loss at the end, over seeds" in page and "| training loss at equal steps |" in page


def test_the_head_says_what_the_runs_were_given_not_what_the_protocol_says(report, reported, tmp_path):
    assert (report.description, report.budgets) == ("A small series", ("1,000 steps",))
    series = copy(reported, tmp_path / "s")
    plan = json.loads((series / "series.json").read_text())
    overrides = ["train.steps=110", 'data.path="/x"']
    (series / "series.json").write_text(json.dumps(plan | {"overrides": overrides}))
    for run in (series / "runs").iterdir():
        path = run / "config.toml"
        path.write_text(path.read_text().replace("[train]", "[train]\nsteps = 110\nminutes = 0.5"))
    changed = facts(series)
    assert changed.description == (
        "Changed from the protocol: train.steps = 110. As written the protocol is: A small series"
    )
    assert changed.budgets == ("110 steps or 0.5 minutes",)
    assert "Each run was given 110 steps or 0.5 minutes." in markdown(changed)


def test_the_head_names_the_data_and_how_often_it_was_read(reported, tmp_path):
    series = copy(reported, tmp_path / "s")
    (one,) = facts(series).data
    assert (one.name, one.bytes, one.read) == ("d", 100_000, (400 * 64, 400 * 64))
    assert one.passes == (0.256, 0.256) and one.runs.startswith("e61-s1, e61-s2")
    path = series / "runs" / "e1-s1" / "result.json"
    known = json.loads(path.read_text())
    known["data"] = {"path": "/far/other.bin", "fingerprint": "cd" * 32, "bytes": 200_000}
    path.write_text(json.dumps(known))
    report = facts(series)
    other = next(one for one in report.data if one.runs == "e1-s1")
    assert (other.name, other.passes) == ("other.bin", (0.128, 0.128)) and len(report.data) == 2
    assert "Data of e1-s1: other.bin, 200,000 bytes, fingerprint cdcd" in markdown(report)


def test_one_failure_is_singular_and_a_step_is_whole(tmp_path):
    for name, n in (("a", 110), ("b", 110), ("short", 60)):
        complete(write_run(tmp_path / name, curve(n), model=name))
    report = facts(tmp_path)
    assert report.findings[-1] == "1 run of 3 counts for nothing: short."
    assert [m.at for m in report.milestones if m.axis == "steps"] == [(27.0, 55.0, 82.0, 110.0)]


def test_a_gap_within_the_noise_floor_shows_nothing(report, reported):
    assert "E68 is within the noise floor of 0.0050 of the best: such a gap shows nothing." in report.findings
    assert "A smaller gap shows nothing." in (reported / MARKDOWN).read_text()


def test_seconds_that_do_not_sum_to_the_total_are_a_contradiction(reported, tmp_path):
    series = copy(reported, tmp_path / "s")
    path = series / "runs" / "e61-s1" / "result.json"
    known = json.loads(path.read_text())
    known["clock"]["total"] += 1
    path.write_text(json.dumps(known))
    (row,) = [run for run in facts(series).failures if run.name == "e61-s1"]
    assert "the clock's buckets sum to" in row.problem
