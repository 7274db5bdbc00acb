"""What Collider saves on a GPU: of its products, and of a whole backward pass."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from results import NOTHING, Table, commit_of, records

WAYS = ("all positions", "kept rows that lie together", "kept rows copied", "kernel")


def products_block(folder: Path, table: Table) -> str:
    """Pages of bench/filtered.py, a row per shape."""
    headers = "matrices", *(f"{way}, ms" for way in WAYS), "less"
    parts = []
    for page in records(folder, "filtered"):
        rows = [
            (f"{maps} of {M} x {K}", *(f"{row['ms']:.3f}" for row in rows), f"{rows[-1]['reduction']:.0%}")
            for (maps, M, K), rows in _by_shape(page["rows"])
        ]
        parts.append(f"{_where(page)}.\n\n{table(headers, rows)}")
    return "\n".join(parts) or NOTHING


def backward_block(folder: Path, table: Table) -> str:
    """Pages of `rnn-lab bench backward`, a row each, the narrowest first."""
    pages = sorted(records(folder, "backward"), key=lambda page: (page["model"], page["dim"]))
    headers = (
        "model", "layers", "filtered", "forward, ms", "backward, ms", "with Collider, ms", "less backward", "95 %",
        "less of both", "measured",
    )  # fmt: skip
    rows = [
        (
            f"{page['model']}, dim {page['dim']}", page["depth"], f"{page['sparsity']:.0%}",
            *(f"{page['dense'][name]:.2f}" for name in ("forward_ms", "backward_ms")),
            f"{page['filtered']['backward_ms']:.2f}", f"{page['backward_reduction']['value']:.1%}",
            f"{page['backward_reduction']['low']:.1%} to {page['backward_reduction']['high']:.1%}",
            f"{page['step_reduction']['value']:.1%}", _where(page),
        )
        for page in pages
    ]  # fmt: skip
    return table(headers, rows) if rows else NOTHING


def _by_shape(rows: Iterable[dict[str, Any]]) -> list[tuple[tuple[int, int, int], list[dict[str, Any]]]]:
    """Rows of each shape, in the order of WAYS."""
    shapes: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        shapes.setdefault((row["maps"], row["M"], row["K"]), {})[row["way"]] = row
    return [(shape, [found[way] for way in WAYS]) for shape, found in shapes.items()]


def _where(page: dict[str, Any]) -> str:
    head = page["header"]
    return f"{head['date']}, {head['device']}, torch {head['torch']}, {commit_of(head)}"
