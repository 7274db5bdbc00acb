"""The fused cross-entropy: its value to fp32, its gradient, shapes that fill no block."""

import pytest
import torch
from rnn_lab.kernels.fused.cross_entropy import CROSS_ENTROPY, IGNORED
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
@pytest.mark.parametrize("run", [CROSS_ENTROPY.reference, CROSS_ENTROPY.backends[0].run])
def test_ignored_positions_are_as_if_they_were_not_there(run, dtype):
    logits, targets = arguments((3, 11, 32), dtype)
    kept = torch.rand(targets.shape, device=targets.device) < 0.6
    some, whole = logits[kept].requires_grad_(), logits.clone().requires_grad_()
    expected = F.cross_entropy(some.double(), targets[kept])
    expected.backward()
    found = run(whole, torch.where(kept, targets, IGNORED))
    found.backward()
    assert relative_error(found, expected) < 1e-6
    assert relative_error(whole.grad[kept], some.grad) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert not whole.grad[~kept].any()


@pytest.mark.parametrize("run", [CROSS_ENTROPY.reference, CROSS_ENTROPY.backends[0].run])
def test_nothing_but_ignored_positions_is_zero(run):
    logits, targets = arguments((2, 5, 32), torch.float32)
    loss = run(logits.requires_grad_(), torch.full_like(targets, IGNORED))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


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
    # What it keeps for the way back has no gradient of its own.
    torch.library.opcheck(cross_entropy, (logits, targets))
    torch.library.opcheck(
        cross_entropy, (logits.requires_grad_(), targets), test_utils=("test_schema", "test_faketensor")
    )
