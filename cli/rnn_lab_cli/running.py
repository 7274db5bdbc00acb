"""What `fit` and `resume` share: watch a run, say how it ended, and what to do next."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rnn_lab.errors import RnnLabError

from rnn_lab_cli.output import emit_json, pairs
from rnn_lab_cli.progress import Watcher, watching
from rnn_lab_cli.ranks import Silent

INTERRUPTED = 130


def run_and_report(
    ctx: click.Context,
    out: Path,
    start: Callable[[Watcher], dict[str, Any]],
    *,
    as_json: bool,
    quiet: bool = False,
    main: bool = True,
) -> None:
    """Train, then print the result: a summary, or result.json with `as_json`; interrupted runs exit with 130.

    Where several processes train the run, all but the `main` one print nothing.
    """
    if not main:
        if start(Silent())["status"] == "interrupted":
            ctx.exit(INTERRUPTED)
        return
    result_file = out / "result.json"
    before = _stamp(result_file)
    try:
        with watching(quiet=quiet, err=as_json) as watcher:
            result = start(watcher)
    except RnnLabError:
        if as_json and _stamp(result_file) not in (None, before):
            click.echo(result_file.read_text(), nl=False)
        raise
    if as_json:
        emit_json(result)
    else:
        _summary(result, out)
    if result["status"] == "interrupted":
        click.echo(f"interrupted; go on with: rnn-lab resume {shlex.quote(str(out))}", err=True)
        ctx.exit(INTERRUPTED)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Identity of a file's content, None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _passes(result: dict[str, Any]) -> str | None:
    """How often the training bytes were read: from some passes on a training loss says what was learnt by heart."""
    size = (result["data"] or {}).get("bytes")
    return f"{result['tokens'] / size:.3g}" if size and result["tokens"] else None


def _summary(result: dict[str, Any], out: Path) -> None:
    target = result["certificate"]["target"]
    deviation = result["certificate"]["deviation"]
    aim = f" (target {target:,}, {deviation:+.2%})" if target is not None else ""
    pairs(
        [
            ("status", result["status"]),
            ("model", f"{result['model']}, {result['params']:,} parameters{aim}"),
            ("steps", result["steps"]),
            ("tokens", result["tokens"]),
            ("passes over the data", _passes(result)),
            ("loss", result["loss"]),
            ("last100", result["last100"]),
            ("bits per byte", result["bpb"]),
            ("validation", result["val_loss"]),
            ("validation bits per byte", result["val_bpb"]),
            ("tokens per second", result["tokens_per_s"]),
            ("backends", _backends(result["backends"])),
            ("step", _step(result["graph"])),
            ("diagnostics", _found(result["diagnostics"])),
            ("where", str(out)),
        ]
    )
    steps = max(2 * (result["steps"] or 0), 100)
    run, parent = shlex.quote(str(out)), shlex.quote(str(out.parent))
    click.echo("next:")
    if result["status"] == "ok":
        click.echo(f"  rnn-lab sample {run}")
        click.echo(f"  rnn-lab tensorboard {parent}")
        click.echo(f"  rnn-lab resume {run} --steps {steps}")
    else:
        click.echo(f"  rnn-lab resume {run}")
    click.echo(f"  rnn-lab runs {parent}")


def _found(rows: list[dict[str, Any]] | None) -> str:
    return ", ".join(f"{row['id']} {row['count']}x" for row in rows or []) or "nothing"


def _step(graph: dict[str, Any] | None) -> str:
    if graph is None:
        return ""
    if not graph["used"]:
        return f"launched from Python: {graph['reason']}"
    chunks = graph.get("wavefront", 1)
    return "one CUDA graph" + (f", layers on {chunks} chunks of time at once" if chunks > 1 else "")


def _backends(rows: list[dict[str, Any]] | None) -> str:
    return ", ".join(f"{row['op']} {row['backend']}" for row in rows or [])
