"""The fused causal convolution: every gradient, the past's too, at lengths around a block and with resets."""

import pytest
import torch
from rnn_lab.kernels.fused.causal_conv import CAUSAL_CONV, MOST_TAPS

from kernels.compare import DEVICE, expect_reference, random


def arguments(B, T, d, K, *, bias=True, reset=None, silu=True, dtype=torch.float32):
    torch.manual_seed(0)
    x = random(B, T, 2 * d, dtype=dtype)[..., :d]
    reset_BT = None if reset is None else torch.rand(B, T, device=DEVICE) < reset
    return x, random(d, 1, K), random(d) if bias else None, random(B, K - 1, d), reset_BT, silu


@pytest.mark.parametrize("reset", [None, 0.3])
@pytest.mark.parametrize("T", [1, 2, 17, 39])
def test_agrees_at_any_length(T, reset):
    expect_reference(CAUSAL_CONV, arguments(2, T, 5, 4, reset=reset), torch.float32)


@pytest.mark.parametrize("reset", [None, 0.3])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("K", [1, 7])
def test_agrees_in_every_form(K, bias, silu, reset):
    expect_reference(CAUSAL_CONV, arguments(1, 19, 3, K, bias=bias, silu=silu, reset=reset), torch.float32)


@pytest.mark.parametrize("reset", [None, 0.3])
def test_agrees_in_bf16(reset):
    expect_reference(CAUSAL_CONV, arguments(1, 21, 70, 4, reset=reset, dtype=torch.bfloat16), torch.bfloat16)


def test_chunks_make_the_whole():
    x, weight, bias, past, reset, silu = arguments(2, 13, 5, 4, reset=0.2)
    run = CAUSAL_CONV.backends[0].run
    whole, end = run(x, weight, bias, past, reset, silu)
    parts = []
    for first, last in ((0, 1), (1, 3), (3, 13)):
        y, past = run(x[:, first:last], weight, bias, past, reset[:, first:last], silu)
        parts.append(y)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(past, end)


def test_only_the_past_may_be_used():
    x, *rest = arguments(2, 5, 3, 4)
    found = []
    for run in (CAUSAL_CONV.reference, CAUSAL_CONV.backends[0].run):
        leaf = x.detach().clone().requires_grad_()
        run(leaf, *rest)[1].square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


def test_refuses_more_taps_than_it_unrolls():
    assert "taps" in CAUSAL_CONV.backends[0].refuses(*arguments(1, 3, 2, MOST_TAPS + 1))


@pytest.mark.parametrize("reset", [None, 0.3])
def test_is_a_proper_torch_operation(reset):
    from rnn_lab.kernels.fused.causal_conv_triton import causal_conv

    args = [
        a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments(2, 5, 3, 4, reset=reset)
    ]
    torch.library.opcheck(causal_conv, args)
