"""`rnn-lab search-curve`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rnn_lab.errors import ConfigError

from rnn_lab_cli.output import emit_json, json_option, note, table

if TYPE_CHECKING:
    from rnn_lab.search.curve import Curve


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def search_curve(folders: tuple[Path, ...], as_json: bool) -> None:
    """Compare the searches in folders DIR at equal tuning: the best loss to expect from k trials.

    Mean of the best of k trials (unbiased), its median with an exact 95 % interval, and the best of the first k as
    they came. Searches are comparable where metric, target and budget agree.
    """
    from rnn_lab.search.curve import curve_of
    from rnn_lab.search.trials import read_trials

    read = [(folder, *read_trials(folder)) for folder in folders]
    names = [str(search.get("model")) for _, search, _ in read]
    labels = [name if names.count(name) == 1 else str(folder) for name, (folder, _, _) in zip(names, read, strict=True)]
    curves = [curve_of(label, search, rows) for label, (_, search, rows) in zip(labels, read, strict=True)]
    differences = _differences([search for _, search, _ in read])
    if as_json:
        emit_json({"curves": [curve.as_dict() for curve in curves], "differences": differences})
    else:
        _show(curves)
    for difference in differences:
        note(f"not comparable: {difference}")
    for curve in curves:
        for text in curve.notes:
            note(f"{curve.label}: {text}")
    if "metric differs" in " ".join(differences):
        raise ConfigError("the searches minimise different metrics: compare those of one")


def _differences(searches: list[dict[str, object]]) -> list[str]:
    """What has to agree between searches that are compared, and does not."""
    found = []
    for key in ("metric", "target", "sampler", "data"):
        values = [search.get(key) for search in searches]
        if any(value != values[0] for value in values):
            shown = "" if key == "data" else ": " + ", ".join(str(value) for value in values)
            found.append(f"{key} differs{shown}")
    budgets = [{key: _train(search).get(key) for key in _BUDGET} for search in searches]
    found += [
        f"train.{key} differs: {', '.join(str(budget[key]) for budget in budgets)}"
        for key in _BUDGET
        if any(budget[key] != budgets[0][key] for budget in budgets)
    ]
    return found


_BUDGET = ("steps", "tokens", "minutes", "batch_size", "seq_len", "seed")


def _train(search: dict[str, object]) -> dict[str, object]:
    config = search.get("config")
    train = config.get("train") if isinstance(config, dict) else None
    return train if isinstance(train, dict) else {}


def _show(curves: "list[Curve]") -> None:
    """Rows at k = 1, 2, 4, ... and each curve's end."""
    longest = max(curve.n for curve in curves)
    shown = sorted({2**i for i in range(longest.bit_length())} | {curve.n for curve in curves})
    rows = []
    for k in (k for k in shown if k <= longest):
        for curve in curves:
            if k <= curve.n:
                row = curve.as_dict()["curve"][k - 1]
                columns = ("expected_best", "median_best", "low", "high", "best_so_far")
                rows.append([k, curve.label, *(row[column] for column in columns)])
    table(("trials", "search", "expected best", "median best", "95 % from", "to", "best so far"), rows)
