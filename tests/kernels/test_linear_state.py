"""The chunked kernels of linear_state and ssd against the plain loop in fp64: results, gradients, carried state."""

import pytest
import torch
from rnn_lab.kernels.certificates import LIMITS, evaluate
from rnn_lab.kernels.linear import linear_state, ssd
from rnn_lab.tensors import relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [  # B, T, H, G, P, N
    (2, 70, 4, 1, 16, 24),
    (1, 129, 3, 3, 9, 13),
    (2, 64, 2, 2, 64, 64),
    (1, 66, 1, 1, 96, 96),
    (2, 5, 4, 2, 8, 8),
    (4, 1, 4, 1, 33, 40),
    (1, 35, 2, 1, 40, 200),
]


def linear_arguments(B, T, H, G, P, N, dtype, resets):
    torch.manual_seed(B * T + P)
    v, k, q = (torch.randn(B, T, *shape, device=DEVICE).to(dtype) for shape in ((H, P), (G, N), (G, N)))
    g = -0.2 * torch.rand(B, T, H, device=DEVICE)
    reset = torch.rand(B, T, device=DEVICE) < 0.1 if resets else None
    return v, k * N**-0.5, q, g, torch.randn(B, H, P, N, device=DEVICE), reset


def ssd_arguments(B, T, H, P, N, dtype, resets):
    x, k, q, _, h, reset = linear_arguments(B, T, H, 1, P, N, dtype, resets)
    dt, A = torch.rand(B, T, H, device=DEVICE), -4 * torch.rand(H, device=DEVICE)
    return x, dt, A, k[:, :, 0], q[:, :, 0], h, reset


def compare(module, args, dtype):
    if reason := module.refuses(*args):
        pytest.skip(reason)
    results, gradients = evaluate(module.reference, args, torch.float64)
    got, got_gradients = evaluate(module.run, args)
    forward, backward = LIMITS[dtype]
    assert max(map(relative_error, got, results)) < forward
    assert max(map(relative_error, got_gradients, gradients)) < backward


@pytest.mark.parametrize(("dtype", "resets"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_state_equals_the_loop(shape, dtype, resets):
    compare(linear_state, linear_arguments(*shape, dtype, resets), dtype)


@pytest.mark.parametrize(("dtype", "resets"), [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("shape", [(2, 70, 5, 16, 24), (1, 130, 3, 64, 64), (3, 1, 4, 7, 5)])
def test_ssd_equals_the_loop(shape, dtype, resets):
    compare(ssd, ssd_arguments(*shape, dtype, resets), dtype)


def test_chunks_with_carried_state_equal_the_whole():
    v, k, q, g, S, reset = linear_arguments(2, 150, 2, 1, 16, 16, torch.float32, True)
    whole, last = linear_state.run(v, k, q, g, S, reset)
    parts = []
    for span in (slice(0, 77), slice(77, 78), slice(78, 150)):
        o, S = linear_state.run(v[:, span], k[:, span], q[:, span], g[:, span], S, reset[:, span])
        parts.append(o)
    assert relative_error(torch.cat(parts, 1), whole) < 1e-5
    assert relative_error(S, last) < 1e-5


def test_a_decay_to_zero_forgets_everything_and_leaves_gradients_finite():
    v, k, q, g, S, _ = linear_arguments(1, 70, 2, 1, 16, 16, torch.float32, False)
    g[:, ::7] = -float("inf")
    leaves = [x.requires_grad_() for x in (v, k, q, g, S)]
    o, last = linear_state.run(*leaves)
    want, _ = linear_state.reference(*leaves)
    assert relative_error(o, want) < 2e-5
    assert all(d.isfinite().all() for d in torch.autograd.grad(o.sum() + last.sum(), leaves))


def test_views_of_a_projection_need_no_copy():
    B, T, H, P, N = 2, 70, 2, 16, 16
    torch.manual_seed(0)
    xBC = torch.randn(B, T, H * P + 2 * N, device=DEVICE)
    x, k, q = xBC.split((H * P, N, N), -1)
    dt, A, h = torch.rand(B, T, H, device=DEVICE), -torch.rand(H, device=DEVICE), torch.zeros(B, H, P, N, device=DEVICE)
    y, _ = ssd.run(x.view(B, T, H, P), dt, A, k, q, h)
    want, _ = ssd.run(x.reshape(B, T, H, P).contiguous(), dt, A, k.contiguous(), q.contiguous(), h)
    assert torch.equal(y, want)


def test_heads_split_over_programs_give_the_same_gradients(monkeypatch):
    from rnn_lab.kernels.linear import linear_state_triton

    args = linear_arguments(1, 70, 5, 1, 16, 16, torch.float32, False)
    _, split = evaluate(linear_state.run, args)
    monkeypatch.setattr(linear_state_triton, "LEAST_PROGRAMS", 1)
    _, whole = evaluate(linear_state.run, args)
    assert max(map(relative_error, split, whole)) < 1e-5


@pytest.mark.parametrize("scaled", [False, True])
def test_custom_op(scaled):
    from rnn_lab.kernels.linear.linear_state_triton import linear_state as op

    v, k, q, g, S, reset = linear_arguments(1, 5, 2, 1, 8, 8, torch.float32, True)
    args = (v, -g if scaled else None, -torch.rand(2, device=DEVICE) if scaled else g, k, q, S)
    leaves = [x if x is None else x.detach().requires_grad_() for x in args]
    torch.library.opcheck(op, (*leaves, reset))


@pytest.mark.parametrize("module", [linear_state, ssd])
def test_the_operation_certifies_and_takes_the_kernel(module, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    args = linear_arguments(1, 3, 2, 1, 8, 8, torch.bfloat16, False)
    op = linear_state.LINEAR_STATE
    if module is ssd:
        op, args = ssd.SSD, ssd_arguments(1, 3, 2, 8, 8, torch.bfloat16, False)
    monkeypatch.setenv("RNN_LAB_KERNELS", "triton")
    record = {}
    op(record, *args)
    assert record[op.name].backend == "triton"
