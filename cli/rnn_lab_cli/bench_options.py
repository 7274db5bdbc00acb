"""What the commands of `bench` have in common: models with fields on the command line, defaults by device, output."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rnn_lab.errors import ConfigError
from rnn_lab.registry import Registry

from rnn_lab_cli.names import complete_model
from rnn_lab_cli.output import emit_json, json_option, note

if TYPE_CHECKING:
    import torch
    from rnn_lab.config import ModelSection, OptimizerSection

C = TypeVar("C", bound=Callable[..., Any])


class Finite(click.FloatRange):
    """A range of numbers; NaN, which no comparison finds outside of it, and infinity are not in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number.

        Raises:
            click.BadParameter: it is none, or not in the range.

        """
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


out_option = click.option("--out", metavar="FILE", help="Also write the JSON there: docs/benchmarks/NAME.json.")
device_option = click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.")
dtype_option = click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", help="Of autocast.")
model_option = click.option(
    "--model", "models", multiple=True, shell_complete=complete_model, metavar="NAME[:KEY=VALUE,...]",
    help="Model or alias, with fields; may be repeated.",
)  # fmt: skip
target_option = click.option("--target", metavar="N", help="Parameters to size models without a dim to, such as 100M.")


limit_option = click.option(
    "--limit", type=Finite(min=1), default=600.0, show_default=True, metavar="S",
    help="On a GPU rows are measured in a process of their own: longest time to the next one.",
)  # fmt: skip


def bench_options(command: C) -> C:
    """--limit, --device, --dtype, --json and --out."""
    for option in (out_option, json_option, dtype_option, device_option, limit_option):
        command = option(command)
    return command


def name_and_fields(text: str, option: str = "--model") -> tuple[str, dict[str, Any]]:
    """`e74:n_state=32,dim=640` as name and fields.

    Raises:
        ConfigError: a field is not KEY=VALUE, or is given twice.

    """
    from rnn_lab.config import parse_override

    name, _, rest = text.partition(":")
    fields: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        if "=" not in part:
            raise ConfigError(f"{option} {text}: {part!r} is not of the form KEY=VALUE")
        given = parse_override(part)
        if twice := fields.keys() & given.keys():
            raise ConfigError(f"{option} {text}: {', '.join(twice)} is given twice")
        fields |= given
    return name, fields


def sections(
    models: Sequence[str], presets: Sequence[str], target: str, found: Registry
) -> "list[tuple[str, ModelSection]]":
    """What each model is called in its rows, and its `[model]` table; presets bring their own shapes.

    Raises:
        ConfigError: unknown names, fields or counts.

    """
    from rnn_lab.config import Layer, resolve
    from rnn_lab.presets import find_preset

    rows = []
    for text in models:
        name, fields = name_and_fields(text)
        values = {"name": name, **({} if "dim" in fields else {"target": target}), **fields}
        rows.append((text, resolve([Layer(f"--model {text}", {"model": values})]).config.model))
    return rows + [(name, find_preset(name, found).section()) for name in presets]


def optimizer_section(text: str, found: Registry) -> "OptimizerSection":
    """The `[optimizer]` table of `muon:bits=8`, with that optimizer's own defaults.

    Raises:
        ConfigError: no such optimizer, field or value.

    """
    from rnn_lab.config import Layer, resolve
    from rnn_lab.train.run import optimizer_defaults

    name, fields = name_and_fields(text, "--optimizer")
    layers = [
        Layer("--model", {"model": {"name": "any"}}),  # a configuration has one; no field of [optimizer] depends on it
        Layer(f"--optimizer {text}", {"optimizer": {"name": name, **fields}}),
    ]
    asked = resolve(layers).config.optimizer
    return resolve([*optimizer_defaults(asked, found), *layers]).config.optimizer


def where(device: str, dtype: str, cpu_defaults: Mapping[str, Any]) -> "tuple[torch.device, torch.dtype]":
    """Device and dtype; says so where small defaults take the place of the usual ones.

    Raises:
        ConfigError: no such device, or RNN_LAB_KERNELS names no backend.

    """
    from rnn_lab.kernels.operations import check_setting
    from rnn_lab.train.device import pick_device, pick_dtype

    check_setting()
    chosen = pick_device(device)
    if chosen.type == "cpu":
        small = ", ".join(f"{key} {value}" for key, value in cpu_defaults.items())
        note(f"on the CPU: these figures say that it runs, not how fast a GPU is. Defaults are small: {small}")
    return chosen, pick_dtype(dtype, chosen)


def check_out(out: str | None) -> None:
    """Make the folder of `--out`, before anything is measured.

    Raises:
        ConfigError: there can be no file of that name.

    """
    if out is None:
        return
    if Path(out).is_dir():
        raise ConfigError(f"--out {out}: this is a folder; name a file in it, such as {Path(out) / 'NAME.json'}")
    with _refused(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    if not os.access(Path(out).parent, os.W_OK):
        raise ConfigError(f"--out {out}: nothing can be written to its folder")


def progress(out: str | None) -> Callable[[dict[str, Any]], None]:
    """Shows the last row of a page on stderr and keeps the page so far, so that a killed run loses one row.

    Raises:
        ConfigError: there can be no file of that name.

    """
    check_out(out)

    def show(page: dict[str, Any]) -> None:
        _announce(page["rows"][-1])
        keep(page, out)

    return show


def _announce(row: dict[str, Any]) -> None:
    names = [str(row[key]) for key in ("model", "batch", "op", "implementation", "mode") if row.get(key) is not None]
    times = row.get("forward_backward", row).get("ms")
    note(f"{' '.join(names)}: {row['status']} {row.get('reason') or ''} {milliseconds(times) or ''}".rstrip())


def milliseconds(spread: Mapping[str, Any] | None) -> str | None:
    """`0.181 ms (0.179 to 0.183)`: median and quartiles."""
    if spread is None:
        return None
    return f"{spread['median']:.4g} ms ({spread['q1']:.4g} to {spread['q3']:.4g})"


def percent(share: float | None) -> str | None:
    """A share of a ceiling."""
    return None if share is None else f"{share:.1%}"


def finish(page: dict[str, Any], out: str | None, as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Write the file, then print JSON or the tables of `show`; exit code 1 where nothing could be measured."""
    keep(page, out)
    if as_json:
        emit_json(page)
    else:
        show(page)
    if page["rows"] and all(row["status"] == "error" for row in page["rows"]):
        click.get_current_context().exit(1)


def keep(page: dict[str, Any], out: str | None) -> None:
    """Write the page where `--out` says.

    Raises:
        ConfigError: the file cannot be written.

    """
    if out is not None:
        from rnn_lab.system.atomic import write_text_atomic

        with _refused(out):
            write_text_atomic(Path(out), json.dumps(page, indent=1, allow_nan=False) + "\n")


@contextmanager
def _refused(out: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {out}: {error}") from error


def show_header(page: dict[str, Any]) -> None:
    """Machine, versions, sizes and ceilings above a table."""
    from rnn_lab_cli.output import pairs

    top = page["ceilings"]
    peers = ", ".join(f"{name} {version}" for name, version in page["header"]["peers"].items() if version)
    pairs([(key, value) for key, value in page["header"].items() if key != "peers"])
    pairs([("peers", peers or "none installed"), *((key, str(value)) for key, value in page["setting"].items())])
    pairs([
        ("copy", f"{top['copy_bytes_per_s'] / 1e12:.3g} TB/s, read and written"),
        ("matmul", f"{top['matmul_flops_per_s'] / 1e12:.4g} TFLOP/s in bf16"),
    ])  # fmt: skip
