"""`rnn-lab bench kernels`."""

from fnmatch import fnmatchcase
from typing import Any

import click
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.registry import registry

from rnn_lab_cli.bench_options import (
    Finite,
    bench_options,
    finish,
    milliseconds,
    model_option,
    name_and_fields,
    percent,
    progress,
    show_header,
    where,
)
from rnn_lab_cli.output import note, table

CASES = (
    *(f"{name}:dim=640,expansion=2" for name in ("e61", "e62", "e64", "e65", "e67", "e68", "mingru")),
    "mamba2:dim=672,n_state=64",
    "gdn:dim=1024,n_heads=32,head_dim=64,expansion=1",
    "e70:dim=1408,n_state=96",
    *(f"e74:dim=1536,n_state={n}" for n in (16, 32, 48, 64, 96)),
    *(f"e88:dim=1024,n_heads=32,n_state={n}" for n in (16, 32, 48, 64)),
    *(f"{name}:dim=1024,expansion=1" for name in ("e1", "gru", "lstm")),
    "e42:dim=768,expansion=2",
    "e5:dim=1536,rank=270",
)
"""Shapes of docs/performance.md, measured where no model is named."""
TINY = {"dim": 32, "n_state": 8, "n_heads": 2, "head_dim": 16}
"""What takes their place on the CPU."""


@click.command()
@click.option("--op", "ops", multiple=True, metavar="NAME", help="Only this operation; may be repeated.")
@click.option(
    "--implementation",
    "kept",
    multiple=True,
    metavar="PATTERN",
    help="Only implementations of this name, such as matrix or 'fla *'; may be repeated.",
)
@model_option
@click.option(
    "--dim", type=click.IntRange(1), metavar="N", help="Width of models that name none; default: 640, on the CPU 32."
)
@click.option(
    "--expansion", type=Finite(0, min_open=True), metavar="X", help="Expansion of models that name none and have one."
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Sequences; default: 32, on the CPU 2.")
@click.option("--seq-len", type=click.IntRange(1), metavar="N", help="Steps; default: 512, on the CPU 8.")
@click.option(
    "--seconds", type=Finite(0, min_open=True), metavar="S", help="Per measurement; default: 0.3, on the CPU 0.02."
)
@bench_options
def kernels(
    ops: tuple[str, ...], kept: tuple[str, ...], models: tuple[str, ...], dim: int | None, expansion: float | None,
    batch: int | None, seq_len: int | None, seconds: float | None, limit: float, device: str, dtype: str,
    as_json: bool, out: str | None,
) -> None:  # fmt: skip
    """Measure the operations that models call: our backends, the plain loop, and peers where they are installed.

    Each is first held against the reference in fp64, forward and gradients; what fails gets no time. Every
    implementation runs both in a CUDA graph and launched from Python: compare within one mode. Bytes are
    algorithmic: every input read once, every output written once.
    """
    small = {"batch": 2, "seq-len": 8, "dim": TINY["dim"]}
    chosen, precision = where(device, dtype, small)
    from rnn_lab.bench.kernels import Setting, bench_kernels

    cuda, found = chosen.type == "cuda", registry()
    asked = [name_and_fields(text) for text in models or CASES]
    if not models:
        absent = [name for name, _ in asked if name not in found.models]
        if absent:
            note(f"left out, their plugins are not installed: {', '.join(absent)}")
        asked = [pair for pair in asked if pair[0] not in absent]
        asked = asked if cuda else list({name: (name, _tiny(fields)) for name, fields in asked}.values())
    given = {"dim": dim or (640 if cuda else TINY["dim"])} | ({} if expansion is None else {"expansion": expansion})
    asked = [(name, _with(name, fields, given)) for name, fields in asked]
    setting = Setting(
        batch or (32 if cuda else small["batch"]), seq_len or (512 if cuda else small["seq-len"]), precision, chosen,
        seconds or (0.3 if cuda else 0.02), limit if cuda else None, kept or ("*",),
    )  # fmt: skip
    _check_ops(ops)
    page = bench_kernels(asked, ops, setting, progress(out))
    if not page["rows"]:
        asked_for = " or ".join((*ops, *kept))
        note(f"these models call nothing that is {asked_for}" if asked_for else "these models call no operation")
    else:
        names = [row["implementation"] or "" for row in page["rows"]]
        for pattern in kept:
            if not any(fnmatchcase(name, pattern) for name in names):
                note(f"these models call nothing that is {pattern}")
    finish(page, out, as_json, _show)


def _check_ops(ops: tuple[str, ...]) -> None:
    """Refuse what is no operation's name; of plugins only where the core's own do not have it.

    Raises:
        ConfigError: there is no such operation.

    """
    from rnn_lab.kernels.operations import operations, own_operations

    if set(ops) <= own_operations().keys():
        return
    known = list(operations())
    for name in ops:
        if name not in known:
            near = did_you_mean(name, known)
            raise ConfigError(f"--op {name}: no operation has this name; known are {', '.join(known)}.{near}")


def _tiny(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: TINY.get(key, value) for key, value in fields.items()}


def _with(name: str, fields: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`fields` completed by those of `given` that the model has."""
    ref, alias = registry().find_model(name)
    known = ref.load().Config.model_fields
    return {key: value for key, value in given.items() if key in known and key not in alias} | fields


def _show(page: dict[str, Any]) -> None:
    show_header(page)
    headers = (
        "model", "state", "op", "implementation", "mode", "forward", "forward + backward", "µs per step", "of copy",
        "of matmul", "r", "r grad", "remark",
    )  # fmt: skip
    table(headers, [_cells(row, page["setting"]["seq_len"]) for row in page["rows"]])


def _cells(row: dict[str, Any], steps: int) -> list[object]:
    both, check = row.get("forward_backward", {}), row.get("check", {})
    errors = [None if check.get(key) is None else f"{check[key]:.1e}" for key in ("forward", "gradient")]
    remark = row.get("note") if row["status"] == "ok" else f"{row['status']}: {row.get('reason')}"
    us = 1e3 * both["ms"]["median"] / steps if both and row["state"] else row.get("us_per_step")
    return [
        row["model"], _sides(row), row["op"], row["implementation"], row.get("mode"),
        milliseconds(row.get("forward", {}).get("ms")), milliseconds(both.get("ms")), us and f"{us:.3g}",
        percent(both.get("copy_share")), percent(both.get("matmul_share")), *errors, remark,
    ]  # fmt: skip


def _sides(row: dict[str, Any]) -> str:
    """Shape of the recurrent state."""
    return " x ".join(map(str, row.get("state") or ()))
