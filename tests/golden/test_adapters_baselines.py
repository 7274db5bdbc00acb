"""The runner maps every configuration of the baselines: stand-ins of them, named as the source names them, pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from .runner import run_case
from .standins import B, D, draw, matrix_case
from .standins_baselines import (
    gdn,
    gdn_params,
    llama,
    llama_params,
    mamba2,
    mamba2_params,
    min_params,
    min_rnn,
)
from .subject import Setting

MAMBA2 = {"d_model": D, "d_state": 5, "headdim": 4, "expand": 2, "d_conv": 4, "ngroups": 1}
MAMBA2 |= {"norm_before_gate": False, "eps": 1e-5}
GDN = {"hidden_size": D, "num_heads": 3, "head_dim": 4, "expand_v": 2.0, "conv_size": 4, "use_gate": True}
LLAMA = {"dim": D, "n_heads": 2, "head_dim": 4, "hidden_dim": 10, "rope_theta": 10000}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def passes(stem: Path) -> None:
    outcome = run_case(stem, Setting())
    assert outcome.status == "pass", outcome.line()


def mamba2_case(folder: Path, config: dict[str, Any]) -> Path:
    sidecar = {"source": "state-spaces/mamba mamba_ssm/modules/mamba2.py", "config": config}
    return matrix_case(folder, "case", sidecar, mamba2_params(config), mamba2(config), draw(B, 3, 4, 5))


def test_mamba2(tmp_path: Path) -> None:
    passes(mamba2_case(tmp_path, MAMBA2))


@pytest.mark.parametrize("expand", [1.0, 1.5, 2.0])
def test_gated_deltanet(tmp_path: Path, expand: float) -> None:
    config = GDN | {"expand_v": expand}
    sidecar = {"source": "fla/layers/gated_deltanet.py", "config": config}
    passes(matrix_case(tmp_path, "case", sidecar, gdn_params(config), gdn(config), draw(B, 3, 4, int(4 * expand))))


@pytest.mark.parametrize("theta", [10000, 100])
def test_llama(tmp_path: Path, theta: float) -> None:
    config = LLAMA | {"rope_theta": theta}
    sidecar = {"source": "llama_baseline.py LlamaBlock", "config": config}
    passes(matrix_case(tmp_path, "case", sidecar, llama_params(config), llama(config), None))


@pytest.mark.parametrize("expansion", [1.0, 1.5])
@pytest.mark.parametrize("lstm", [False, True])
def test_minimal_rnns(tmp_path: Path, lstm: bool, expansion: float) -> None:
    config = {"dim": D, "expansion": expansion}
    sidecar = {"source": "ekg/elman min_rnn_baseline.py parallel (log-space scan) path", "config": config}
    passes(matrix_case(tmp_path, "case", sidecar, min_params(config, lstm), min_rnn, None))


@pytest.mark.parametrize("change", [{"norm_before_gate": True}, {"ngroups": 2}, {"d_conv": 3}, {"d_state": 4}])
def test_another_configuration_does_not_pass(tmp_path: Path, change: dict[str, Any]) -> None:
    stem = mamba2_case(tmp_path, MAMBA2)
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    sidecar["config"] |= change
    stem.with_suffix(".json").write_text(json.dumps(sidecar))
    assert run_case(stem, Setting()).status == "FAIL"
