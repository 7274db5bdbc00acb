"""What a person sees of a series."""

import io
from dataclasses import replace

from rich.console import Console
from rich.live import Live
from rnn_lab.lab.plan import Job
from rnn_lab.lab.scheduler import Row
from rnn_lab_cli.series_progress import Lines, LiveTable, Quiet

JOB = Job("e61-s42", "e61", "e61", "main", "e61", None, 42, 1000, ("fit",))
OTHER = Job("e1-s42", "e1", "e1", "main", "e1", None, 42, 1000, ("fit",))
LINE = {"step": 120, "loss": 2.5, "last100": 2.25, "tokens_per_s": 1234.0}


def test_a_line_when_a_job_begins_and_when_it_ends(capsys):
    seen = Lines()
    running = Row(JOB, "running", "gpu 1", 1, 3.0, LINE)
    for rows in (
        [Row(JOB, "pending"), Row(OTHER, "pending")],
        [running, Row(OTHER, "pending")],
        [running, Row(OTHER, "pending")],
        [Row(JOB, "done", "gpu 1", 1, 9.0, LINE), Row(OTHER, "failed", "gpu 0", 1, 9.0, {}, "killed by signal 9")],
    ):
        seen.update(rows)
    assert capsys.readouterr().err.splitlines() == [
        "[0/2] e61-s42  running  gpu 1",
        "[2/2] e61-s42  done  gpu 1  last100 2.2500",
        "[2/2] e1-s42  failed  gpu 0",
    ]


def test_a_second_attempt_is_a_line_of_its_own(capsys):
    seen = Lines()
    seen.update([Row(JOB, "running", "cpu 0", 1)])
    seen.update([Row(JOB, "running", "cpu 0", 2)])
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_live_table_has_every_job_with_its_figures():
    stream = io.StringIO()
    console = Console(file=stream, width=160, force_terminal=True)
    with Live(console=console, refresh_per_second=1) as live:
        table = LiveTable(live)
        table.update([Row(JOB, "running", "gpu 1", 1, 90.0, LINE), Row(OTHER, "failed", "", 1, 1.0, {}, "x " * 99)])
        table.note("e1-s42: [failed]")
    text = stream.getvalue()
    assert "e61-s42" in text and "2.5000" in text and "1.5000" in text and "x x..." in text
    assert "e1-s42: [failed]" in text, "brackets are no markup"


def test_a_table_that_does_not_fit_keeps_what_runs_and_what_failed():
    stream = io.StringIO()
    rows = [Row(replace(JOB, name=f"done-{i}"), "done") for i in range(30)]
    rows += [Row(replace(JOB, name="bad"), "failed"), Row(replace(JOB, name="now"), "running")]
    with Live(console=Console(file=stream, width=160, height=12, force_terminal=True)) as live:
        LiveTable(live).update(rows)
    text = stream.getvalue()
    assert text.index("now") < text.index("bad") < text.index("done-0") and "done-20" not in text
    assert "1 running, 1 failed, 30 done" in text


def test_quiet_says_notes_only(capsys):
    Quiet().update([Row(JOB, "running")])
    Quiet().note("something")
    assert capsys.readouterr() == ("", "something\n")
