"""`rnn-lab compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.errors import ConfigError

from rnn_lab_cli.judgement_notes import lost, notes, reversals
from rnn_lab_cli.output import emit_json, heading, json_option, note, table

if TYPE_CHECKING:
    from rnn_lab.comparison.compare import Comparison, Group, Rules
    from rnn_lab.comparison.ranking import AxisVerdicts, Judgement
    from rnn_lab.comparison.records import RunRecord

AXES = ("steps", "tokens", "flops", "seconds")
TOPICS = ("params", "data", "batch", "dtype", "clock", "kernels", "unfinished", "budget")
_UNITS = {"steps": "steps", "tokens": "bytes", "flops": "FLOPs", "seconds": "s of training"}
_VALIDATION = "validation loss at the end"
_SIGNS = {"better": "<", "worse": ">", "indistinguishable": "~", "inconclusive": "?", "failed": "x"}


@click.command()
@click.argument("paths", metavar="A [B]...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--axis", "axes", multiple=True, type=click.Choice(AXES), help="What is held equal; default: each of them."
)
@click.option(
    "--val-loss", is_flag=True, help="Judge validation losses, too; takes two seeds. [default: as the protocol]"
)
@click.option("--window", default=100, show_default=True, metavar="STEPS", help="Steps that a loss is the mean of.")
@click.option("--level", default=0.95, show_default=True, help="Of the intervals; verdicts are tests at 1 - level.")
@click.option("--margin", type=float, metavar="NATS", help="Also: is it worse by less than this (non-inferiority)?")
@click.option("--tolerance", default=0.005, show_default=True, help="Sizes are equal within this share.")
@click.option("--allow", multiple=True, type=click.Choice(TOPICS), help="Compare although this differs.")
@click.option("--unpaired", is_flag=True, help="Compare although steps did not see the same bytes, without pairing.")
@click.option("--each", is_flag=True, help="Take every run by itself, not together with its other seeds.")
@click.option("--against", type=float, metavar="NATS", help="Test Last100 over seeds against this published figure.")
@json_option
def compare(paths: Sequence[Path], against: float | None, each: bool, as_json: bool, **options: Any) -> None:
    """Judge runs against the first.

    A and B are runs, or folders of runs; runs that differ in nothing but their seed are taken together. Losses are
    nats per byte; a difference below zero means better than the first. See docs/comparison.md.
    """
    from rnn_lab.comparison.ranking import group_runs, judge

    rules = _rules(options | {"val_loss": options["val_loss"] or any(map(_validates, paths))})
    groups = _first_judged(group_runs(_read(paths), each=each), rules)
    if against is not None:
        _against(groups, against, rules, as_json)
        return
    judgement = judge(groups, rules)
    if as_json:
        emit_json(judgement.as_dict())
    else:
        _show(judgement)


def _rules(options: dict[str, Any]) -> "Rules":
    from rnn_lab.comparison.compare import Rules

    return Rules(
        axes=options["axes"] or AXES,
        validation=options["val_loss"],
        window=options["window"],
        level=options["level"],
        margin=options["margin"],
        tolerance=options["tolerance"],
        allow=frozenset(options["allow"]) | ({"pairing"} if options["unpaired"] else set()),
    )


def _validates(path: Path) -> bool:
    """Whether `path` is a series, or the runs of one, whose protocol compares validation losses."""
    from rnn_lab.comparison.records import RUNS, SERIES, read_series

    series = path.resolve().parent if path.resolve().name == RUNS else path
    return (series / SERIES).is_file() and read_series(series).meta.get("metric") == "val_loss"


def _read(paths: Sequence[Path]) -> "list[RunRecord]":
    from rnn_lab.comparison.records import read_runs

    runs = [run for path in paths for run in read_runs(path)]
    seen: set[Path] = set()
    for run in runs:
        if (where := run.path.resolve()) in seen:
            raise ConfigError(f"{run.path} is given twice: a run cannot be compared with itself")
        seen.add(where)
    return runs


def _first_judged(groups: "Sequence[Group]", rules: "Rules") -> "list[Group]":
    """The groups, those without losses last: nothing can be judged against them."""
    from rnn_lab.comparison.compare import as_group

    return sorted((as_group(group, rules) for group in groups), key=lambda group: not group.judged)


def _show(judgement: "Judgement") -> None:
    for one in judgement.axes:
        at = f"at equal {one.axis}: {one.budget:,.6g} {_UNITS[one.axis]}" if one.budget is not None else _VALIDATION
        heading(at)
        _against_first(judgement, one)
        if len(judgement.groups) > 2:
            _matrix(judgement, one)
    for text in reversals(judgement):
        click.echo(text)
    for text in notes(judgement):
        note(text)


def _against_first(judgement: "Judgement", one: "AxisVerdicts") -> None:
    first, *others = judgement.groups
    margin = any(pair.margin is not None for pair in one.pairs)
    p_name = "p (Holm)" if len(one.pairs) > 1 else "p"
    headers = ["model", "params", "loss", "difference", "interval", "verdict", p_name, "detectable", "basis"]
    if margin:
        headers.append("non-inferior")
    rows: list[list[object]] = [
        [first.label, first.params, one.losses.get(first.label), None, None, "(first)", *[None] * (4 if margin else 3)]
    ]
    for group in others:
        pair = one.between(first.label, group.label)
        p = pair.p if pair.p_adjusted is None else pair.p_adjusted
        rows.append(
            [group.label, group.params, one.losses.get(group.label), pair.effect, _interval(pair), pair.verdict,
             None if p is None else f"{p:.2g}", pair.smallest_detectable, _basis(pair)]
        )  # fmt: skip
        if margin:
            rows[-1].append(pair.non_inferior)
    table(headers, rows)


def _interval(pair: "Comparison") -> str | None:
    return None if pair.interval is None else f"{pair.interval[0]:+.4f} to {pair.interval[1]:+.4f}"


def _basis(pair: "Comparison") -> str | None:
    return None if pair.method is None else f"{pair.method}, {pair.label}"


def _matrix(judgement: "Judgement", one: "AxisVerdicts") -> None:
    """Row against column: < better, > worse, ~ indistinguishable, ? inconclusive, x failed."""
    labels = [group.label for group in judgement.groups]
    rows = [
        [row, *("" if row == column else _SIGNS[one.between(column, row).verdict] for column in labels)]
        for row in labels
    ]
    table(["row is < better, > worse than column", *labels], rows)


def _against(groups: "Sequence[Group]", figure: float, rules: "Rules", as_json: bool) -> None:
    """Every group's Last100 over seeds against a published figure."""
    from rnn_lab.comparison.stats import against_figure

    rows: list[dict[str, Any]] = []
    for group in groups:
        losses = [run.last100 for run in group.judged]
        known = [loss for loss in losses if loss is not None]
        row: dict[str, Any] = {"model": group.label, "seeds": len(known), "figure": figure}
        row |= dict.fromkeys(("mean", "sd", "t", "p_two_sided", "p_less", "p_greater"))
        if len(known) < 2:
            rows.append(row | {"verdict": "inconclusive: it needs two seeds with a Last100"})
            continue
        for alternative in ("two-sided", "less", "greater"):
            test = against_figure(known, figure, alternative)
            row |= {"mean": test.mean, "sd": test.sd, "t": test.t, f"p_{alternative}".replace("-", "_"): test.p}
        if row["p_two_sided"] is None:
            rows.append(row | {"verdict": "inconclusive: the seeds agree to the last digit"})
            continue
        sure = row["p_two_sided"] < 1 - rules.level
        row["verdict"] = ("better" if row["mean"] < figure else "worse") if sure else "indistinguishable"
        rows.append(row)
    if all(row["mean"] is None for row in rows):
        raise ConfigError("a test against a figure needs two seeds with a Last100, and no model here has them")
    if as_json:
        emit_json(rows)
    else:
        columns = list(rows[0])
        table(columns, [[_shortened(c, v) for c, v in row.items()] for row in rows])
    for text in lost(groups):
        note(text)
    note("a published figure is taken as exact, and as measured on equal terms, which nobody can check")


def _shortened(column: str, value: Any) -> Any:
    return f"{value:.4g}" if column.startswith("p_") and value is not None else value
