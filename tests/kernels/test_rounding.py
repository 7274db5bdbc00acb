"""Rounding as a GPU does it, in the interpreter too."""

import torch
import triton
import triton.language as tl
from rnn_lab.kernels.functions_triton import narrow, operand

from kernels.compare import DEVICE


@triton.jit
def rounded_kernel(x_ptr, stored_ptr, held_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(stored_ptr + i, narrow(x, tl.bfloat16))
    tl.store(held_ptr + i, operand(x, tl.bfloat16).to(tl.float32))


def test_bf16_is_the_nearest_and_zero_stays_zero():
    halves = [1 + 2**-8, 1 + 3 * 2**-8, 1.001, 3.14159]  # two of them halfway, to even
    x = torch.tensor([0.0, -0.0, *halves, *(-h for h in halves), 2.0**-126, 1e38, float("inf"), -1e-30, 7.0, 0.1])
    x = x.to(DEVICE)
    stored, held = torch.empty_like(x, dtype=torch.bfloat16), torch.empty_like(x)
    rounded_kernel[(1,)](x, stored, held, N=len(x))
    assert torch.equal(stored, x.bfloat16()) and torch.equal(held, x.bfloat16().float())
