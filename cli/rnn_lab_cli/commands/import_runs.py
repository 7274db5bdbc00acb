"""`rnn-lab import`."""

from pathlib import Path
from typing import Any

import click
from rnn_lab.errors import ConfigError
from rnn_lab.registry import registry

from rnn_lab_cli.output import emit_json, json_option, note, table

FORMATS = ("auto", "ladder", "train", "markdown", "json", "jsonl")


@click.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="Reader; auto: by suffix and by step lines.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="Optimizer steps that each printed loss is the mean of, where you know it.",
)
@click.option("--out", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Folder for the runs.")
@click.option("--dry-run", is_flag=True, help="Read and show, and write nothing.")
@json_option
def import_runs(
    files: tuple[Path, ...], format_name: str, window: int | None, out: Path, dry_run: bool, as_json: bool
) -> None:  # fmt: skip
    """Read logs and tables of other trainers as external runs in DIR, for compare and report.

    What a source does not state stays unknown. A printed loss is a mean over some number of steps that few sources
    state; it becomes last100 only where --window makes it exactly that. Files are read whole before anything is
    written; a line that begins like a figure and does not read like one is an error with file and line.
    """
    from rnn_lab.legacy.importing import external_runs, read_source, write_runs

    found = registry()
    sources = [read_source(path, format_name) for path in files]
    runs = [run for source in sources for run in external_runs(source, found, window)]
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two files have a run {twice!r}: import them with an --out each")
    if not dry_run:
        write_runs(runs, out)
    ignored = {
        str(source.path): {
            kind: {"lines": count, "first": source.examples[kind]} for kind, count in source.ignored.items()
        }
        for source in sources
    }
    if as_json:
        emit_json({"runs": [{"name": run.name, **run.result} for run in runs], "ignored": ignored})
    else:
        table(
            ("run", "model", "status", "params", "steps", "last100", "figure", "what it is", "tok/s", "lines"),
            [_row(run.name, run.result) for run in runs],
        )
    for path, kinds in ignored.items():
        shown = ", ".join(f"{each['lines']} {kind} (line {each['first']})" for kind, each in kinds.items())
        note(f"{path}: not used: {shown or 'nothing'}")
    if not dry_run:
        note(f"{len(runs)} external runs in {out}")


def _row(name: str, result: dict[str, Any]) -> list[object]:
    figure = next(iter(result["figures"].values()))
    first, last = result["source"]["lines"]
    return [
        name, result["model"], result["status"], result["params"], result["steps"], result["last100"],
        figure["loss"], figure["is"], result["tokens_per_s"], f"{first}-{last}",
    ]  # fmt: skip
