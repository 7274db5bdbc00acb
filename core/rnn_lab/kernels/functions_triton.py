"""Triton functions that kernels and printed recurrences call, and the carry between parts of a sequence."""

import triton
import triton.language as tl

from rnn_lab.kernels.triton_support import INTERPRETED

if INTERPRETED:

    @triton.jit
    def rcp(x):
        """1 / x."""
        return 1.0 / x

    @triton.jit
    def exp2(x):
        """2^x."""
        return tl.exp2(x)

    @triton.jit
    def narrow(x, dtype: tl.constexpr):
        """X rounded to a narrower dtype; of what bf16 cannot hold the interpreter itself makes a wrong number."""
        if dtype == tl.bfloat16 and x.dtype == tl.float32:
            bits = x.to(tl.int32, bitcast=True)
            x = ((bits + 0x7FFF + (bits >> 16 & 1)) & -65536).to(tl.float32, bitcast=True)
        return x.to(dtype)

    @triton.jit
    def operand(x, dtype: tl.constexpr):
        """X rounded to what a product takes, held in fp32: the interpreter has no products of bf16."""
        return narrow(x, dtype).to(tl.float32)

else:

    @triton.jit
    def rcp(x):
        """1 / x to one ulp, in one instruction."""
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)

    @triton.jit
    def exp2(x):
        """2^x to two ulp, in one instruction."""
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)

    @triton.jit
    def narrow(x, dtype: tl.constexpr):
        """X rounded to a narrower dtype."""
        return x.to(dtype)

    @triton.jit
    def operand(x, dtype: tl.constexpr):
        """X rounded to what a product takes."""
        return x.to(dtype)


@triton.jit
def exp(x):
    """E^x."""
    return exp2(1.4426950408889634 * x)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return rcp(1.0 + exp2(-1.4426950408889634 * x))


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """Tanh as 1 - 2 / (exp(2x) + 1), which is right to 1e-7; with EXACT relatively so, by a polynomial near zero."""
    far = 1.0 - 2.0 * rcp(1.0 + exp2(2.8853900817779268 * x))
    if not EXACT:
        return far
    q = x * x
    near = x + x * q * (-0.33333334 + q * (0.13333334 + q * (-0.053968254 + q * (0.021869488 - q * 0.008863236))))
    return tl.where(tl.abs(x) < 0.4, near, far)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, exact to fp32 for very negative x too."""
    e = exp(-tl.abs(x))
    small = e * (1.0 - e * (0.5 - e * (0.33333334 - e * 0.25)))
    return tl.maximum(x, 0.0) + tl.where(e < 0.01, small, tl.log(1.0 + e))


@triton.jit
def sign(x):
    """-1, 0 or 1."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def words(x, WORD: tl.constexpr):
    """A pointer to bf16 numbers as one to words of two, where WORD is 2."""
    return x.to(tl.pointer_type(tl.int32)) if WORD == 2 else x


@triton.jit
def wide(x, WORD: tl.constexpr):
    """What was loaded, in fp32."""
    return pairs(x) if WORD == 2 else x.to(tl.float32)


@triton.jit
def pairs(x):
    """Words of two bf16 numbers as numbers in fp32, whose upper half each one is: one operation per number."""
    low, high = (x << 16).to(tl.float32, bitcast=True), (x & -65536).to(tl.float32, bitcast=True)
    return tl.reshape(tl.join(low, high), [2 * x.shape[0]])


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
