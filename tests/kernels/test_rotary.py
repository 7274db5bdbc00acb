"""The fused rotary embedding: queries, keys, values and the gradient of the projection."""

import pytest
import torch
from rnn_lab.kernels.fused.rotary import ROTARY

from kernels.compare import DEVICE, expect_reference, random


def arguments(B, T, H, P, past, dtype, theta=1e4):
    torch.manual_seed(0)
    return random(B, T, 3 * H * P, dtype=dtype), torch.zeros(B, past, H, P, device=DEVICE), theta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 7, 3, 16, 0), (1, 1, 1, 2, 0), (3, 33, 5, 6, 4), (2, 5, 2, 80, 1)])
def test_agrees(shape, dtype):
    expect_reference(ROTARY, arguments(*shape, dtype), dtype)


def test_angles_are_exact_far_out():
    """In fp32 the angle of position 1,000,000 would be off by 0.03."""
    expect_reference(ROTARY, arguments(1, 3, 1, 8, 1_000_000, torch.float32), torch.float32)


def test_heads_wider_than_a_tile():
    expect_reference(ROTARY, arguments(1, 2, 1, 2050, 0, torch.float32), torch.float32)


@pytest.mark.parametrize("used", [0, 1, 2])
def test_results_may_go_unused_and_gradients_may_be_views(used):
    qkv, past, theta = arguments(2, 6, 3, 4, 2, torch.float32)
    weight = random(2, 3, 6, 4).transpose(1, 2)
    found = []
    for run in (ROTARY.reference, ROTARY.backends[0].run):
        leaf = qkv.clone().requires_grad_()
        (run(leaf, past, theta)[used] * weight).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


def test_custom_ops():
    from rnn_lab.kernels.fused.rotary_triton import rotary, rotary_backward

    qkv = random(2, 3, 24)
    torch.library.opcheck(rotary, (qkv.requires_grad_(), 2, 5, 1e4))
    torch.library.opcheck(rotary_backward, (*(random(2, 3, 2, 4) for _ in range(3)), 5, 1e4))
