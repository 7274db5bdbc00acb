"""`rnn-lab search`."""

import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.errors import ConfigError
from rnn_lab.registry import Registry, registry

from rnn_lab_cli.fit_options import (
    apply,
    batch_options,
    budget_options,
    corpus_options,
    model_options,
    override_option,
)
from rnn_lab_cli.layers import config_layers
from rnn_lab_cli.model_options import ModelCommand, field_values
from rnn_lab_cli.names import complete_model, complete_protocol
from rnn_lab_cli.output import cell, emit_json, json_option, note, pairs, table

if TYPE_CHECKING:
    from rnn_lab.search.plan import SearchPlan
    from rnn_lab.search.space import Spec
    from rnn_lab.search.trials import TrialRow

_options = (
    *model_options,
    *budget_options,
    click.option("--trials", type=click.IntRange(min=1), default=64, show_default=True, help="Trials in all."),
    click.option("-s", "space", multiple=True, metavar="SPEC",
                 help="What moves: FIELD, FIELD=LOW:HIGH[:log], FIELD=A,B,C, shape, optimizer. Default: the last two."),
    click.option("--space", "space_file", metavar="FILE", help="The same as a TOML table [space]."),
    click.option("--metric", type=click.Choice(["val_loss", "last100"]),
                 help="What is minimised; default: the protocol's, else val_loss."),
    click.option("--sampler", type=click.Choice(["tpe", "cmaes", "random"]), default="tpe", show_default=True,
                 help="Who proposes; random for equal-tuning curves."),
    click.option("--pruner", type=click.Choice(["median", "halving", "none"]),
                 help="Who stops trials early, by losses at equal steps; default: median, none for --minutes."),
    click.option("--report-every", type=click.IntRange(min=1), metavar="N",
                 help="Steps between the losses that the pruner sees; default: a twentieth of the budget."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
                 help="Of the sampler. All runs share train.seed, and with it their batches."),
    click.option("--storage", metavar="FILE|URL",
                 help="Journal file, SQLite file (.db) or a database's URL; default: journal.log in --out."),
    click.option("--out", metavar="DIR", help="Folder of the search; default: searches/MODEL-TARGET."),
    click.option("--wait", is_flag=True,
                 help="Stay until the trials of other workers have ended too, and take up those whose worker dies."),
    click.option("--confirm", type=click.IntRange(min=1), metavar="N",
                 help="Afterwards train the winner and the default with N fresh seeds each."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="M",
                 help="Minutes that one run may take."),
    click.option("--checkpoints", type=click.Choice(["best", "all"]), default="best", show_default=True,
                 help="Trials whose checkpoints are kept."),
    click.option("--protocol", shell_complete=complete_protocol, metavar="NAME", help="Protocol to search under."),
    click.option("--config", metavar="FILE", help="TOML file with [model], [data], [train], ... tables."),
    *corpus_options,
    click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N; workers may differ."),
    *batch_options,
    click.option("--optimizer", metavar="NAME", help="Registered optimizer."),
    override_option,
    click.option("--dry-run", is_flag=True, help="Show the space and the default, and train nothing."),
    json_option,
)  # fmt: skip


@click.command(cls=ModelCommand)
@click.argument("model", shell_complete=complete_model)
@lambda command: apply(command, _options)
@click.pass_context
def search(ctx: click.Context, /, **options: Any) -> None:
    """Search shapes and optimizer settings of MODEL, every trial within 0.5 % of --target.

    The sizing solver turns each proposal into the nearest shape that has the parameters. Trial 0 is the
    configuration that `fit` would train. The same command goes on where an earlier one stopped; given several times
    at once, it shares the work. Fields set by options are held; those in the space move.
    """
    found = registry()
    plan = _plan(ctx, options, found)
    if options["dry_run"]:
        _show_plan(plan, options["as_json"])
        return
    out = Path(options["out"] or Path("searches") / f"{plan.default.spec.name}-{options['target'] or plan.target}")
    from rnn_lab.search.confirm import confirm
    from rnn_lab.search.run import Worker, run_search, summary

    minutes = options["timeout"]
    worker = Worker(
        out=out,
        storage=options["storage"] or str(out / "journal.log"),
        program=(sys.executable, "-m", "rnn_lab_cli"),
        timeout=None if minutes is None else 60 * minutes,
        checkpoints=options["checkpoints"],
        note=note,
        ended=_tell,
        wait=options["wait"],
    )
    note(f"{plan.name}: {len(plan.space)} dimensions, {plan.sampler}, pruner {plan.pruner}, to {out}")
    # A worker that is asked to end stops its run with a checkpoint, as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rows = run_search(plan, worker, options["trials"])
        told = summary(plan, rows)
        told["confirmed"] = confirm(plan, worker, rows, options["confirm"]) if options["confirm"] else None
    except KeyboardInterrupt:
        note("interrupted: nothing is lost; the same command goes on")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if options["as_json"]:
        emit_json(told)
    else:
        _show_best(told, rows)
    _advise(told, rows, ctx, out)


