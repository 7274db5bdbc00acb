"""`rnn-lab bench decode`."""

from typing import Any

import click
from rnn_lab.errors import ConfigError
from rnn_lab.registry import registry

from rnn_lab_cli.bench_options import (
    bench_options,
    finish,
    milliseconds,
    model_option,
    progress,
    sections,
    show_header,
    target_option,
    where,
)
from rnn_lab_cli.output import table

MODELS = ("e1", "e61", "e68", "e74", "e88", "mamba2", "gdn", "gru", "lstm", "llama")
"""Measured where nothing is named."""


@click.command()
@model_option
@target_option
@click.option("--batch-size", default="1,32", show_default=True, metavar="N,...", help="Sequences at once.")
@click.option("--tokens", type=click.IntRange(1), metavar="N", help="Bytes of each; default: 256, on the CPU 8.")
@bench_options
def decode(
    models: tuple[str, ...], target: str | None, batch_size: str, tokens: int | None, limit: float, device: str,
    dtype: str, as_json: bool, out: str | None,
) -> None:  # fmt: skip
    """Measure generation with carried state, launched from Python and as a CUDA graph of one step.

    Weights are as initialised, the likeliest byte is taken, and reading the prompt is left out.
    """
    chosen, precision = where(device, dtype, {"target": "100k", "tokens": 8})
    from rnn_lab.bench.decode import DecodeSetting, bench_decode

    try:
        batches = tuple(int(part) for part in batch_size.split(","))
    except ValueError as error:
        raise ConfigError(f"--batch-size {batch_size}: expected numbers such as 1,32") from error
    if min(batches) < 1:
        raise ConfigError(f"--batch-size {batch_size}: at least one sequence")
    cuda, found = chosen.type == "cuda", registry()
    usual = [name for name in MODELS if name in found.models]
    asked = sections(models or usual, (), target or ("100M" if cuda else "100k"), found)
    setting = DecodeSetting(batches, tokens or (256 if cuda else 8), precision, chosen, limit if cuda else None)
    finish(bench_decode(asked, setting, progress(out)), out, as_json, _show)


def _show(page: dict[str, Any]) -> None:
    show_header(page)
    table(
        ("model", "batch", "mode", "parameters", "tok/s", "byte", "state bytes", "remark"),
        [_cells(row) for row in page["rows"]],
    )


def _cells(row: dict[str, Any]) -> list[object]:
    head = [row["model"], row["batch"], row["mode"]]
    if row["status"] != "ok":
        return [*head, *[None] * 4, f"{row['status']}: {row['reason']}"]
    return [*head, row["params"], round(row["tokens_per_s"]), milliseconds(row["ms"]), row["state_bytes"], None]
