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


@pytest.mark.parametrize("share", [1, 2, 10**6])
@pytest.mark.parametrize("shape", [(2, 70, 64, 128), (1, 3, 192, 64)])
def test_agrees(shape, share):
    """All, a half and one of the positions kept; every other row of dx is zero, though nothing had cleared it."""
    expect_reference(FILTERED_LINEAR, arguments(*shape, torch.bfloat16, share), torch.bfloat16)


def test_refuses_what_its_products_would_round():
    refuses = FILTERED_LINEAR.backends[0].refuses
    assert "left to torch's library" in refuses(*arguments(2, 4, 64, 64, torch.float32))
    assert "multiple of 64" in refuses(*arguments(2, 4, 64, 48, torch.bfloat16))
    assert "copied together" in refuses(*arguments(1, 2, 2048, 2112, torch.bfloat16))


def test_long_sums_are_shared_out():
    """Tiles of W's gradient that would take longer than all the rest go to several programs; few rows do not."""
    parts_of = pytest.importorskip("rnn_lab.kernels.fused.filtered_linear_triton").parts_of
    assert parts_of(10656, 2048, 2048) == parts_of(10656, 1024, 2048) == 1
    assert parts_of(10656, 256, 1024) > 4 and parts_of(64, 256, 1024) == 1


def test_parts_add_up():
    """Two programs to a tile of W's gradient, the second with fewer rows."""
    kernels = pytest.importorskip("rnn_lab.kernels.fused.filtered_linear_triton")
    assert kernels.parts_of(1055, 64, 64) == 2
    x, weight, kept = arguments(1, 2110, 64, 64, torch.bfloat16)
    g = random(1, 2110, 64, dtype=torch.bfloat16)
    mask = torch.zeros(1, 2110, dtype=torch.bool, device=DEVICE).index_fill_(1, kept, True)
    found = kernels.filtered_gradients(g, x, weight, kept, mask)
    for got, want in zip(found, filtered_linear.gathered(g.double(), x.double(), weight.double(), kept), strict=True):
        assert relative_error(got, want) < 5e-3


def test_gathered_rows_are_the_reference():
    x, weight, kept = arguments(2, 9, 5, 4, torch.float64)
    x.requires_grad_(), weight.requires_grad_()
    y = filtered_linear.reference(x, weight, kept)
    g = random(*y.shape, dtype=torch.float64)
    wanted = torch.autograd.grad((y * g).sum(), (x, weight))
    for got, want in zip(filtered_linear.gathered(g, x.detach(), weight.detach(), kept), wanted, strict=True):
        assert relative_error(got, want) < 1e-12
