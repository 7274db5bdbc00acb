"""The kernels of gated_norm against plain torch in fp64."""

import pytest
import torch
from rnn_lab.kernels.certificates import LIMITS, evaluate
from rnn_lab.kernels.fused import gated_norm
from rnn_lab.tensors import relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments(B, T, H, P, dtype):
    torch.manual_seed(0)
    y, x, z = (torch.randn(B, T, H * P, device=DEVICE).to(dtype) for _ in range(3))
    return y, x, z, torch.randn(H, device=DEVICE), torch.randn(H * P, device=DEVICE), 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 7, 3, 16), (1, 1, 1, 5), (3, 4, 7, 9)])
def test_gated_norm_equals_plain_torch(shape, dtype):
    args = arguments(*shape, dtype)
    want, want_gradients = evaluate(gated_norm.reference, args, torch.float64)
    got, got_gradients = evaluate(gated_norm.run, args)
    forward, backward = LIMITS[dtype]
    assert max(map(relative_error, got, want)) < forward
    assert max(map(relative_error, got_gradients, want_gradients)) < backward


def test_views_of_a_projection_need_no_copy():
    y, x, z, D, w, eps = arguments(2, 5, 2, 8, torch.float32)
    wide = torch.cat([x, z], -1)
    got = gated_norm.run(y, wide[..., :16], wide[..., 16:], D, w, eps)
    assert torch.equal(got, gated_norm.run(y, x, z, D, w, eps))


def test_custom_op():
    from rnn_lab.kernels.fused.gated_norm_triton import gated_norm as op

    *tensors, eps = arguments(1, 3, 2, 4, torch.float32)
    torch.library.opcheck(op, (*(t.requires_grad_() for t in tensors), eps))
