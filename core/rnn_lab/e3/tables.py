"""The report's sections as tables of text, the same for both pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from rnn_lab.comparison.efficiency import CLAIM, as_loss
from rnn_lab.e3.claims import percent
from rnn_lab.e3.facts import E3Report
from rnn_lab.e3.measure import Mean, Paired, Row
from rnn_lab.report.render import loss, memory, whole

MISSING = "–"
MEGA = 1e6


@dataclass(frozen=True)
class Table:
    """A section: a heading, sentences above, and cells; the first column names the row."""

    title: str
    text: tuple[str, ...]
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(report: E3Report) -> list[Table]:
    """Every section that is a table, in the order of the page."""
    return [
        _claims(report), _configurations(report), _losses(report), _costs(report), _health(report), _memory(report),
        _checklist(report), _diagnostics(report),
    ]  # fmt: skip


def _claims(report: E3Report) -> Table:
    text = (
        "Verdicts follow from rules: an interval beyond the claim's edge verifies or refutes it, one around the edge "
        "is inconclusive. Reductions of state are exact and stand against both baselines: Muon, the suite's own, and "
        "AdamW.",
    )
    rows = [
        (c.id, c.claim, c.of, c.baseline, c.formula, c.measured or MISSING, c.interval or MISSING, c.verdict, c.reason)
        for c in report.claims
    ]
    headers = ("id", "claim", "measured on", "against", "formula", "measured", "interval", "verdict", "remark")
    return Table("Claims", text, headers, tuple(rows))


def _configurations(report: E3Report) -> Table:
    names = list(dict.fromkeys(name for row in report.rows for name in row.features))
    rows = [(row.label, row.model, *(row.features.get(name, MISSING) for name in names)) for row in report.rows]
    text = (
        "As they ran: what config.toml of each run asks for, and off where its steps and its state had nothing of it.",
    )
    return Table("Configurations", text, ("configuration", "model", *names), tuple(rows))


def _losses(report: E3Report) -> Table:
    last = f"Last{report.last}"
    text = (
        f"{last} is the mean next-byte loss of the last {report.last} steps in nats per byte, over all positions, "
        "whatever was back-propagated; mean ± standard deviation over seeds. Δ is the difference to the baseline at "
        "equal steps on the same bytes, with its 95 % interval.",
        f"E is how much less data, time or work reaches the baseline's last loss (means of {report.along} steps); "
        f"above 1 is better.{_slope(report)}",
    )
    headers = ("configuration", "runs", "steps", last, "validation", "bits per byte", "Δ", "E_data", "E_time", "E_flop")
    rows = [
        (
            row.label, row.status, _mean(row.steps, "{:,.0f}"), _mean(row.last, "{:.4f}"), _mean(row.val, "{:.4f}"),
            _mean(row.bpb, "{:.4f}"), _paired(row.delta, "{:+.4f}"), _paired(row.e_data, "{:.3f}"),
            _paired(row.e_time, "{:.3f}"), _paired(row.e_flop, "{:.3f}"),
        )
        for row in report.rows
    ]  # fmt: skip
    why = list(dict.fromkeys(row.no_efficiency for row in report.rows if row.no_efficiency))
    return Table("Losses", (*text, *(f"No E: {reason}." for reason in why)), headers, tuple(rows))


def _slope(report: E3Report) -> str:
    """What an efficiency is worth in loss here."""
    if report.slope is None:
        return ""
    return (
        f" Over the last half of the baseline, loss ~ bytes^−b with b = {report.slope:.3f}: E = {CLAIM} is worth "
        f"{percent(as_loss(CLAIM, report.slope))} of the loss."
    )


def _costs(report: E3Report) -> Table:
    text = (
        "Bytes per second and milliseconds are medians over steps, the first ten left out. State is that of all "
        "optimizers; its reductions are against fp32 Muon and fp32 AdamW of the same parameters.",
    )
    headers = (
        "configuration", "parameters", "in heads", "bytes/s", "of the baseline's", "ms per step", "state, MB",
        "less than Muon", "less than AdamW", "peak memory", "waiting for data", "GPU busy (NVML)",
    )  # fmt: skip
    return Table("Speed and memory", text, headers, tuple(_cost(row) for row in report.rows))


def _cost(row: Row) -> tuple[str, ...]:
    state, references = row.state, row.state.get("reference_bytes") or {}
    saved = [
        percent(1 - state["bytes"] / references[key]) if references.get(key) else MISSING for key in ("muon", "adamw")
    ]
    return (
        row.label, whole(row.params), whole(row.heads_params) if row.ok else MISSING, _mean(row.speed, "{:,.0f}"),
        _paired(row.speed_ratio, "{:.3f}"), _mean(row.step_ms, "{:.2f}"),
        f"{state['bytes'] / MEGA:.3f}" if state else MISSING, *saved, memory(row.peak.value if row.peak else None),
        MISSING if row.waited is None else percent(row.waited.value),
        MISSING if row.busy is None else f"{row.busy.value:.0f} %",
    )  # fmt: skip


def _health(report: E3Report) -> Table:
    horizons = list(dict.fromkeys(key for row in report.rows for key in row.ahead))
    text = (
        "Gradient norms after the warm-up, before the clip. Under Muon the norm does not change the length of a step; "
        "Collider and heads shift its scale.",
    )
    headers = (
        "configuration",
        "median norm",
        "5 to 95 %",
        "within 0.5 to 5",
        "filtered",
        *(f"CE {key[4:]}" for key in horizons),
    )
    rows = []
    for row in report.rows:
        middle = MISSING if row.norms is None else f"{row.norms[0]:.3f}"
        around = MISSING if row.norms is None else f"{row.norms[1]:.3f} to {row.norms[2]:.3f}"
        calm = MISSING if row.calm is None else percent(row.calm)
        ahead = (_mean(row.ahead.get(key), "{:.4f}") for key in horizons)
        filtered = MISSING if row.sparsity is None else percent(row.sparsity.value)
        rows.append((row.label, middle, around, calm, filtered, *ahead))
    return Table("Gradients and objectives", text, headers, tuple(rows))


def _memory(report: E3Report) -> Table:
    text = (
        "State is predicted from shapes alone, and measured tensor by tensor after training; weights and gradients are "
        "counted from the model's parameters. What is left of the peak are activations, workspaces and, on a CPU, the "
        "program itself.",
    )
    rows = []
    for one in report.memory:
        equal = MISSING
        if one.predicted is not None and one.measured is not None:
            equal = "equal" if one.predicted == one.measured else f"{one.measured - one.predicted:+,}"
        rows.append((one.label, one.part, whole(one.predicted), whole(one.measured), equal))
    headers = ("configuration", "part", "predicted, bytes", "measured, bytes", "difference")
    return Table("Memory", text, headers, tuple(rows))


def _checklist(report: E3Report) -> Table:
    rows = tuple((item.name, item.rule, item.state, item.found or MISSING) for item in report.items)
    return Table("Checklist", ("The documents' items, each by a rule.",), ("item", "rule", "state", "found"), rows)


def _diagnostics(report: E3Report) -> Table:
    rows = tuple(
        (
            d.label,
            d.id,
            d.severity or MISSING,
            str(d.count),
            str(d.first_step),
            d.message or MISSING,
            d.suggestion or MISSING,
        )
        for d in report.diagnostics
    )
    text = () if rows else ("None fired, or the runs recorded none.",)
    headers = ("configuration", "id", "severity", "count", "first step", "message", "suggestion")
    return Table("Diagnostics", text, headers, rows)


def _mean(found: Mean | None, form: str) -> str:
    if found is None:
        return MISSING
    return form.format(found.value) + (f" ± {form.format(found.sd)}" if found.sd else "")


def _paired(found: Paired | None, form: str) -> str:
    if found is None:
        return MISSING
    shown = form.format(found.value)
    if found.low is not None and found.high is not None:
        shown += f" ({form.format(found.low)} to {form.format(found.high)})"
    return shown.replace("-", "−")


def counted(report: E3Report) -> Sequence[tuple[str, int]]:
    """Verdicts and how many claims have each."""
    order = ("verified", "refuted", "inconclusive", "not run")
    return [(verdict, sum(c.verdict == verdict for c in report.claims)) for verdict in order]


def headline(report: E3Report) -> str:
    """One sentence above everything."""
    ok, total = sum(row.ok for row in report.rows), sum(row.total for row in report.rows)
    told = ", ".join(f"{n} {verdict}" for verdict, n in counted(report) if n)
    base = next((row for row in report.rows if row.last is not None), None)
    best = "" if base is None or base.last is None else f" {base.label}: {loss(base.last.value)} nats per byte."
    return f"{ok} of {total} runs ended well. Claims: {told}.{best}"
