"""Layers whose kernels run held to the contract's comparison of backends: fp32 and bf16, every gradient, resets."""

import pytest
from rnn_lab.testing import check_model

MODELS = ("e61", "e65", "68i", "mingru", "e74d", "llama")


@pytest.mark.parametrize("model", MODELS)
def test_backends_agree(model, device):
    (result,) = check_model(model, only=["backends"], device=device)
    assert result.status == "pass", result.message
    assert "diagonal cannot run" not in result.message
