"""From a folder of runs to the facts of its report."""

from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from rnn_lab.comparison.compare import VALIDATION, held_equal
from rnn_lab.comparison.integrity import sha256
from rnn_lab.comparison.records import SERIES, Series, read_series
from rnn_lab.errors import RunError
from rnn_lab.report import charts, details, opening
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
    noise = details.noise_of(series, metric)
    judgement = judged(field, metric, frozenset(allow))
    found = verdicts(judgement, metric, noise) if judgement else ()
    axis = held_equal(series.runs)
    decides = VALIDATION if metric == VALIDATION else axis
    setup = details.setup(field)
    places = standings(field, metric, along(found, decides), noise)
    beside = published(series.external, field, places)
    report = Report(
        title=opening.title(series, field),
        description=opening.description(series.meta),
        budgets=opening.budgets(field),
        data=opening.corpora(field),
        metric=METRICS.get(metric, metric),
        axis=axis,
        decides=decides,
        window=_window(field),
        made_with=made_with(),
        allowed=tuple(sorted(allow)),
        settings=setup.settings,
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
        confounds=setup.confounds,
        unrecorded=setup.unrecorded,
        noise=noise,
        commands=details.commands(series),
        sources=sources(folder, [run.name for run in series.runs]),
        environment={"dates": details.dates(field), **setup.environment},
    )
    return settled(findings(settled(report)))


def made_with() -> dict[str, str]:
    """Versions that the bytes of a report depend on."""
    return {name: metadata.version(name) for name in _LIBRARIES} | charts.versions()


def sources(folder: Path, jobs: Iterable[str]) -> dict[str, str]:
    """sha256 of the files of a series that are no run's, by their place in it; none for a plain folder of runs."""
    names = (SERIES, "noise.json", *(f"jobs/{job}.json" for job in jobs))
    files = {name: folder / name for name in names} if (folder / SERIES).is_file() else {}
    return {name: found for name, path in files.items() if (found := sha256(path)) is not None}


def _metric(series: Series) -> str:
    """The figure of result.json that the protocol compares."""
    return str(series.meta.get("metric") or "last100")


def _notes(series: Series) -> tuple[str, ...]:
    """What a reader has to know, from the protocol."""
    return tuple(" ".join(str(note).split()) for note in series.meta.get("notes") or ())


def _window(field: Sequence[Contestant]) -> int:
    """Steps that a loss along the way is averaged over: 100, or a tenth of runs shorter than 1,000."""
    shortest = min((len(run.lines) for one in field for run in one.runs if run.lines), default=WINDOW)
    return max(1, min(WINDOW, shortest // 10))
