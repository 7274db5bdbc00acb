"""Products over kept rows: kernels beside the reference, and the plain way beside it too."""

import pytest
import torch
from rnn_lab.kernels.fused import filtered_linear
from rnn_lab.kernels.fused.filtered_linear import FILTERED_LINEAR
from rnn_lab.tensors import relative_error

from kernels.compare import DEVICE, expect_reference, random


def arguments(B, T, K, M, dtype, share=2):
    torch.manual_seed(0)
    kept = torch.randperm(B * T)[: max(1, B * T // share)].sort().values.to(DEVICE)
    return random(B, T, K, dtype=dtype), (random(M, K) * K**-0.5).to(dtype), kept


@pytest.mark.parametrize("shape", [(2, 70, 64, 128), (1, 3, 192, 64)])
def test_agrees(shape):
    expect_reference(FILTERED_LINEAR, arguments(*shape, torch.bfloat16), torch.bfloat16)


def test_refuses_what_its_products_would_round():
    refuses = FILTERED_LINEAR.backends[0].refuses
    assert "left to torch's library" in refuses(*arguments(2, 4, 64, 64, torch.float32))
    assert "multiple of 64" in refuses(*arguments(2, 4, 64, 48, torch.bfloat16))


def test_gathered_rows_are_the_reference():
    x, weight, kept = arguments(2, 9, 5, 4, torch.float64)
    x.requires_grad_(), weight.requires_grad_()
    y = filtered_linear.reference(x, weight, kept)
    g = random(*y.shape, dtype=torch.float64)
    wanted = torch.autograd.grad((y * g).sum(), (x, weight))
    for got, want in zip(filtered_linear.gathered(g, x.detach(), weight.detach(), kept), wanted, strict=True):
        assert relative_error(got, want) < 1e-12
