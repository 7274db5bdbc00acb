"""The golden vectors of the source, where they are at hand.

RNN_LAB_GOLDEN is a folder with `vector/` and `matrix/`. With RNN_LAB_GOLDEN_REQUIRED=1 its absence fails, and
so does a skipped case of a model whose file is in this repository.
"""

import os
from pathlib import Path

import pytest

from .cases import FolderError, discover
from .runner import run_case
from .subject import Setting

FOLDER = os.environ.get("RNN_LAB_GOLDEN", "")
REQUIRED = os.environ.get("RNN_LAB_GOLDEN_REQUIRED", "") not in ("", "0")
PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def cases() -> list[Path]:
    """Every case of both folders; none where there are no folders."""
    if not FOLDER:
        return []
    try:
        return discover([Path(FOLDER) / "vector", Path(FOLDER) / "matrix"])
    except FolderError:
        return []


FOUND = cases()


def test_golden_vectors_are_at_hand() -> None:
    if FOUND:
        return
    reason = f"no golden vectors: RNN_LAB_GOLDEN={FOLDER!r} is not a folder with vector/ and matrix/"
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.parametrize("stem", FOUND, ids=[stem.name for stem in FOUND])
def test_golden(stem: Path) -> None:
    outcome = run_case(stem, Setting())
    if outcome.status == "skip":
        model = outcome.what.split()[1]
        if REQUIRED and list(PLUGINS.glob(f"*/rnn_lab_*/{model}.py")):
            pytest.fail(f"{outcome.line()}, but its file is here")
        pytest.skip(outcome.what)
    assert outcome.status == "pass", outcome.line()
