"""Configurations of E63m and E74 diagonal, made from stand-ins of the source, through the runner."""

from pathlib import Path

import pytest
import torch

from .runner import run_case
from .standins import B, D, draw, matrix_case
from .standins_memory import e63m, e63m_params, e74d_cell, e74d_fused, e74d_params
from .subject import Setting
from .test_adapters import ABLATION, PROJECTIONS, passes

FUSED = "re-expressed in PyTorch from elman/cuda/lib/e74_fused_gpu.cu.cc @ 9acbaa6c"
CELL_CASES = [
    *[(p, f, u, "output") for p in PROJECTIONS for f in ("tanh", "linear") for u in ("delta", "simple")],
    *[(p, f, "delta", g) for p in PROJECTIONS for f in ("tanh", "linear") for g in ("retain", "state")],
    *[(p, "tanh", "ema", "output") for p in PROJECTIONS],
    *[("no_z", f, "delta", "output") for f in ("rmsnorm", "frobnorm")],
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize("form", ["full", "lite", "rnn"])
def test_e63m(tmp_path: Path, form: str) -> None:
    config = {"dim": D, "expansion": 1.5, "d_inner": 9, "n_slots": 4, "variant": form, "use_conv": False, "d_conv": 4}
    sidecar = {"source": "ekg/elman @ 9acbaa6c elman/models/e63m_matrix_nonlinear.py", "config": config}
    passes(matrix_case(tmp_path, "case", sidecar, e63m_params(form, 9, 4), e63m(form), draw(B, 4, 9)))


@pytest.mark.parametrize(("projection", "nonlinearity", "update", "gate"), CELL_CASES)
def test_e74_diagonal_cell(tmp_path: Path, projection: str, nonlinearity: str, update: str, gate: str) -> None:
    config = {"dim": D, "expansion": 2.0, "d_inner": 2 * D, "n_state": 4, "state_type": "diagonal"}
    config |= {"proj_type": projection, "nonlin_type": nonlinearity, "update_type": update, "gate_type": gate}
    params = e74d_params(config, "cell.cell.", fused=False)
    passes(matrix_case(tmp_path, "case", {"source": ABLATION, "config": config}, params, e74d_cell(config), draw(B, 4)))


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "linear"])
@pytest.mark.parametrize("update", ["delta", "simple"])
def test_e74_diagonal_fused(tmp_path: Path, projection: str, nonlinearity: str, update: str) -> None:
    config = {"dim": D, "d_inner": 2 * D, "n_state": 4, "proj_type": projection, "nonlin": nonlinearity}
    config |= {"update": update, "decay": 0.9}
    params, sidecar = e74d_params(config, "", fused=True), {"source": FUSED, "config": config, "note": "time-major"}
    passes(matrix_case(tmp_path, "case", sidecar, params, e74d_fused(config), draw(B, 4), time_first=True))


def test_another_constant_decay_is_refused(tmp_path: Path) -> None:
    config = {"dim": D, "d_inner": 2 * D, "n_state": 4, "proj_type": "no_z", "nonlin": "tanh", "update": "simple"}
    params, sidecar = e74d_params(config, "", fused=True), {"source": FUSED, "config": config | {"decay": 0.8}}
    stem = matrix_case(tmp_path, "case", sidecar, params, e74d_fused(config), draw(B, 4), time_first=True)
    assert "'decay' = 0.8" in run_case(stem, Setting()).what
