"""What every test of a kernel does: results and gradients beside the reference in fp64."""

import torch
from rnn_lab.kernels.certificates import LIMITS, evaluate
from rnn_lab.tensors import relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype)


def expect_reference(op, args, dtype):
    """The Triton backend agrees with the reference in fp64 to what `dtype` allows."""
    backend = op.backends[0]
    assert backend.refuses(*args) is None
    wanted, wanted_gradients = evaluate(op.reference, args, torch.float64)
    found, found_gradients = evaluate(backend.run, args)
    forward, gradient = LIMITS[dtype]
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        error = relative_error(got, want)
        assert error <= forward, f"differs by {error}"
    for got, want in zip(found_gradients, wanted_gradients, strict=True):
        assert got.shape == want.shape
        error = relative_error(got, want)
        assert error <= gradient, f"a gradient differs by {error}"
