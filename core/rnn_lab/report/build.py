"""From a folder of runs to the facts of its report."""

from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from rnn_lab.errors import RunError
from rnn_lab.records import Series, read_series
from rnn_lab.report import charts, details
from rnn_lab.report.contestants import METRICS, Contestant, contestants, run_rows
from rnn_lab.report.curves import curves, milestones
from rnn_lab.report.facts import Report, settled
from rnn_lab.report.findings import findings
from rnn_lab.report.judging import judged, verdicts
from rnn_lab.report.published import agreements, published
from rnn_lab.report.ranking import along, standings
from rnn_lab.train.metrics import WINDOW

_LIBRARIES = ("rnn-lab-core", "numpy", "scipy", "jinja2")


def facts(folder: Path, allow: Iterable[str] = ()) -> Report:
    """Every figure of the report on `folder`, computed from the runs.

    Args:
        folder: a series, or a folder of runs.
        allow: obstacles (differences.TOPICS) that pairs are compared in spite of.

    Raises:
        RunError: the folder holds no runs, or its plan is damaged. A damaged run is a row, not an error.
    """
    series = read_series(folder, keep_damaged=True)
    metric = _metric(series)
    rows = run_rows(folder, series.runs, metric)
    field = contestants(series.runs, rows, metric)
    if not rows:
        raise RunError(f"{folder}: the plan holds no jobs: nothing to report")
    noise = details.noise_of(series)
    judgement = judged(field, frozenset(allow))
    found = verdicts(judgement, noise) if judgement else ()
    shared, environment, confounds = details.shared_and_confounds(field)
    places = standings(field, metric, along(found, budget_axis(series)), noise)
    beside = published(series.external, field, places)
    report = Report(
        title=_title(series, field),
        description=str(series.meta.get("description") or ""),
        metric=METRICS.get(metric, metric),
        axis=budget_axis(series),
        window=_window(field),
        made_with=made_with(),
        allowed=tuple(sorted(allow)),
        settings=shared,
        notes=_notes(series),
        findings=(),
        standings=places,
        verdicts=found,
        curves=curves(field, _window(field)),
        milestones=milestones(field, _window(field)),
        reversals=judgement.reversals if judgement else (),
        sizes=details.sizes(field),
        kernels=details.kernels(field),
        runs=rows,
        published=beside,
        agreements=agreements(beside),
        confounds=confounds,
        noise=noise,
        commands=details.commands(series),
        environment={"dates": details.dates(field), **environment},
    )
    return settled(findings(settled(report)))


def made_with() -> dict[str, str]:
    """Versions that the bytes of a report depend on."""
    return {name: metadata.version(name) for name in _LIBRARIES} | charts.versions()


def budget_axis(series: Series) -> str:
    """What the runs were given an equal amount of: steps, tokens, or seconds of the training clock."""
    budgets = [run.config.get("train", {}) for run in series.runs if run.config]
    for key, axis in (("minutes", "seconds"), ("tokens", "tokens")):
        if budgets and all(train.get(key) is not None for train in budgets):
            return axis
    return "steps"


def _metric(series: Series) -> str:
    """The figure of result.json that the protocol compares."""
    return str(series.meta.get("metric") or "last100")


def _title(series: Series, field: Sequence[Contestant]) -> str:
    """Name of the protocol, a file's without its place; the contestants where there is none."""
    if series.meta.get("protocol"):
        return Path(str(series.meta["protocol"])).stem
    labels = [one.label for one in field]
    more = f" and {len(labels) - 3} more" if len(labels) > 4 else ""
    return ", ".join(labels[: 3 if more else 4]) + more or "No finished run"


def _notes(series: Series) -> tuple[str, ...]:
    """What a reader has to know, from the protocol."""
    return tuple(" ".join(str(note).split()) for note in series.meta.get("notes") or ())


def _window(field: Sequence[Contestant]) -> int:
    """Steps that a loss along the way is averaged over: 100, or a tenth of runs shorter than 1,000."""
    shortest = min((len(run.lines) for one in field for run in one.runs if run.lines), default=WINDOW)
    return max(1, min(WINDOW, shortest // 10))
