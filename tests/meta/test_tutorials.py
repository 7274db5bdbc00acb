"""The commands of the tutorials work, in their order, in one folder.

A block marked `run` is run by bash; one marked `file=PATH` is written to PATH first, its text taken from the file
that `from=` names in the repository where it is empty; one marked `root` is run in the repository.
"""

import pytest

from .pages import blocks
from .source import ROOT

PAGES = ("docs/quickstart.md", "docs/add-a-model.md", "CONTRIBUTING.md")


def follow(page, lab, folder):
    """Do what a page says; returns how many blocks were run."""
    count = 0
    for block in blocks(ROOT / page):
        if name := block.mark("file"):
            origin = block.mark("from")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((ROOT / origin).read_text() if origin else block.text)
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
        assert (folder / "runs/installed/result.json").is_file()
        assert "leaky" not in lab.lab("list-models", cwd=folder).stdout


def test_contributing_shows_the_example_as_it_is():
    (block,) = [b for b in blocks(ROOT / "CONTRIBUTING.md") if b.language == "python" and "Model" in b.text]
    lines = {line.strip() for line in block.text.splitlines() if line.strip()}
    example = (ROOT / "docs/examples/leaky.py").read_text()
    unmatched = [line for line in lines if line not in example and not line.startswith("def ")]
    assert not unmatched
    defs = [line.split("(")[0] for line in lines if line.startswith("def ")]
    assert all(f"{name}(" in example for name in defs)
