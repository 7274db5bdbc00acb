"""The files of a report: report.json, REPORT.md, report.html and TensorBoard's view of the series."""

from collections.abc import Iterable
from pathlib import Path

from rnn_lab.errors import ConfigError
from rnn_lab.report.build import facts
from rnn_lab.report.facts import Report
from rnn_lab.report.render import html, markdown
from rnn_lab.report.tensorboard import write_text
from rnn_lab.system.atomic import write_text_atomic

JSON, MARKDOWN, HTML = "report.json", "REPORT.md", "report.html"


def pages(report: Report) -> dict[str, str]:
    """Every file of a report by name: the facts, and what follows from them."""
    return {JSON: report.to_json(), MARKDOWN: markdown(report), HTML: html(report)}


def write_report(folder: Path, out: Path | None = None, allow: Iterable[str] = ()) -> Report:
    """Write the report on the runs in `folder` to `out` (default: the folder itself).

    `allow` names obstacles (differences.TOPICS) that pairs are compared in spite of.

    Raises:
        RunError: the folder holds no runs.
        ConfigError: `out` cannot be written.
    """
    report = facts(folder, allow)
    target = out or folder
    try:
        target.mkdir(parents=True, exist_ok=True)
        written = pages(report)
        for name, text in written.items():
            write_text_atomic(target / name, text)
        write_text(target, written[MARKDOWN])
    except OSError as error:
        raise ConfigError(f"{target}: cannot write the report there: {error.strerror}") from error
    return report
