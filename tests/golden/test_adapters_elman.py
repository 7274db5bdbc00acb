"""Every dense Elman cell of the source, made from stand-ins, through the runner."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .runner import run_case
from .standins import B, D, Run, draw, lm_case, vector_case
from .standins_elman import R, S, clipped, e5, e42, params, power, rescaled, rescaled_product, two_branches
from .subject import Setting

WIDTHS = [D, D * 3 // 2]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def passes(stem: Path) -> None:
    outcome = run_case(stem, Setting())
    assert outcome.status == "pass", outcome.line()


def sidecar(level: int, d: int, resolved: dict[str, Any], **ctor: object) -> dict[str, Any]:
    """As the source's cases have it; defaults that the source resolved stand in `resolved` only."""
    settled = {"expansion": d / D, "rank": None, "n_slots": None, "w_h_mode": None, "use_conv": False, "d_conv": None}
    expansion = {} if d == D else {"expansion": d / D}
    return {
        "family": f"e{level}",
        "level_key": level,
        "ctor": {"dim": D, **expansion, **ctor},
        "resolved": settled | resolved,
        "symbols": {},
    }


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("mode", ["none", "spectral_norm"])
def test_e1(tmp_path: Path, d: int, mode: str) -> None:
    p, u0 = params("e1", d), draw(d)
    sides = sidecar(1, d, {"w_h_mode": mode, "spectral_radius": 0.99}, r_h_mode=mode)
    if mode == "none":
        passes(vector_case(tmp_path, "case", sides, p, two_branches()))
    else:
        aux = {"aux.u0": u0, "aux.u_after": power(p["cell.W_h"], u0)[0]}
        passes(vector_case(tmp_path, "case", sides, p, two_branches(rescaled("W_h", 0.99, u0)), aux=aux))


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize(("size", "radius"), [(0.1, 0.99), (2.0, 0.99), (0.5, 0.3)])
def test_e2(tmp_path: Path, d: int, size: float, radius: float) -> None:
    p, u0 = params("e2", d), draw(d)
    p["cell.W_h"] *= size / torch.linalg.matrix_norm(p["cell.W_h"], 2)
    sides = sidecar(2, d, {"spectral_radius": radius, "n_slots": S}, n_slots=S, diag=False)
    _slots(tmp_path, sides, p, two_branches(clipped(radius, u0), S), d, {"aux.u0": u0})


def test_e2_diagonal(tmp_path: Path) -> None:
    sides = sidecar(2, 9, {"spectral_radius": 0.99, "n_slots": S}, diag=True)
    _slots(tmp_path, sides, params("e2_diag", 9), two_branches(slots=S), 9, {})


@pytest.mark.parametrize("d", WIDTHS)
def test_e3(tmp_path: Path, d: int) -> None:
    sides = sidecar(3, d, {"spectral_radius": 0.99, "n_slots": S, "rank": 64})
    _slots(tmp_path, sides, params("e3", d), two_branches(slots=S), d, {}, slots_first=True)


def test_e3_low_rank(tmp_path: Path) -> None:
    sides = sidecar(3, 9, {"spectral_radius": 0.99, "n_slots": S, "rank": R}, diag=False, rank=R)
    _slots(tmp_path, sides, params("e3_lowrank", 9), two_branches(slots=S), 9, {}, slots_first=True)


def _slots(
    folder: Path,
    sides: dict[str, Any],
    p: dict[str, Tensor],
    run: Run,
    d: int,
    aux: dict[str, Tensor],
    slots_first: bool = False,
) -> None:
    layout = "[T+1,n_slots,B,d]" if slots_first else "[T+1,B,n_slots,d]"

    def stack(states: Tensor) -> Tensor:
        return states.transpose(1, 2) if slots_first else states

    sides |= {"layouts": {"h_all": layout}}
    passes(vector_case(folder, "case", sides, p, run, draw(B, S, d), aux, stack))


@pytest.mark.parametrize("d", WIDTHS)
def test_e4(tmp_path: Path, d: int) -> None:
    p, u0 = params("e4", d, 16), draw(d)
    aux = {"aux.u0": u0, "aux.u_after": power(p["cell.U"] @ p["cell.V"], u0)[0]}
    sides = sidecar(4, d, {"spectral_radius": 0.95, "rank": 16})
    passes(vector_case(tmp_path, "case", sides, p, two_branches(rescaled_product(0.95, u0)), aux=aux))


@pytest.mark.parametrize("rank", [16, 3])
def test_e5(tmp_path: Path, rank: int) -> None:
    ctor = {} if rank == 16 else {"rank": rank}
    sides = sidecar(5, D, {"rank": rank, "spectral_radius": None}, **ctor)
    passes(vector_case(tmp_path, "case", sides, params("e5", D, rank), e5, draw(B, D)))


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("mode", ["none", "spectral_norm"])
def test_e42(tmp_path: Path, d: int, mode: str) -> None:
    p, u0 = params("e42", d), draw(d)
    sides = sidecar(42, d, {"w_h_mode": mode, "spectral_radius": 0.999}, r_h_mode=mode)
    if mode == "none":
        passes(vector_case(tmp_path, "case", sides, p, e42()))
    else:
        aux = {"aux.u0": u0, "aux.u_after": power(p["cell.W"], u0)[0]}
        passes(vector_case(tmp_path, "case", sides, p, e42(rescaled("W", 0.999, u0)), aux=aux))


@pytest.mark.parametrize("d", WIDTHS)
def test_e56(tmp_path: Path, d: int) -> None:
    passes(vector_case(tmp_path, "case", sidecar(56, d, {}), params("e56", d), two_branches()))


def test_language_model(tmp_path: Path) -> None:
    passes(lm_case(tmp_path, "case", "RMSNorm", level=42, layer_params=lambda d: params("e42", d), run=e42()))
