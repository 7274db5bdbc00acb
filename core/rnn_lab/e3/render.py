"""REPORT.md and report.html of the suite from its facts, and the files of a report."""

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rnn_lab.e3.facts import E3Report, facts
from rnn_lab.e3.plot import ascii_plot
from rnn_lab.e3.tables import headline, tables
from rnn_lab.errors import ConfigError
from rnn_lab.report.charts import colour_of, loss_curves
from rnn_lab.report.render import AXIS_TITLES, line, md
from rnn_lab.system.atomic import write_text_atomic

JSON, MARKDOWN, HTML = "e3.json", "REPORT.md", "report.html"
NUMBER = re.compile(r"[−+]?[\d.,]+ ?(%|ms|MB|GB)?( ± [\d.,]+)?( \(.*\))?|–|equal")


def pages(report: E3Report) -> dict[str, str]:
    """Every file of a report by name."""
    return {JSON: report.to_json(), MARKDOWN: markdown(report), HTML: html(report)}


def write_report(folder: Path) -> E3Report:
    """Write the report on the suite in `folder` into it.

    Raises:
        RunError: it holds no suite.
        ConfigError: it cannot be written.

    """
    report = facts(folder)
    try:
        for name, text in pages(report).items():
            write_text_atomic(folder / name, text)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write the report there: {error.strerror}") from error
    return report


def markdown(report: E3Report) -> str:
    """The page as Markdown, its curves in characters."""
    plots = {}
    for axis in dict.fromkeys(curve.axis for curve in report.curves):
        plots[axis] = ascii_plot([curve for curve in report.curves if curve.axis == axis], axis)
    page = _environment(autoescape=False).get_template("REPORT.md.j2").render(**_names(report), plots=plots)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def html(report: E3Report) -> str:
    """The page, complete in itself: styles, charts and tables inline, no script, no address."""
    drawn = {axis: Markup(svg) for axis, svg in loss_curves(report.curves, report.rows).items()}
    return _environment(autoescape=True).get_template("report.html.j2").render(**_names(report), charts=drawn)


def _names(report: E3Report) -> dict[str, object]:
    return {
        "r": report,
        "tables": tables(report),
        "headline": headline(report),
        "axis_titles": AXIS_TITLES,
        "colour_of": lambda label: colour_of(label, report.rows),
        "is_number": lambda text: NUMBER.fullmatch(text) is not None,
    }


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("rnn_lab.e3", "templates"), autoescape=autoescape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"md": md, "line": line}
    style = PackageLoader("rnn_lab.report", "templates").get_source(environment, "report.css")[0]
    environment.globals["style"] = Markup(style)
    return environment
