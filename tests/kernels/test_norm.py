"""The fused residual and norm: both results, every gradient, and what autograd leaves out."""

import pytest
import torch
from rnn_lab.kernels.fused.residual_norm import LARGEST_WIDTH, RESIDUAL_NORM

from kernels.compare import DEVICE, expect_reference, random

KINDS = {"rms": (False, False), "layer": (True, True), "layer without bias": (True, False)}


def arguments(kind, shape, stream, dtype, out):
    centred, bias = KINDS[kind]
    D = shape[-1]
    torch.manual_seed(0)
    y = None if stream is None else random(*shape, dtype=stream)
    return random(*shape) + 0.5, y, 1 + 0.3 * random(D), random(D) if bias else None, 1e-5, centred, out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 7, 33), (3, 5, 1)])
def test_agrees_in_fp32(kind, stream, shape):
    limit = torch.float32
    if shape[-1] == 1 and kind != "rms":
        pytest.skip("a row of one number has no deviation")
    expect_reference(RESIDUAL_NORM, arguments(kind, shape, stream, stream, torch.float32), stream or limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [None, torch.bfloat16])
def test_agrees_in_bf16(kind, stream):
    expect_reference(RESIDUAL_NORM, arguments(kind, (2, 9, 80), stream, stream, torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("used", [0, 1])
def test_either_result_may_go_unused(used):
    args = arguments("layer", (2, 3, 16), torch.bfloat16, None, torch.float32)
    found = []
    for run in (RESIDUAL_NORM.reference, RESIDUAL_NORM.backends[0].run):
        leaves = [a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
        run(*leaves)[used].square().sum().backward()
        found.append([leaf.grad for leaf in leaves if isinstance(leaf, torch.Tensor)])
    for want, got in zip(*found, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-2 if want.dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_backward_is_deterministic_and_takes_strided_gradients():
    args = arguments("rms", (2, 40, 24), torch.bfloat16, None, torch.float32)
    weight = random(24, 40, 2).permute(2, 1, 0)
    found = []
    for _ in range(2):
        leaves = [a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
        total, normed = RESIDUAL_NORM.backends[0].run(*leaves)
        ((normed + total) * weight).sum().backward()
        found.append([leaf.grad for leaf in leaves if isinstance(leaf, torch.Tensor)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_refuses_what_it_cannot_hold():
    refuses = RESIDUAL_NORM.backends[0].refuses
    wide = torch.zeros(1, 1, LARGEST_WIDTH + 1, device=DEVICE)
    assert "above" in refuses(wide, None, wide[0, 0], None, 1e-5, False, torch.float32)
    low = torch.zeros(1, 1, 8, dtype=torch.bfloat16, device=DEVICE)
    assert "fp32" in refuses(low, None, low[0, 0], None, 1e-5, False, torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_is_a_proper_torch_operation(kind):
    from rnn_lab.kernels.fused.residual_norm_triton import residual_norm

    args = [
        a.requires_grad_() if isinstance(a, torch.Tensor) else a
        for a in arguments(kind, (2, 3, 16), torch.bfloat16, None, torch.bfloat16)
    ]
    torch.library.opcheck(residual_norm, args)
