"""A series and its report, made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rnn_lab.report import render
from rnn_lab.report.facts import Report
from rnn_lab.report.write import write_report

from .folders import write_series


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a series with its report, to be read only."""
    path = write_series(tmp_path_factory.mktemp("series") / "micro")
    write_report(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def drawn_once() -> Iterator[None]:
    """Charts are pure: what was drawn for the same facts once is not drawn again."""
    draw = render.charts
    known: dict[str, dict[str, str]] = {}

    def remembered(report: Report) -> dict[str, str]:
        facts = report.to_json()
        if facts not in known:
            known[facts] = draw(report)
        return known[facts]

    render.charts = remembered
    yield
    render.charts = draw
