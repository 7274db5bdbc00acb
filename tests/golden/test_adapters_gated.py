"""Every gated vector cell of the source, made from stand-ins, through the runner."""

from pathlib import Path

import pytest
import torch

from .runner import run_case
from .standins import D, lm_case, vector_case
from .standins_gated import STEPS, params, run
from .subject import Setting

RANKS = {"66": 16, "66r16": 16, "67lr": 8}
"""What the source resolves an unset rank to at these widths."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def passes(stem: Path) -> None:
    outcome = run_case(stem, Setting())
    assert outcome.status == "pass", outcome.line()


def layer_case(folder: Path, level: str, d: int, rank: int | None, /, **ctor: object) -> Path:
    resolved = {"expansion": d / D, "rank": rank, "n_slots": None, "w_h_mode": None, "use_conv": False}
    sidecar = {
        "family": f"e{level[:2]}",
        "level_key": int(level) if level.isdigit() else level,
        "ctor": {"dim": D, "expansion": d / D} | ctor,
        "resolved": resolved,
        "symbols": {},
    }
    return vector_case(folder, "case", sidecar, params(level, d, rank or 1), run(level))


@pytest.mark.parametrize("d", [D, D * 3 // 2])
@pytest.mark.parametrize("level", STEPS)
def test_layer(tmp_path: Path, level: str, d: int) -> None:
    passes(layer_case(tmp_path, level, d, RANKS.get(level)))


@pytest.mark.parametrize(("level", "rank"), [("66", 4), ("67lr", 5)])
def test_rank(tmp_path: Path, level: str, rank: int) -> None:
    passes(layer_case(tmp_path, level, 9, rank, rank=rank))


@pytest.mark.parametrize("level", ["66", "68"])
def test_language_model(tmp_path: Path, level: str) -> None:
    rank = RANKS.get(level)
    passes(
        lm_case(
            tmp_path,
            "case",
            "RMSNorm",
            level=int(level),
            layer_params=lambda d: params(level, d, rank or 1),
            run=run(level),
            rank=rank,
        )
    )