def _plan(ctx: click.Context, options: dict[str, Any], found: Registry) -> "SearchPlan":
    from rnn_lab.protocol import find_protocol
    from rnn_lab.search.plan import plan_search

    run_options = {key: value for key, value in options.items() if key != "seed"}
    layers = config_layers(
        run_options, field_values(ctx), options["override"], found,
        config=options["config"], protocol=options["protocol"],
    )  # fmt: skip
    metric = options["metric"]
    if metric is None:
        metric = find_protocol(options["protocol"], found).series.metric if options["protocol"] else "val_loss"
    return plan_search(
        layers,
        _specs(options),
        found,
        metric=metric,
        sampler=options["sampler"],
        pruner=options["pruner"],
        seed=options["seed"],
        report_every=options["report_every"],
    )


def _specs(options: dict[str, Any]) -> "dict[str, Spec]":
    """What moves, by name: the file, then every -s.

    Raises:
        ConfigError: a name stands there twice.
    """
    from rnn_lab.search.space import parse_spec, read_space

    specs = read_space(Path(options["space_file"])) if options["space_file"] else {}
    for text in options["space"]:
        name, spec = parse_spec(text)
        if name in specs:
            raise ConfigError(f"-s {text}: {name} is in the space already")
        specs[name] = spec
    return specs


def _show_plan(plan: "SearchPlan", as_json: bool) -> None:
    rows = [dimension.as_dict() for dimension in plan.space]
    default = plan.default_point()
    if as_json:
        emit_json({"study": plan.name, **plan.identity, "default": default})
        return
    table(
        ("dimension", "range", "default", "solved"),
        [(row["key"], _range(row), _short(default.get(row["key"])), row["solved"]) for row in rows],
    )
    pairs([("study", plan.name), ("metric", plan.metric), ("pruner", plan.pruner), ("report every", plan.report_every)])


def _range(row: dict[str, Any]) -> str:
    if "values" in row:
        return ", ".join(str(value) for value in row["values"])
    if row["position"]:
        return "0 to 1: smallest to largest of the solver's choices"
    beta = "1 - beta: " if row["key"].endswith(("beta1", "beta2")) else ""
    return f"{beta}{row['low']:g} to {row['high']:g}" + (", log" if row["log"] else "")


def _tell(row: "TrialRow", best: "TrialRow | None") -> None:
    """One line per trial, on stderr."""
    what = f"{row.value:.4f}" if row.value is not None else row.reason or ""
    lead = "" if best is None else f"  best {best.value:.4f} (trial {best.number})"
    note(f"trial {row.number}{' (default)' if row.default else ''}: {row.outcome} {what}{lead}")


def _show_best(told: dict[str, Any], rows: "list[TrialRow]") -> None:
    ranked = sorted((row for row in rows if row.value is not None), key=lambda row: (row.value, row.number))
    keys = list(dict.fromkeys(key for row in ranked[:10] for key in row.point))
    table(
        ("trial", told["metric"], "params", "deviation", *(key.partition(".")[2] for key in keys), "shape"),
        [
            (
                f"{row.number}{' default' if row.default else ''}", row.value, row.params, f"{row.deviation or 0:+.3%}",
                *(_short(row.point.get(key)) for key in keys), _shape(row),
            )
            for row in ranked[:10]
        ],
        title=f"best of {told['trials']} trials",
    )  # fmt: skip
    outcomes = ", ".join(f"{count} {name}" for name, count in told["outcomes"].items() if count)
    gain = told["gain"]
    pairs([("outcomes", outcomes), ("better than the default by", gain)])
    confirmed = told["confirmed"]
    if confirmed is not None:
        shown = [(f"{name} on fresh seeds", mean) for name, mean in confirmed["mean"].items()]
        interval = confirmed["gain"]
        if interval is not None:
            ends = "" if interval["low"] is None else f" (95 %: {interval['low']:.4f} to {interval['high']:.4f})"
            shown.append(("confirmed gain", f"{interval['mean']:.4f} nats per byte{ends}, {interval['n']} seeds"))
        pairs(shown)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else cell(value, pretty=True)


def _shape(row: "TrialRow") -> str:
    model = row.config.get("model", {})
    return " ".join(f"{key}={model[key]}" for key in ("dim", "depth", "expansion", "rank", "n_heads") if key in model)


def _advise(told: dict[str, Any], rows: "list[TrialRow]", ctx: click.Context, out: Path) -> None:
    """What the figures do not say, and what to do next, on stderr."""
    if told["outcomes"]["running"]:
        note(
            f"{told['outcomes']['running']} trials are still running in other workers; should one die, this command "
            "again takes its trial up (--wait stays for that)"
        )
    if told["best"] is None:
        note("no trial reached the end of its budget")
        return
    if told["confirmed"] is None and told["trials"] > 1:
        note(
            f"the best of {told['trials']} trials is partly luck: its value is too good. For a figure to report, the "
            "same command with --confirm 3"
        )
    note(f"next: rnn-lab fit --config {shlex.quote(str(out / 'configs' / (told['best']['run'] + '.toml')))}")
    note(f"      rnn-lab search-curve {shlex.quote(str(out))}")
