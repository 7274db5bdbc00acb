"""Schedule-free AdamW over every parameter in one launch, its counters on the device.

`advance` turns the counters of each parameter group into the coefficients of one step, `update` applies them to all
tensors: it reads y, gradient, z and v and writes y, z and v, 28 bytes a parameter, where v is `exp_avg_sq`. Both do
nothing while `skip` is set. The arithmetic is that of schedulefree 1.4.1, operation by operation.
"""
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False

import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096
"""Elements per program."""
BLOCK = 1024
COLUMNS = 7
"""Of a row of the tensor table: addresses of y, gradient, z and v, then elements, group, whether all are aligned."""
SETTINGS = 7
"""Rows `[., G]`: peak lr, beta1, beta2, log2 beta2, eps, weight decay, warm-up steps."""
COUNTERS = 4
"""Rows `[., G]`: k, weight_sum, lr_max, lr of the last step."""
COEFFICIENTS = 8
"""Rows `[., G]`: beta2, 1 - beta2, bias correction, eps, weight decay, ckp1, lr, factor of the update of y."""


@triton.jit
def _advance(counters, settings, coefficients, skip, G, GROUPS: tl.constexpr):
    if tl.load(skip) == 0:
        g = tl.arange(0, GROUPS)
        inside = g < G
        peak = tl.load(settings + g, inside, other=1.0)
        beta1 = tl.load(settings + G + g, inside, other=0.0)
        beta2 = tl.load(settings + 2 * G + g, inside, other=0.0)
        log2_beta2 = tl.load(settings + 3 * G + g, inside, other=0.0)
        eps = tl.load(settings + 4 * G + g, inside, other=0.0)
        decay = tl.load(settings + 5 * G + g, inside, other=0.0)
        warmup = tl.load(settings + 6 * G + g, inside, other=0.0)
        k = tl.load(counters + g, inside, other=0.0)
        weight_sum = tl.load(counters + G + g, inside, other=0.0)
        lr_max = tl.load(counters + 2 * G + g, inside, other=0.0)

        now = k + 1.0
        lr = peak * tl.where(k < warmup, now / tl.maximum(warmup, 1.0), 1.0)
        lr_max = tl.maximum(lr, lr_max)
        weight = lr_max * lr_max
        weight_sum += weight
        ckp1 = weight / tl.where(weight_sum > 0, weight_sum, 1.0)
        # A power of k alone, not a running product: a resumed run computes the same bits.
        correction = 1.0 - tl.exp2(now * log2_beta2)

        tl.store(counters + g, now, inside)
        tl.store(counters + G + g, weight_sum, inside)
        tl.store(counters + 2 * G + g, lr_max, inside)
        tl.store(counters + 3 * G + g, lr, inside)
        tl.store(coefficients + g, beta2.to(tl.float32), inside)
        tl.store(coefficients + G + g, (1.0 - beta2).to(tl.float32), inside)
        tl.store(coefficients + 2 * G + g, correction.to(tl.float32), inside)
        tl.store(coefficients + 3 * G + g, eps.to(tl.float32), inside)
        tl.store(coefficients + 4 * G + g, decay.to(tl.float32), inside)
        tl.store(coefficients + 5 * G + g, ckp1.to(tl.float32), inside)
        tl.store(coefficients + 6 * G + g, lr.to(tl.float32), inside)
        tl.store(coefficients + 7 * G + g, (lr * (beta1 * (1.0 - ckp1) - 1.0)).to(tl.float32), inside)


@triton.jit
def _block(
    y_at, g_at, z_at, v_at, inside,
    scale, beta2, rest, correction, eps, decay, ckp1, lr, factor,
):  # fmt: skip
    y, g = tl.load(y_at, inside), tl.load(g_at, inside) * scale
    z, v = tl.load(z_at, inside), tl.load(v_at, inside)
    v = v * beta2 + rest * (g * g)
    direction = tl.div_rn(g, tl.sqrt_rn(tl.div_rn(v, correction)) + eps) + decay * y
    # As torch.lerp: exact at both ends, so the first step (ckp1 = 1) takes z itself.
    y = tl.where(ckp1 < 0.5, y + ckp1 * (z - y), z - (z - y) * (1.0 - ckp1)) + factor * direction
    tl.store(y_at, y, inside)
    tl.store(z_at, z - lr * direction, inside)
    tl.store(v_at, v, inside)


