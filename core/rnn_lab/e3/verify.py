"""Whether the report on an E3 suite still says what its runs say."""

from pathlib import Path

from rnn_lab.e3.facts import facts
from rnn_lab.e3.render import HTML, JSON, MARKDOWN, pages
from rnn_lab.e3.suite import SUITE
from rnn_lab.report.verify import DRAWING, changed_lines, read_page


def holds_suite(folder: Path) -> bool:
    """Whether the report in `folder` is that of an E3 suite."""
    return (folder / SUITE).is_dir() and (folder / JSON).is_file()


def verify(folder: Path, *, other_versions: bool = False) -> list[str]:
    """Every place where the report differs from what the runs give; drawings are left out with `other_versions`.

    Raises:
        RunError: there is no report, or there are no runs.
    """
    expected = pages(facts(folder))
    found = []
    for name in (JSON, MARKDOWN, HTML):
        texts = [read_page(folder / name), expected[name]]
        texts = [DRAWING.sub("", text) for text in texts] if other_versions else texts
        found += [f"{name}, {place}" for place in changed_lines(*texts)]
    return found
