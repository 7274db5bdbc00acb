"""Symmetric products from half of their tiles, beside the whole product; and who is chosen to compute them."""

import pytest
import torch
from rnn_lab.kernels.updates.symmetric_triton import symmetric
from rnn_lab.optim import gram
from rnn_lab.optim.newton_schulz import coefficients, orthogonalise
from rnn_lab.tensors import relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def matrices(*shape, dtype):
    torch.manual_seed(0)
    return (torch.randn(shape) / (shape[-1] * shape[-2]) ** 0.5).to(DEVICE, dtype)


@pytest.mark.parametrize("shape", [(2, 130, 200), (1, 300, 300), (3, 40, 70)])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)])
def test_it_is_the_whole_product(shape, dtype, allowed):
    X = matrices(*shape, dtype=dtype)
    A = symmetric(X)
    wide = X.double()
    assert relative_error(A, wide @ wide.mT) < allowed and torch.equal(A, A.mT)
    wide = A.double()
    for diagonal in (0.0, 3.4445):
        B = symmetric(A, A, 2.0315, -4.775, diagonal)
        exact = 2.0315 * wide @ wide - 4.775 * wide + diagonal * torch.eye(len(A[0]), device=DEVICE)
        assert relative_error(B, exact) < allowed and torch.equal(B, B.mT)
        assert relative_error(gram.library(A, A, 2.0315, -4.775, diagonal), B.double()) < 2 * allowed


@pytest.mark.parametrize("kind", ["ns", "polar_express"])
def test_iterations_with_it_are_those_without(kind, monkeypatch):
    u = matrices(2, 70, 150, dtype=torch.float32)
    plain = orthogonalise(u, 5, kind, torch.float32)
    monkeypatch.setattr("rnn_lab.optim.newton_schulz.product", lambda X: symmetric)
    assert relative_error(orthogonalise(u, 5, kind, torch.float32), plain) < 1e-4
    assert len(coefficients(5, kind)) == 5


def test_the_faster_one_is_taken_if_it_is_right(monkeypatch):
    monkeypatch.setattr(gram, "_refuses", lambda X: None)
    monkeypatch.setattr(gram, "_chosen", {})
    times = iter([1.0, 2.0, 2.0, 1.0])
    monkeypatch.setattr(gram, "_milliseconds", lambda run: next(times))
    one, other, third = (matrices(1, 40, n, dtype=torch.bfloat16) for n in (40, 50, 60))
    assert gram.product(one) is symmetric is gram.product(one)
    assert gram.product(other) is gram.library
    monkeypatch.setattr(gram, "library", lambda *args: symmetric(*args) * 1.5)
    gram.product(third)
    refused = [dict(choice.refused).get("triton") for _, choice in gram._chosen.values()]
    assert refused[:2] == [None, "it takes 2 ms, the library 1 ms"] and "differ" in refused[2]
