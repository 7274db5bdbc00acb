"""Layers whose kernels run held to the contract's comparison of backends: fp32 and bf16, every gradient, resets."""

import pytest
from rnn_lab.testing import check_model

MODELS = {
    "e61": {"use_conv": False, "tanh": False},
    "e65": {"use_conv": False},
    "68i": {"use_conv": False},
    "mingru": {},
    "e74d": {
        "use_conv": False, "definition": "cell", "nonlinearity": "tanh", "projection": "no_z", "activation": "silu",
    },
    "llama": {},
}  # fmt: skip
"""What is held in Triton's interpreter, where every variant takes ten seconds; on a GPU all of them run."""


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_backends_agree(model, device):
    fixed = MODELS[model] if device == "cpu" else {}
    (result,) = check_model(model, fixed, only=["backends"], device=device)
    assert result.status == "pass", result.message
    assert "diagonal cannot run" not in result.message
