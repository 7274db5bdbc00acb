"""The fused cross-entropy: its value to fp32, its gradient, shapes that fill no block."""

import pytest
import torch
from rnn_lab.kernels.fused.cross_entropy import CROSS_ENTROPY
from rnn_lab.tensors import relative_error
from torch.nn import functional as F

from kernels.compare import expect_reference, random


def arguments(shape, dtype, scale=4.0):
    torch.manual_seed(0)
    logits = (scale * random(*shape)).to(dtype)
    return logits, torch.randint(shape[-1], shape[:-1], device=logits.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 256), (3, 11, 256), (2, 5, 7)])
def test_agrees(shape, dtype):
    expect_reference(CROSS_ENTROPY, arguments(shape, dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_is_that_of_fp32_logits(dtype):
    logits, targets = arguments((4, 32, 256), dtype)
    exact = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten())
    assert relative_error(CROSS_ENTROPY.backends[0].run(logits, targets), exact) < 1e-6


def test_large_logits_do_not_overflow():
    logits, targets = arguments((2, 5, 256), torch.float32, scale=1e4)
    logits.requires_grad_()
    loss = CROSS_ENTROPY.backends[0].run(logits, targets)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_logits_may_be_strided():
    logits, targets = arguments((2, 5, 32), torch.float32)
    found = CROSS_ENTROPY.backends[0].run(logits.transpose(0, 1).contiguous().transpose(0, 1), targets)
    assert torch.equal(found, CROSS_ENTROPY.backends[0].run(logits, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_a_proper_torch_operation(dtype):
    from rnn_lab.kernels.fused.cross_entropy_triton import cross_entropy

    logits, targets = arguments((2, 3, 32), dtype)
    # Its second result, kept for the way back, has no gradient of its own.
    torch.library.opcheck(cross_entropy, (logits, targets))
    torch.library.opcheck(
        cross_entropy, (logits.requires_grad_(), targets), test_utils=("test_schema", "test_faketensor")
    )
