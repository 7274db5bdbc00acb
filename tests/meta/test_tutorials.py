"""The commands of the tutorials work, in their order, in one folder.

A block marked `run` is run by bash; one marked `file=PATH` is written to PATH first, and where `from=` names a file of
the repository it shows that file; one marked `root` is run in the repository.
"""

import tomllib

import pytest

from .pages import blocks
from .source import ROOT

PAGES = ("docs/quickstart.md", "docs/add-a-model.md", "CONTRIBUTING.md")


def follow(page, lab, folder):
    """Do what a page says; returns how many blocks were run."""
    count = 0
    for block in blocks(ROOT / page):
        if name := block.mark("file"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif {"run", "root"} & set(block.marks):
            where = ROOT if "root" in block.marks else folder
            lab.run("bash", "-euo", "pipefail", "-c", block.text, cwd=where)
            count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_work(page, lab, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    assert follow(page, lab, folder) >= 1
    if page == "docs/quickstart.md":
        for name in ("first", "fox", "study-1", "study-2"):
            assert (folder / "runs" / name / "result.json").is_file()
    if page == "docs/add-a-model.md":
        for name in ("slower", "fast", "installed"):
            assert (folder / "runs" / name / "result.json").is_file()
        origins = tomllib.loads((folder / "runs/fast/config.toml").read_text())["origins"]
        assert origins["model.start"] == "alias leaky-fast"
        assert "leaky" not in lab.lab("list-models", cwd=folder).stdout


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_files_as_they_are(page):
    for block in blocks(ROOT / page):
        assert block.text.strip(), f"{page}: an empty block"
        if origin := block.mark("from"):
            assert block.text == (ROOT / origin).read_text()


def test_contributing_shows_the_example_as_it_is():
    (block,) = [b for b in blocks(ROOT / "CONTRIBUTING.md") if b.language == "python" and "Model" in b.text]
    lines = {line.strip() for line in block.text.splitlines() if line.strip()}
    example = (ROOT / "docs/examples/leaky.py").read_text()
    unmatched = [line for line in lines if line not in example and not line.startswith("def ")]
    assert not unmatched
    defs = [line.split("(")[0] for line in lines if line.startswith("def ")]
    assert all(f"{name}(" in example for name in defs)
