"""`rnn-lab runs`."""

import math
from pathlib import Path
from typing import Any

import click
from rnn_lab.errors import ConfigError, RnnLabError

from rnn_lab_cli.output import emit_json, json_option, note, table

COLUMNS = (
    "run", "status", "model", "params", "steps", "loss", "last100", "bpb", "val_bpb", "tokens_per_s",
)  # fmt: skip


@click.command()
@click.argument("folder", metavar="[DIR]", default="runs", type=click.Path(path_type=Path))
@json_option
def runs(folder: Path, as_json: bool) -> None:
    """List every run below DIR (default: runs), killed and broken ones too."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; `rnn-lab fit` makes runs/, or name another folder")
    from rnn_lab.comparison.records import find_runs

    rows = [run_row(path) for path in find_runs(folder)]
    if as_json:
        emit_json(rows)
    elif not rows:
        note(f"no runs below {folder}")
    else:
        table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
    for row in rows:
        if row["problem"] and not as_json:
            note(f"{row['run']}: {row['problem']}")


def run_row(path: Path) -> dict[str, Any]:
    """One run as `runs --json` prints it; `problem` says what is broken."""
    from rnn_lab.train.metrics import last_line
    from rnn_lab.train.rundir import RunDir

    row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "run": str(path), "status": "broken", "problem": None}
    try:
        imported = RunDir(path).read_result() or {}
        if imported.get("external"):
            return {**row, **{key: imported.get(key) for key in COLUMNS if key != "run"}, "status": "external"}
        run = RunDir.open(path)
        row["model"] = run.read_config().config.model.name
        if run.result.exists() and run.read_result() is None:
            raise ConfigError("result.json is damaged")
        status = run.status()
        known = run.read_result() or _so_far(last_line(run.metrics))
        row |= {key: known.get(key) for key in COLUMNS if key not in ("run", "status", "model")}
        row["status"] = status
    except (RnnLabError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        row["problem"] = str(error) or type(error).__name__
    return row


def _so_far(line: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run without a result, from its last line of metrics."""
    last100 = line.get("last100")
    bpb = None if last100 is None else last100 / math.log(2)
    return {**line, "steps": line.get("step"), "bpb": bpb}
