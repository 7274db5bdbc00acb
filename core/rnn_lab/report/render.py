"""REPORT.md and report.html from the facts: templates and the forms that figures take in them, no arithmetic."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rnn_lab.comparison.compare import VALIDATION
from rnn_lab.report.charts import charts, colour_of
from rnn_lab.report.facts import Estimate, Kernel, Published, Report, Verdict

MISSING = "–"
_MINUS = "−"
_SPECIAL = re.compile(r"([\\`*\[\]|<>#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_SI = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
AXIS_TITLES = {"steps": "Steps", "tokens": "Bytes", "flops": "FLOPs", "seconds": "Seconds"}
PAIR_TITLES = {
    **{
        axis: f"training loss at equal {title.lower() if axis != 'flops' else title}"
        for axis, title in AXIS_TITLES.items()
    },
    VALIDATION: "validation loss at the end",
}


def html(report: Report) -> str:
    """The page, complete in itself: styles, charts and tables inline, no script, no address."""
    environment = _environment(autoescape=True)
    drawn = {name: Markup(svg) for name, svg in charts(report).items()}
    return environment.get_template("report.html.j2").render(_names(report), charts=drawn)


def markdown(report: Report) -> str:
    """The same figures as Markdown tables."""
    page = _environment(autoescape=False).get_template("REPORT.md.j2").render(_names(report))
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("rnn_lab.report", "templates"), autoescape=autoescape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "loss": loss, "signed": signed, "si": si, "whole": whole, "share": share, "memory": memory, "md": md,
        "spread": spread, "pm": pm, "duration": duration, "given": given, "line": line, "percent": percent,
        "pvalue": pvalue, "extent": extent, "reason": reason,
    }  # fmt: skip
    return environment


def _names(report: Report) -> dict[str, Any]:
    """What templates may ask for besides the facts."""
    return {
        "r": report,
        "axis_titles": AXIS_TITLES,
        "pairs": pair_rows(report.verdicts),
        "pair_titles": {
            axis: title for axis, title in PAIR_TITLES.items() if any(v.axis == axis for v in report.verdicts)
        },
        "methods": list(dict.fromkeys(verdict.method for verdict in report.verdicts if verdict.method)),
        "pair_notes": list(dict.fromkeys(note for verdict in report.verdicts for note in verdict.notes)),
        "documents": by_document(report.published),
        "caveats": list(dict.fromkeys(t for row in report.published for t in (row.caveat, row.history) if t)),
        "kernels": kernel_rows(report.kernels),
        "colour_of": lambda label: colour_of(label, report.standings),
        "labels": [one.label for one in report.standings],
    }


def pair_rows(verdicts: Sequence[Verdict]) -> list[tuple[str, str, dict[str, Verdict]]]:
    """One row per pair, its verdicts by axis."""
    rows: dict[tuple[str, str], dict[str, Verdict]] = {}
    for verdict in verdicts:
        rows.setdefault((verdict.a, verdict.b), {})[verdict.axis] = verdict
    return [(a, b, by_axis) for (a, b), by_axis in rows.items()]


def by_document(rows: Sequence[Published]) -> dict[str, list[Published]]:
    """Published rows by the document that they stand in."""
    found: dict[str, list[Published]] = {}
    for row in rows:
        found.setdefault(row.document, []).append(row)
    return found


def kernel_rows(kernels: Sequence[Kernel]) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Operation, backend, `model (layers)` of all that ran it so, and the reasons with the backends that gave them."""
    rows: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[str, list[str]]] = {}
    for kernel in kernels:
        key = (kernel.op, kernel.backend, tuple(kernel.refused.items()))
        rows.setdefault(key, {}).setdefault(kernel.layers, []).append(kernel.label)
    found = []
    for (op, backend, refused), by_layers in rows.items():
        who = "; ".join(f"{', '.join(labels)} (layers {layers})" for layers, labels in by_layers.items())
        reasons: dict[str, list[str]] = {}
        for name, reason in refused:
            reasons.setdefault(reason, []).append(name)
        found.append((op, backend, who, [(", ".join(names), reason) for reason, names in reasons.items()]))
    return found


def given(value: object) -> str:
    """Text, or a dash for None and nothing."""
    return MISSING if value is None or value == "" else str(value)


def loss(value: float | None) -> str:
    """Nats per byte to four decimals."""
    return MISSING if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return MISSING if value is None else f"{value:+.4f}".replace("-", _MINUS)


def pvalue(value: float | None) -> str:
    """A p-value, two digits."""
    return MISSING if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def whole(value: float | None) -> str:
    """An integer in groups of three digits."""
    return MISSING if value is None else f"{value:,.0f}"


def si(value: float | None) -> str:
    """Three significant digits and an SI prefix: `48.7M`."""
    if value is None:
        return MISSING
    for scale, suffix in _SI:
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def memory(value: float | None) -> str:
    """Bytes as `7.40 GB`, powers of ten."""
    return MISSING if value is None else f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def percent(value: float | None) -> str:
    """A fraction in per cent."""
    return MISSING if value is None else f"{value:.1%}"


def share(value: float | None) -> str:
    """A deviation in per cent, with its sign."""
    return MISSING if value is None else f"{value:+.2%}".replace("-", _MINUS)


def duration(value: float | None) -> str:
    """Seconds."""
    return MISSING if value is None else f"{value:,.1f} s" if value >= 0.05 or value == 0 else f"{value:.1g} s"


def spread(estimate: Estimate | None) -> str:
    """The interval of an estimate of a loss."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return MISSING
    return f"{estimate.low:.4f} to {estimate.high:.4f}"


def pm(verdict: Verdict) -> str:
    """Effect and interval of a verdict."""
    if verdict.effect is None:
        return MISSING
    return signed(verdict.effect) + ("" if verdict.half is None else f" ± {verdict.half:.4f}")


def reason(verdict: Verdict) -> str:
    """Why a pair was not judged at all; nothing of one that was."""
    return verdict.refusal or ("" if verdict.method else "; ".join(verdict.notes))


def extent(bounds: Sequence[float], form: str) -> str:
    """Least and most, in the form `si` or `whole`; one figure where they look the same."""
    shown = [{"si": si, "whole": whole}[form](value) for value in bounds]
    return " to ".join(dict.fromkeys(shown))


def line(value: object) -> str:
    """Text on one line."""
    return " ".join(str(value).split())


def md(value: object) -> str:
    """Text from a run as Markdown that shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", line(value)).replace("&", "&amp;")
