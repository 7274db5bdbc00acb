"""The pages: complete in themselves, the same for the same runs, and honest about what they show."""

import itertools
import re
from html.parser import HTMLParser

import pytest
from rnn_lab.report.build import facts
from rnn_lab.report.charts import _apart
from rnn_lab.report.facts import Kernel
from rnn_lab.report.render import duration, kernel_rows, md, memory, pvalue, si, signed
from rnn_lab.report.tensorboard import FILE, FOLDER
from rnn_lab.report.write import HTML, JSON, MARKDOWN, pages

from .folders import copy, write_series

VOID = {"meta", "br", "use"}


class Outline(HTMLParser):
    """Ids, tags and whether everything that opens also closes."""

    def __init__(self):
        super().__init__()
        self.ids, self.tags, self.open, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(reported):
    return (reported / HTML).read_text()


@pytest.fixture(scope="module")
def outline(page):
    parsed = Outline()
    parsed.feed(page)
    return parsed


def test_the_page_is_well_formed(outline, page):
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    for name in re.findall(r'(?:href="#|aria-labelledby="|url\(#)([^")]+)', page):
        assert name in outline.ids


def test_the_page_needs_nothing_else(outline, page):
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(outline.tags)
    assert "://" not in page
    assert "@import" not in page and "url(" not in re.sub(r"url\(#[^)]*\)", "", page)


def test_light_dark_phone_and_print(page):
    assert "prefers-color-scheme: dark" in page and "@media print" in page and "@media (max-width" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    light, dark = re.search(r":root \{(.*?)\}.*?:root \{(.*?)\}", page, re.DOTALL).groups()
    assert re.findall(r"(--\w+):", light) == re.findall(r"(--\w+):", dark)


def test_charts_take_every_colour_from_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 7
    for drawing in drawings:
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", drawing)
        assert "var(--c1)" in drawing and 'role="img"' in drawing


def test_contrast_of_text_and_lines(page):
    """WCAG: 4.5 for text, 3 for lines, in both themes."""
    for theme in re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2]:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for name, least in {
            "ink": 7,
            "faint": 4.5,
            "good": 4.5,
            "bad": 4.5,
            **{f"c{i}": 3 for i in range(1, 9)},
        }.items():
            assert contrast(colours[name], colours["back"]) >= least, name


def contrast(a, b):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_of_runs_is_shown_as_it_is(outline, page, reported):
    assert "<b>crash" not in page and "<i>old" not in page
    assert any("<i>old</i>" in text for text in outline.text)
    assert r"\<i\>old\</i\>" in (reported / MARKDOWN).read_text()


def test_labels_with_mathematics_and_markup_are_drawn(tmp_path):
    series = write_series(tmp_path / "s", seeds=1)
    plan = (series / "series.json").read_text()
    (series / "series.json").write_text(plan.replace('"label": "E68"', '"label": "<&$\\\\frac{$|x"'))
    report = facts(series)
    assert "<&$\\frac{$|x" in [one.label for one in report.standings]
    written = pages(report)
    parsed = Outline()
    parsed.feed(written[HTML])
    assert parsed.open == []
    assert "&lt;&amp;$\\frac{$|x" in written[HTML]


def test_the_same_runs_give_the_same_bytes_anywhere(reported, tmp_path):
    moved = copy(reported, tmp_path / "elsewhere")
    written = pages(facts(moved))
    for name in (JSON, MARKDOWN, HTML):
        assert written[name] == (reported / name).read_text()


def test_every_label_of_the_ranking_is_in_every_chart(page, reported):
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL)[:6]:
        for label in ("E61", "E68", "E1", "GRU"):
            assert f">{label}</text>" in drawing


def test_markdown_tables_have_the_columns_of_their_heads(reported):
    width = None
    for line in (reported / MARKDOWN).read_text().splitlines():
        if line.startswith("|"):
            columns = len(re.findall(r"(?<!\\)\|", line))
            assert width in (None, columns), line
            width = columns
        else:
            width = None


def test_a_folder_in_which_nothing_finished_has_a_page(tmp_path):
    (tmp_path / "series.json").write_text('{"protocol": "p", "jobs": [{"name": "a", "model": "e1", "seed": 1}]}')
    written = pages(facts(tmp_path))
    assert "No run finished" in written[HTML] and "never started" in written[MARKDOWN]


def test_tensorboard_shows_every_section(reported):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(reported / FOLDER))
    events.Reload()
    names = [tag.split(" ", 1)[1] for tag in events.Tags()["tensors"]]
    assert names[:3] == ["Findings/text_summary", "Ranking/text_summary", "Loss against speed/text_summary"]
    ranking = events.Tensors(events.Tags()["tensors"][1])[0].tensor_proto.string_val[0].decode()
    assert "| 1 | E61 |" in ranking
    assert [path.name for path in (reported / FOLDER).iterdir()] == [FILE]


def test_forms_of_figures():
    assert (si(48_742_912), si(999_700), si(7), si(None)) == ("48.7M", "1M", "7", "–")
    assert (memory(7.4e9), memory(450_359_296), signed(-0.5), pvalue(0.03)) == (
        "7.40 GB",
        "450.4 MB",
        "−0.5000",
        "0.03",
    )
    assert (duration(0.004), duration(61.24), pvalue(1e-9)) == ("0.004 s", "61.2 s", "< 0.0001")
    assert md("a|b *c* <d>\n_e_ n_state") == r"a\|b \*c\* \<d\> \_e\_ n_state"


def test_kernels_that_served_alike_share_a_row():
    refused = {"triton": "on cpu", "cuda": "on cpu", "graph": "too old"}
    rows = kernel_rows([Kernel(label, "scan", "reference", "0-3", refused) for label in ("a", "b")])
    assert rows == [("scan", "reference", "a, b (layers 0-3)", [("triton, cuda", "on cpu"), ("graph", "too old")])]


def test_names_are_pushed_apart_and_stay_in_the_frame():
    places = _apart([0.1, 0.1, 0.11, 0.97, 0.99], 0.05)
    assert all(b - a > 0.045 for a, b in itertools.pairwise(places))
    assert places[0] >= 0 and places[-1] <= 1
    assert _apart([0.2, 0.6], 0.05) == [0.2, 0.6]
