"""The language model's own operations in place: same loss and gradients as the reference, in every shell."""

import pytest
import torch
from rnn_lab.layers import PlainLayer, ProjectedConfig
from rnn_lab.lm import LM, LMConfig
from rnn_lab.tensors import relative_error

from kernels.compare import DEVICE


class Mean(PlainLayer):
    """A running mean, behind a convolution where the configuration has one."""

    Config = ProjectedConfig

    @classmethod
    def has_silu(cls, cfg):
        return True

    @classmethod
    def cell_parts(cls, cfg):
        return {}

    def inputs(self, x_BTd):
        return (x_BTd,)

    @staticmethod
    def update(h, x):
        return 0.5 * h + x


def gradients(lm, text, low):
    lm.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=low):
        loss, _ = lm.loss(text)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad.clone() for name, p in lm.named_parameters()}


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("shell", [{"norm": "rms"}, {"norm": "layer"}, {"shell": "e74"}])
def test_kernels_train_as_the_reference(shell, low, monkeypatch, tmp_path):
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    torch.manual_seed(0)
    lm = LM(Mean, ProjectedConfig(dim=24, use_conv=True), LMConfig(depth=2, **shell)).to(DEVICE)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    text = torch.randint(0, 256, (2, 12), dtype=torch.uint8, device=DEVICE)
    monkeypatch.setenv("RNN_LAB_KERNELS", "reference")
    plain = gradients(lm, text, low)
    monkeypatch.setenv("RNN_LAB_KERNELS", "auto")
    fused = gradients(lm, text, low)
    assert {op: choice.backend for op, choice in lm.backends.items()} == {
        "residual_norm": "triton",
        "cross_entropy": "triton",
    }
    assert lm.layers[0].backends["causal_conv"].backend == "triton"
    for name, want in plain.items():
        assert relative_error(fused[name], want) <= (3e-2 if low else 1e-4), name
