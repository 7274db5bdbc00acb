"""What `protocol run` and `noise` share: begin or take up a series, run it, say how it ended."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.errors import ConfigError
from rnn_lab.registry import registry

from rnn_lab_cli.output import emit_json, note, table
from rnn_lab_cli.series_options import setting_of
from rnn_lab_cli.series_progress import COLUMNS, cells, counts, watching_series

if TYPE_CHECKING:
    from rnn_lab.lab.executor import ExecutorKind
    from rnn_lab.lab.plan import SeriesPlan
    from rnn_lab.lab.scheduler import Row, Scheduler
    from rnn_lab.lab.series import SeriesDir

DONE, FAILED, DIVERGED, INTERRUPTED = 0, 1, 3, 130


def run_series(
    out: Path, options: Mapping[str, Any], plan: "Callable[[], SeriesPlan]"
) -> "tuple[Scheduler, SeriesDir]":
    """Run the series in `out` to its end: a new one from `plan`, or with `--resume` the one that is there.

    The folder is let go at the end.

    Raises:
        ConfigError: the folder does not fit, the series there is another than `plan` gives, or a GPU is not there.
        RnnLabError: it cannot go on; what ran is kept.
    """
    from rnn_lab.lab.scheduler import Scheduler
    from rnn_lab.lab.series import SeriesDir

    if not options["resume"]:
        SeriesDir.check_vacant(out)
    executor = _kind(options).open(setting_of(out, options))  # before the folder is claimed
    try:
        series = _taken_up(out, plan) if options["resume"] else _begun(out, plan, executor.devices())
        try:
            stall = options["stall"] or series.read_plan()["stall_minutes"]
            with watching_series(quiet=options["quiet"]) as watcher:
                scheduler = Scheduler(series, executor, watcher, stall=60 * stall)
                scheduler.run()
        finally:
            series.unlock()
    finally:
        executor.close()
    return scheduler, series


def _begun(out: Path, make_plan: "Callable[[], SeriesPlan]", devices: Sequence[str]) -> "SeriesDir":
    from rnn_lab.lab.noise import stored_noise
    from rnn_lab.lab.series import SeriesDir
    from rnn_lab.train.rundir import default_command

    plan = make_plan()
    for text in plan.notes:
        note(f"warning: {text}")
    return SeriesDir.create(
        out, plan, command=default_command(), version=version(), noise=stored_noise(plan, devices),
        stall_minutes=plan.protocol.series.stall_minutes,
    )  # fmt: skip


def _taken_up(out: Path, make_plan: "Callable[[], SeriesPlan]") -> "SeriesDir":
    """The series that is there, if it is the one that the options describe."""
    from rnn_lab.lab.series import SeriesDir

    series = SeriesDir.open(out)
    try:
        was, would = series.read_plan(), make_plan().table()
        if was["protocol"] != would["protocol"]:
            raise ConfigError(f"{out} is a series of protocol {was['protocol']}, not {would['protocol']}")
        if was["fingerprint"] != would["fingerprint"]:
            raise ConfigError(
                f"protocol {was['protocol']} was changed since {out} began: restore it, or begin a new series"
            )
        if was["jobs"] != would["jobs"]:
            raise ConfigError(
                f"{out} was planned by other options: repeat those it began with (series.json: "
                f"{shlex.join(was['command'])})"
            )
    except BaseException:
        series.unlock()
        raise
    return series


def version() -> str:
    """Version of rnn-lab."""
    from importlib import metadata

    return metadata.version("rnn-lab-core")


def exit_code(scheduler: "Scheduler") -> int:
    """Of a series: the worst of its jobs."""
    states = {record.state for record in scheduler.records.values()}
    if scheduler.interrupted:
        return INTERRUPTED
    if states & {"failed", "timeout", "oom", "pending"}:
        return FAILED
    return DIVERGED if "diverged" in states else DONE


def show_series(scheduler: "Scheduler", out: Path, *, as_json: bool, rerun: str, after: str = "rnn-lab report") -> None:
    """Every job and how it ended; what to do next, on stderr: `after` is what reports on the folder."""
    rows = scheduler.rows()
    if as_json:
        emit_json({"series": str(out), "jobs": [_as_dict(row) for row in rows]})
    else:
        table(COLUMNS, [cells(row) for row in rows])
    note(f"{counts(rows)}; {out}")
    if scheduler.interrupted or {row.state for row in rows} - {"done", "diverged"}:
        note(f"go on with: {rerun}")
    else:
        note(f"next: {after} {shlex.quote(str(out))}")


def _as_dict(row: "Row") -> dict[str, Any]:
    job = row.job
    line = {key: row.line.get(key) for key in ("step", "loss", "last100", "tokens_per_s")}
    return {
        "name": job.name, "label": job.label, "model": job.model, "preset": job.preset, "seed": job.seed,
        "state": row.state, "reason": row.reason, "attempts": row.attempt, "seconds": row.seconds, **line,
    }  # fmt: skip


def show_plan(plan: "SeriesPlan", out: Path, options: Mapping[str, Any]) -> None:
    """Every job with its size and command, and what the executor would hand over of the first, for `--dry-run`."""
    from rnn_lab.lab.executor import Task

    first = plan.jobs[0]
    series = out.resolve()
    task = Task(first.name, first.args, series / "runs" / first.name, series / "logs" / f"{first.name}.1.log")
    handed = _kind(options).preview(setting_of(out, options), task)
    if options["as_json"]:
        emit_json({**plan.table(), "executor": options["executor"], "handed_over": handed})
        return
    rows = [[job.name, job.part, job.params, job.command()] for job in plan.jobs]
    table(("run", "part", "params", "command"), rows)
    if handed is not None:
        click.echo(f"\n{handed}".rstrip())
        note(f"that is {first.name}; the other {len(plan.jobs) - 1} runs differ in their names and arguments")
    for text in plan.notes:
        note(f"warning: {text}")


def _kind(options: Mapping[str, Any]) -> "ExecutorKind":
    kind: ExecutorKind = registry().load("executors", options["executor"])
    return kind


def command_again(argv: list[str]) -> str:
    """The command line of this process with `--resume`."""
    return shlex.join([*argv, *([] if "--resume" in argv else ["--resume"])])
