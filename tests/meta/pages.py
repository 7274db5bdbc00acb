"""Fenced blocks, tables and the tree of a Markdown page."""

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; `marks` are the words after its language, such as `run` or `file=a.py`."""

    language: str
    marks: tuple[str, ...]
    text: str

    def mark(self, name: str) -> str:
        """Value of `name=value` among the marks, empty where there is none."""
        return next((m.partition("=")[2] for m in self.marks if m.startswith(f"{name}=")), "")


def blocks(path: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found = _FENCE.findall(path.read_text(encoding="utf-8"))
    return [Block(language, tuple(marks.split()), text) for language, marks, text in found]


def sections(path: Path) -> dict[str, str]:
    """Text under each second-level heading."""
    parts = re.split(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Cells of the tables in `text`, without header and rule; code marks are dropped."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    found: list[list[str]] = []
    for i, row in enumerate(cells):
        rule = all(set(cell) <= set("-: ") and cell for cell in row)
        header = i + 1 < len(cells) and all(set(cell) <= set("-: ") and cell for cell in cells[i + 1])
        if not rule and not header:
            found.append(row)
    return found


def tree_entries(text: str) -> tuple[list[str], list[str]]:
    """Top-level names and full paths of an annotated tree: two spaces of indent mark what lies within."""
    top: list[str] = []
    every: list[str] = []
    for line in text.splitlines():
        name = line.split()[0].rstrip("/")
        if line.startswith("  "):
            every.append(f"{top[-1]}/{name}")
        else:
            top.append(name)
            every.append(name)
    return top, every