@triton.jit
def _update(
    tensors, chunks, coefficients, scale, skip, G,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) == 0:
        chunk = chunks + 2 * tl.program_id(0)
        row = tensors + tl.load(chunk) * COLUMNS
        first = tl.load(chunk + 1).to(tl.int64) * CHUNK
        y, g, z, v = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
        n, mine, clip = tl.load(row + 4), coefficients + tl.load(row + 5), tl.load(scale)
        beta2, rest, correction = tl.load(mine), tl.load(mine + G), tl.load(mine + 2 * G)
        eps, decay, ckp1 = tl.load(mine + 3 * G), tl.load(mine + 4 * G), tl.load(mine + 5 * G)
        lr, factor = tl.load(mine + 6 * G), tl.load(mine + 7 * G)
        if g != 0:
            if (tl.load(row + 6) != 0) & (first + CHUNK <= n):
                # Hints and no mask: 16 bytes per load.
                y16 = tl.multiple_of(y.to(tl.pointer_type(tl.float32)), 16)
                g16 = tl.multiple_of(g.to(tl.pointer_type(tl.float32)), 16)
                z16 = tl.multiple_of(z.to(tl.pointer_type(tl.float32)), 16)
                v16 = tl.multiple_of(v.to(tl.pointer_type(tl.float32)), 16)
                for start in tl.static_range(0, CHUNK, BLOCK):
                    at = first + start + tl.arange(0, BLOCK)
                    _block(
                        y16 + at, g16 + at, z16 + at, v16 + at, None,
                        clip, beta2, rest, correction, eps, decay, ckp1, lr, factor,
                    )  # fmt: skip
            else:
                y4, g4 = y.to(tl.pointer_type(tl.float32)), g.to(tl.pointer_type(tl.float32))
                z4, v4 = z.to(tl.pointer_type(tl.float32)), v.to(tl.pointer_type(tl.float32))
                for start in range(0, CHUNK, BLOCK):
                    at = first + start + tl.arange(0, BLOCK)
                    _block(
                        y4 + at, g4 + at, z4 + at, v4 + at, at < n,
                        clip, beta2, rest, correction, eps, decay, ckp1, lr, factor,
                    )  # fmt: skip


def advance(counters_4G: Tensor, settings_7G: Tensor, coefficients_8G: Tensor, skip: Tensor) -> None:
    """Count one step in the fp64 counters and write its fp32 coefficients, unless `skip` (a scalar) is set."""
    groups = counters_4G.shape[1]
    _advance[(1,)](
        counters_4G, settings_7G, coefficients_8G, skip, groups, GROUPS=triton.next_power_of_2(groups), num_warps=1
    )


def update(tensors_P7: Tensor, chunks_C2: Tensor, coefficients_8G: Tensor, scale: Tensor, skip: Tensor) -> None:
    """Apply one step to the fp32 tensors whose addresses `tensors_P7` holds, their gradients times `scale`.

    Args:
        tensors_P7: int64, see COLUMNS; a gradient at address 0 leaves its parameter alone.
        chunks_C2: int32, row of `tensors_P7` and number of a chunk of CHUNK elements within that tensor.
        coefficients_8G: as `advance` wrote them.
        scale: fp32 scalar on the device, the clip coefficient.
        skip: fp32 scalar on the device; nothing is written where it is not 0.

    """
    _update[(len(chunks_C2),)](
        tensors_P7, chunks_C2, coefficients_8G, scale, skip, coefficients_8G.shape[1],
        CHUNK=CHUNK, BLOCK=BLOCK, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
