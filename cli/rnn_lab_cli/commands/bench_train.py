"""`rnn-lab bench train`."""

from typing import Any

import click
from rnn_lab.registry import registry

from rnn_lab_cli.bench_options import (
    bench_options,
    finish,
    milliseconds,
    model_option,
    optimizer_section,
    percent,
    progress,
    sections,
    show_header,
    target_option,
    where,
)
from rnn_lab_cli.names import complete_preset
from rnn_lab_cli.output import table

MODELS = ("llama", "e61", "e62", "e64", "e65", "e67", "e68", "e74", "e88", "mamba2", "gdn", "mingru")
"""Measured where nothing is named."""


@click.command()
@model_option
@click.option(
    "--preset", "presets", multiple=True, shell_complete=complete_preset, metavar="NAME",
    help="Named configuration; may be repeated.",
)  # fmt: skip
@target_option
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Sequences; default: 32, on the CPU 2.")
@click.option("--seq-len", type=click.IntRange(1), metavar="N", help="Bytes; default: 512, on the CPU 16.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Timed steps; default: 20, on the CPU 3.")
@click.option("--graph", type=click.Choice(["auto", "on", "off"]), default="auto", help="auto: with and without.")
@click.option(
    "--kernels", type=click.Choice(["auto", "reference"]),
    help="reference: plain loops; default: RNN_LAB_KERNELS, else auto.",
)  # fmt: skip
@click.option(
    "--wavefront",
    type=click.IntRange(1, 32),
    metavar="N",
    help="Chunks of time that layers are at work on at once; default: in a graph up to 3 where layers leave room.",
)
@click.option(
    "--optimizer", default="schedulefree", show_default=True, metavar="NAME[:KEY=VALUE,...]",
    help="Registered optimizer, with fields of [optimizer].",
)  # fmt: skip
@bench_options
def train(
    models: tuple[str, ...], presets: tuple[str, ...], target: str | None, batch_size: int | None,
    seq_len: int | None, steps: int | None, graph: str, kernels: str | None, wavefront: int | None, optimizer: str,
    limit: float, device: str, dtype: str, as_json: bool, out: str | None,
) -> None:  # fmt: skip
    """Measure whole training steps: forward, backward, clipping and optimizer on batches that are on the device.

    The column update has clipping and optimizer by themselves, on the gradients of the last step.
    Mamba2 and Gated DeltaNet stand beside the blocks of mamba-ssm and FLA in the same language model. A model that
    does not fit or fails is a row that says so.
    """
    small = {"target": "100k", "batch-size": 2, "seq-len": 16, "steps": 3}
    chosen, precision = where(device, dtype, small)
    from rnn_lab.bench.train import TrainSetting, bench_train
    from rnn_lab.kernels import dispatch

    cuda, found = chosen.type == "cuda", registry()
    usual = [name for name in MODELS if name in found.models]
    size = target or ("100M" if cuda else "100k")
    asked = sections(models if models or presets else usual, presets, size, found)
    setting = TrainSetting(
        batch_size or (32 if cuda else 2), seq_len or (512 if cuda else 16), steps or (20 if cuda else 3), precision,
        chosen, graph, kernels or dispatch.setting(), wavefront=wavefront, limit=limit if cuda else None,
        optimizer=optimizer_section(optimizer, found),
    )  # fmt: skip
    finish(bench_train(asked, setting, progress(out)), out, as_json, _show)


def _show(page: dict[str, Any]) -> None:
    show_header(page)
    headers = (
        "model", "implementation", "mode", "parameters", "tok/s", "step", "GiB", "MFU datasheet", "MFU measured",
        "launch", "update", "loss", "backends", "remark",
    )  # fmt: skip
    table(headers, [_cells(row) for row in page["rows"]])


def _cells(row: dict[str, Any]) -> list[object]:
    head = [row["model"], row["implementation"], row["mode"]]
    if row["status"] != "ok":
        return [*head, *[None] * 10, f"{row['status']}: {row['reason']}"]
    return [
        *head, row["params"], round(row["tokens_per_s"]["median"]), milliseconds(row["ms"]),
        round(row["peak_memory_bytes"] / 2**30, 2), percent(row["mfu_datasheet"]), percent(row["mfu_measured"]),
        percent(row["launch_overhead"]), _update(row), row["loss"], _backends(row),
        None,
    ]  # fmt: skip


def _update(row: dict[str, Any]) -> str | None:
    """Clip and optimizer by themselves, and their share of the step."""
    ms = milliseconds(row["update_ms"])
    return ms and f"{ms}, {row['update_share']:.1%}"


def _backends(row: dict[str, Any]) -> str:
    found = ", ".join(f"{c['op']} {c['backend']}" for c in row["backends"])
    chunks = row.get("wavefront", 1)
    return f"{found}, {chunks} chunks at once" if chunks > 1 else found
