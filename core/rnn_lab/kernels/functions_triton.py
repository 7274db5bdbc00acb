"""Triton functions that printed recurrences call, and the carry between parts of a sequence."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Tanh to fp32 accuracy: a polynomial near zero, where 1 - 2 / (exp(2x) + 1) would cancel."""
    q = x * x
    near = x + x * q * (-0.33333334 + q * (0.13333334 + q * (-0.053968254 + q * (0.021869488 - q * 0.008863236))))
    a = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.minimum(a, 15.0)) + 1.0)
    return tl.where(a < 0.4, near, tl.where(x < 0, -far, far))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, exact to fp32 for very negative x too."""
    e = tl.exp(-tl.abs(x))
    small = e * (1.0 - e * (0.5 - e * (0.33333334 - e * 0.25)))
    return tl.maximum(x, 0.0) + tl.where(e < 0.01, small, tl.log(1.0 + e))


@triton.jit
def sign(x):
    """-1, 0 or 1."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def carry(first, end, product, starts, last, PARTS, C, BACKWARD: tl.constexpr, BLOCK: tl.constexpr):
    """What each part starts from: s_0 = first, s_{i+1} = product_i s_i + end_i; from the last part when BACKWARD."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    inside = c < C
    s = tl.load(first + b * C + c, mask=inside, other=0.0).to(tl.float32)
    for i in range(PARTS):
        part = PARTS - 1 - i if BACKWARD else i
        row = (b * PARTS + part) * C + c
        tl.store(starts + row, s, mask=inside)
        s = tl.load(product + row, mask=inside, other=0.0) * s + tl.load(end + row, mask=inside, other=0.0)
    tl.store(last + b * C + c, s, mask=inside)
