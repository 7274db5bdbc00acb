"""`rnn-lab data pack`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rnn_lab.errors import ConfigError

from rnn_lab_cli.output import emit_json, json_option, note, pairs

if TYPE_CHECKING:
    from rnn_lab.data.pack import PackProgress

PLAIN_SECONDS = 10.0


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--out", required=True, metavar="FILE", help="The byte file to write.")
@click.option("--column", default="text", show_default=True, help="Field of a record that holds the text.")
@click.option("--val-fraction", type=float, default=0.0, show_default=True, help="Documents held for validation.")
@click.option("--max-bytes", metavar="N", help="End the pack there, such as 1G.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("--no-resume", is_flag=True, help="Start over instead of going on with a pack that was killed.")
@json_option
def pack(
    sources: tuple[str, ...],
    out: str,
    column: str,
    val_fraction: float,
    max_bytes: str | None,
    overwrite: bool,
    no_resume: bool,
    as_json: bool,
) -> None:
    """Pack SOURCES into one byte file: files, folders, .jsonl, .parquet, or hf://owner/name."""
    from rnn_lab.data.pack import pack as pack_files

    limit = None if max_bytes is None else _count(max_bytes)
    with _progress() as report:
        sidecar = pack_files(
            sources,
            out,
            column=column,
            val_fraction=val_fraction,
            progress=report,
            resume=not no_resume,
            max_bytes=limit,
            overwrite=overwrite,
        )
    if as_json:
        emit_json({"path": out, **sidecar.model_dump(mode="json")})
        return
    pairs(
        [
            ("path", out),
            ("documents", sidecar.documents),
            ("bytes", sidecar.bytes),
            ("validation documents", sidecar.validation_documents),
            ("left out, empty", sidecar.skipped_empty),
            ("left out, not UTF-8", sidecar.skipped_not_utf8),
            ("sha256", sidecar.sha256),
        ]
    )


def _count(text: str) -> int:
    from rnn_lab.config import parse_count

    try:
        return parse_count(text)
    except ValueError as error:
        raise ConfigError(f"--max-bytes: {error}") from error


def _text(now: "PackProgress") -> str:
    rate = now.bytes / now.seconds / 1e6 if now.seconds else 0.0
    return (
        f"source {now.source_index + 1} of {now.source_count}  {now.documents:,} documents  "
        f"{now.bytes / 1e6:,.1f} MB  {rate:,.1f} MB/s  {now.source}"
    )


@contextmanager
def _progress() -> Iterator[Callable[["PackProgress"], None]]:
    """A line on stderr that changes in place on a terminal, or a plain one every ten seconds."""
    import sys

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.status import Status
        from rich.text import Text

        with Status("packing", console=Console(stderr=True)) as status:
            yield lambda now: status.update(Text(_text(now)))
        return
    due = time.monotonic() + PLAIN_SECONDS

    def plain(now: "PackProgress") -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + PLAIN_SECONDS
            note(_text(now))

    yield plain
