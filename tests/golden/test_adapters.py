"""Every configuration that golden data may have, made from stand-ins of the source, through the runner."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from .runner import run_case
from .standins import B, D, draw, gru, gru_params, lm_case, lstm, lstm_params, matrix_case
from .standins_matrix import e74, e74_params, e88, e88_params
from .subject import Setting

ABLATION = "ekg/elman @ b153a671 elman/models/e74_ablations.py E74Ablation"
SEED = "ekg/elman @ 7cef0014 train_e74.py E74Layer + e74_ablations.py @ b153a671 E74FullMatrixCell"
JANUARY, HEAD = "@ 87568a08 elman/models/e88_fla_hybrid.py", "@ 627683a9 elman/models/e88_fla_hybrid.py"
PROJECTIONS = ("full", "no_z", "tied_kq", "tied_kvq")
E74_CASES = [
    *[(p, f, u, "output") for p in PROJECTIONS for f in ("tanh", "linear") for u in ("delta", "simple")],
    *[(p, "tanh", "delta", g) for p in ("no_z", "full") for g in ("retain", "state", "input")],
    *[("no_z", f, "delta", "output") for f in ("rmsnorm", "frobnorm")],
    *[(p, "tanh", u, "output") for p in ("no_z", "full") for u in ("ema", "residual", "ntm", "retrieved_gate")],
    ("no_z", "tanh", "retrieved_gate", "input"),
]
OFF: dict[str, object] = {"use_conv": False, "use_gate": False, "use_output_norm": True}
E88_CASES: dict[str, tuple[str, dict[str, object]]] = {
    "per_head": (JANUARY, OFF | {"head_mix": "per_head"}),
    "weighted_sum": (JANUARY, OFF | {"head_mix": "weighted_sum"}),
    "input_weighted": (JANUARY, OFF | {"head_mix": "input_weighted"}),
    "sum": (JANUARY, OFF | {"head_mix": "sum"}),
    "conv": (JANUARY, OFF | {"use_conv": True}),
    "expand2": (JANUARY, OFF | {"expansion": 2.0, "use_gate": True, "gate_activation": "silu"}),
    "expand2_conv": (JANUARY, OFF | {"expansion": 2.0, "use_conv": True}),
    "tied_conv": (JANUARY, OFF | {"tie_kv": True, "use_conv": True}),
    "sigmoid": (JANUARY, OFF | {"use_gate": True, "gate_activation": "sigmoid"}),
    "linear_nonorm": (JANUARY, OFF | {"linear_state": True, "use_output_norm": False}),
    "nosilu": (JANUARY, OFF | {"use_silu": False}),
    "nol2": (JANUARY, OFF | {"use_l2_norm": False}),
    "simple": (JANUARY, OFF | {"simple_decay": True}),
    "head_default": (HEAD, {}),
    "head_gate": (HEAD, {"use_gate": True}),
    "head_constant": (HEAD, {"decay_mode": "constant"}),
    "head_none": (HEAD, {"decay_mode": "none"}),
    "head_write": (HEAD, {"use_gate": True, "use_write_gate": True}),
    "head_residual": (HEAD, {"use_value_residual": True}),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def passes(stem: Path) -> None:
    outcome = run_case(stem, Setting())
    assert outcome.status == "pass", outcome.line()


@pytest.mark.parametrize(("projection", "nonlinearity", "update", "gate"), E74_CASES)
def test_e74_ablations(tmp_path: Path, projection: str, nonlinearity: str, update: str, gate: str) -> None:
    config = {"dim": D, "expansion": 2.0, "d_inner": 2 * D, "n_state": 4, "state_type": "full"}
    config |= {"proj_type": projection, "nonlin_type": nonlinearity, "update_type": update, "gate_type": gate}
    sidecar = {"source": ABLATION, "config": config}
    passes(matrix_case(tmp_path, "case", sidecar, e74_params(config), e74(config), draw(B, 4, 4)))


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("named", [True, False])
def test_e74_block_diagonal(tmp_path: Path, projection: str, named: bool) -> None:
    config = {"dim": D, "expansion": 1.5, "n_state": 6, "state_type": "blockdiag", "proj_type": projection}
    config |= {"nonlin_type": "tanh", "update_type": "delta", "gate_type": "output", "block_size": 3}
    params, run = e74_params(config), e74(config)
    if not named:
        del config["block_size"]
    passes(matrix_case(tmp_path, "case", {"source": ABLATION, "config": config}, params, run, draw(B, 2, 3, 3)))


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_e74_seed_layer_is_time_first_and_has_no_state(tmp_path: Path, projection: str) -> None:
    config = {"dim": D, "d_inner": 2 * D, "n_state": 4, "proj_type": projection, "nonlin": "tanh"}
    config |= {"update": "delta", "gate": "output"}
    params, run = e74_params(config, "cell."), e74(config, "cell.", silu=False)
    sidecar = {"source": SEED, "config": config, "note": "time-major"}
    passes(matrix_case(tmp_path, "case", sidecar, params, run, None, time_first=True))


@pytest.mark.parametrize("name", E88_CASES)
def test_e88(tmp_path: Path, name: str) -> None:
    source, options = E88_CASES[name]
    config = {"dim": D, "n_state": 4, "n_heads": 3, "expansion": 1.0} | options
    S0 = draw(B, 3, 4, int(4 * float(str(config["expansion"]))))
    sidecar = {"source": source, "config": config, "head_v_dim": S0.shape[-1]}
    passes(matrix_case(tmp_path, "case", sidecar, e88_params(config), e88(config), S0))


@pytest.mark.parametrize("layout", ["batch first", "stack first", "concatenated"])
def test_lstm_cell_in_any_layout_of_its_state(tmp_path: Path, layout: str) -> None:
    stack = {
        "batch first": lambda s: s,
        "stack first": lambda s: s.transpose(-3, -2),
        "concatenated": lambda s: s.flatten(-2),
    }[layout]
    sidecar = {"source": "ekg/elman cuda_lstm.py python fallback", "config": {"dim": D}, "note": "time-major"}
    stem = matrix_case(tmp_path, "case", sidecar, lstm_params(), lstm, draw(B, 2, D), stack, time_first=True)
    passes(stem)


def test_gru_cell(tmp_path: Path) -> None:
    sidecar = {"source": "ekg/elman cuda_gru.py python fallback", "config": {"dim": D}, "note": "time-major"}
    passes(matrix_case(tmp_path, "case", sidecar, gru_params(), gru, draw(B, D), time_first=True))


@pytest.mark.parametrize("norm", ["RMSNorm", "LayerNorm"])
def test_language_model(tmp_path: Path, norm: str) -> None:
    stem = lm_case(tmp_path, "case", norm)
    passes(stem)
    tensors = load_file(stem.with_suffix(".safetensors"))
    for name in ("A.logits", "B.grad.embedding.weight", "B.hidden.1", "C.loss"):
        save_file(tensors | {name: tensors[name] * (1 + 1e-11)}, stem.with_suffix(".safetensors"))
        outcome = run_case(stem, Setting())
        assert outcome.status == "FAIL"
        assert outcome.what.startswith(f"{name} of ")
