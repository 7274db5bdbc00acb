"""The facts in sentences: what the runs show, what they do not, and what went wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rnn_lab.comparison.compare import VALIDATION
from rnn_lab.report.facts import Report

_EQUAL = {
    "steps": "optimizer steps",
    "tokens": "bytes",
    "flops": "training FLOPs",
    "seconds": "seconds of the training clock",
}
SOME = 4


def findings(report: Report) -> Report:
    """The report with its findings written."""
    return replace(report, findings=tuple(_sentences(report)))


def _sentences(report: Report) -> Iterator[str]:
    if not report.standings:
        yield "No run finished with a figure that can be compared."
    else:
        yield from _ranking(report)
        yield from _speed(report)
        yield from _reversed(report)
    yield from _correlations(report)
    if report.failures:
        names = [run.name for run in report.failures]
        counts = "counts" if len(names) == 1 else "count"
        yield f"{_count(len(names), 'run')} of {len(report.runs)} {counts} for nothing: {_few(names)}."


def _ranking(report: Report) -> Iterator[str]:
    best, *others = report.standings
    text = f"{best.label} has the lowest {report.metric}, {best.loss.value:.4f} nats per byte"
    said = {v.b: v for v in report.verdicts if v.a == best.label and v.axis == report.decides}
    shown = [one.label for one in others if said[one.label].verdict == "better" and not said[one.label].below_noise]
    unjudged = [one.label for one in others if said[one.label].verdict in ("inconclusive", "refused")]
    rest = [one.label for one in others if one.label not in (*shown, *unjudged)]
    if shown:
        text += f"; {_by(report)} it was shown to be better than {_few(shown)}"
    if rest:
        text += f"; no difference was shown from {_few(rest)}"
    if unjudged:
        text += f"; it could not be judged against {_few(unjudged)}"
    yield f"{text}."
    below = [one.label for one in others if one.below_noise]
    if below and report.noise:
        verb, floor = "is" if len(below) == 1 else "are", f"{report.noise.floor:.4f}"
        yield f"{_few(below)} {verb} within the noise floor of {floor} of the best: such a gap shows nothing."
    refused = [v for v in report.verdicts if v.verdict == "refused" and v.axis == report.decides]
    if refused:
        yield (
            f"{_count(len(refused), 'pair')} cannot be compared "
            f"{_by(report)}: see Pairs; `--allow` judges them in spite of what differs."
        )
    alone = any(len(one.runs) == 1 for one in report.standings)
    if alone and report.decides == VALIDATION:
        yield "Where there is one seed, nothing can be said of a difference between validation losses."
    elif alone:
        yield "Where there is one seed, intervals cover the noise within that run, not what another seed would give."


def _by(report: Report) -> str:
    """What the verdicts of the ranking rest on."""
    if report.decides == VALIDATION:
        return f"by validation loss after equal {_EQUAL[report.axis]}"
    return f"at equal {_EQUAL[report.axis]}"


def _speed(report: Report) -> Iterator[str]:
    known = [(one.tokens_per_s.value, one) for one in report.standings if one.tokens_per_s]
    if len(known) < 2:
        return
    rate, fastest = max(known, key=lambda pair: pair[0])
    ahead = [one.label for one in report.standings if one.on_front]
    yield (
        f"By means alone, which no test backs, {fastest.label} trained fastest, {rate:,.0f} bytes per second, and "
        f"nobody was ahead of {_few(ahead)} in both loss and speed."
    )


def _reversed(report: Report) -> Iterator[str]:
    shown = [row for row in report.reversals if row.decided]
    if len(shown) == 1:
        (row,) = shown
        yield (
            f"{row.a} is better at equal {_listed([_EQUAL[axis] for axis in row.a_ahead])}, {row.b} at equal "
            f"{_listed([_EQUAL[axis] for axis in row.b_ahead])}: what is held equal decides."
        )
    elif shown:
        pairs = [f"{row.a} against {row.b}" for row in shown]
        yield f"What is held equal decides the verdict for {_count(len(pairs), 'pair')}: {_few(pairs)}."


def _correlations(report: Report) -> Iterator[str]:
    for row in report.agreements:
        if row.of == "loss" and row.tau is not None:
            interval = "" if row.low is None else f", 95 % interval {_signed(row.low)} to {_signed(row.high)}"
            theirs = f"{_signed(row.tau)} over {row.n} models{interval}"
            yield f"Kendall's tau of our order with that of {row.document}: {theirs}."


def _signed(value: float | None) -> str:
    """A correlation with its sign."""
    return "unknown" if value is None else f"{value:+.2f}".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _few(names: Sequence[str]) -> str:
    """All of a few names, or the first of many and how many more."""
    return _listed(names if len(names) <= SOME + 1 else [*names[:SOME], f"{len(names) - SOME} more"])


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
