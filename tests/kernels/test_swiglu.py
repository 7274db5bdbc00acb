"""The fused gate of SwiGLU and its gradient."""

import pytest
import torch
from rnn_lab.kernels.fused.swiglu import SWIGLU

from kernels.compare import expect_reference, random


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 34), (1, 1, 2), (3, 2, 1026), (1, 2, 4096)])
def test_agrees(shape, dtype):
    torch.manual_seed(0)
    expect_reference(SWIGLU, (random(*shape, dtype=dtype),), dtype)


def test_extreme_gates():
    x = torch.tensor([[[-80.0, -60.0, 0.0, 60.0, 80.0, 1.0, 2.0, 3.0, 4.0, 5.0]]])
    expect_reference(SWIGLU, (x.to(random(1).device),), torch.float32)


def test_custom_ops():
    from rnn_lab.kernels.fused.swiglu_triton import swiglu, swiglu_backward

    x = random(2, 3, 12)
    torch.library.opcheck(swiglu, (x.requires_grad_(),))
    torch.library.opcheck(swiglu_backward, (random(2, 3, 6), random(2, 3, 12)))
