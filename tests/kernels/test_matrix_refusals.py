"""Calls that no kernel over the rows of a matrix may take."""

import pytest
import torch
from rnn_lab.kernels import cuda_jit
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.kernels.recurrence_backends import refuses_matrix
from rnn_lab.layers import retrieve, write

from tests.kernels.test_matrix import call


def test_refuses_a_weight_along_one_of_two_axes_of_heads(monkeypatch):
    monkeypatch.setattr(cuda_jit, "refuses_cuda", lambda *tensors: None)
    cell = Cell(lambda S, k, v, a: torch.tanh(a[..., None, None] * write(S, v, k)), retrieve)
    _, h, streams, _ = call("e74", 2, 5, (2, 3), 6, 6)
    assert refuses_matrix(cell, h, streams._replace(weights=(torch.rand(2, 3),))) is None
    assert "one of several axes" in refuses_matrix(cell, h, streams._replace(weights=(torch.rand(3),)))


@pytest.mark.parametrize(("B", "T", "reason"), [(0, 3, "no sequences"), (2, 0, "no steps")])
def test_refuses_what_is_empty(B, T, reason, monkeypatch):
    monkeypatch.setattr(cuda_jit, "refuses_cuda", lambda *tensors: None)
    cell, h, streams, _ = call("e74", B, T, (), 6, 6)
    assert reason in refuses_matrix(cell, h, streams)
