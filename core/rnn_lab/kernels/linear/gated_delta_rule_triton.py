"""The gated delta rule in chunks of C steps, for tensor cores.

Within a chunk, with G the running sum of the log decay and R = G (decay first) or G - g (retrieval first), the errors
e_t = v_t - r_t that the steps write solve one triangular system, and everything else is a product of matrices:

    A_ts = exp(G_t - G_s) q_t'k_s beta_s   s <= t        M_ts = exp(R_t - G_s) k_t'k_s beta_s   s < t
    E    = (I + M)^-1 (V - e^R K S)        O = e^G Q S + A E
    S'   = e^(G_C) S + (e^(G_C - G) K)' (beta E)

A pair of steps with a document reset between them has the factor 0. The inverse needs no state: `invert` makes it for
all chunks at once and it is kept for the backward; `advance` walks over the chunks with the state in registers. The
backward runs `advance` again for the states and the errors, `retreat` walks back with the state's gradient, and
`collect` makes the gradients of all chunks at once. A pair has +G_t at its row and -G_s at its column: before s it
adds nothing to the gradient by g, which holds only if both take the same number, before anything is rounded.

No product takes the transpose of another product's result, which Triton miscompiles on Hopper: such a matrix is
computed twice, once each way. Sums are in fp32, matrices of 16-bit calls are rounded to 16 bits before a product.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
import triton
import triton.language as tl

from rnn_lab.kernels.functions_triton import narrow, operand

LEAST_DECAY = tl.constexpr(-30.0)
"""Log decay below which fp32 sees nothing of a state (1e-13): keeps -inf away and sums small."""


@triton.jit
def _decays(g_ptr, beta_ptr, reset_ptr, t, T, H, DECAY_FIRST: tl.constexpr, HAS_RESET: tl.constexpr, DOT: tl.constexpr):
    """G, R, document number and write strength of the steps t `[C]`, and what the chunk's end sees of them.

    The sums of fp32 calls are in fp64: of a large sum, fp32 loses the small decays after it.
    """
    g = tl.maximum(tl.load(g_ptr + t * H, t < T, other=0.0).to(tl.float32), LEAST_DECAY)
    if DOT == tl.float32:  # noqa: SIM300
        g = g.to(tl.float64)
    beta = tl.load(beta_ptr + t * H, t < T, other=0.0).to(tl.float32)
    G = tl.cumsum(g, 0)
    R = G if DECAY_FIRST else G - g
    if HAS_RESET:
        new = tl.load(reset_ptr + t, t < T, other=0).to(tl.int32)
        document = tl.cumsum(new, 0)
        last = tl.sum(new, 0)
    else:
        document = tl.zeros_like(t)
        last = 0
    tail = tl.where(document == last, tl.exp((tl.sum(g, 0) - G).to(tl.float32)), 0.0)
    keep = tl.where(last == 0, tl.exp(tl.sum(g, 0).to(tl.float32)), 0.0)
    return G, R, document, beta, tail, keep


@triton.jit
def _pairs(X, Y, document, seen):
    """exp(X_i - Y_j) where i may see j and both are of one document, else 0."""
    exponent = (X[:, None] - Y[None, :]).to(tl.float32)
    return tl.exp(tl.where(seen & (document[:, None] == document[None, :]), exponent, float("-inf")))


@triton.jit
def _from_start(X, document):
    """exp(X) where the state at the chunk's start is still alive, as a column."""
    return tl.where(document == 0, tl.exp(X.to(tl.float32)), 0.0)[:, None]


@triton.jit
def _tile(ptr, rows, n_rows, stride, columns, n_columns, DOT: tl.constexpr):
    """Tile of a matrix, zero outside of it."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    return operand(tl.load(ptr + rows[:, None] * stride + columns[None, :], inside, other=0.0), DOT)


@triton.jit
def _put(ptr, x, rows, n_rows, stride, columns, n_columns):
    """Store a tile where it lies inside of the matrix."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    tl.store(ptr + rows[:, None] * stride + columns[None, :], narrow(x, ptr.dtype.element_ty), inside)


@triton.jit
def _times(x, Y, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """X Y, where Y carries the state: of a 16-bit call also what rounding drops of Y, or the state would lose it."""
    rounded = operand(Y, DOT)
    product = tl.dot(x, rounded, input_precision=PRECISION)
    if tl.float32 != DOT:
        product += tl.dot(x, operand(Y - rounded.to(tl.float32), DOT), input_precision=PRECISION)
    return product


@triton.jit
def _grams(
    x_ptr, y_ptr, t, T, stride, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """X Y' `[C, C]` for the rows t of two streams."""
    product = tl.zeros((C, C), tl.float32)
    for v in range(0, V, BV):
        y = v + tl.arange(0, BV)
        right = _tile(y_ptr, t, T, stride, y, V, DOT)
        product += tl.dot(_tile(x_ptr, t, T, stride, y, V, DOT), tl.trans(right), input_precision=PRECISION)
    return product


@triton.jit(do_not_specialize=("T",))
def invert(
    k_ptr, g_ptr, beta_ptr, reset_ptr, inverse_ptr, T, H, chunks,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, DOUBLINGS: tl.constexpr,
    DECAY_FIRST: tl.constexpr, HAS_RESET: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(I + M)^-1 of one chunk `[C, C]`: inverses of diagonal blocks of twice the size, until there is one block.

    [[a, 0], [m, b]]^-1 = [[a^-1, 0], [-b^-1 m a^-1, b^-1]], all blocks of a size in two products.
    """
    program = tl.program_id(0).to(tl.int64)
    h, c, b = program % H, program // H % chunks, program // H // chunks
    i = tl.arange(0, C)
    t = c.to(tl.int32) * C + i
    base = b * T * H + h
    G, R, document, beta, _, _ = _decays(
        g_ptr + base, beta_ptr + base, reset_ptr + b * T, t, T, H, DECAY_FIRST, HAS_RESET, DOT
    )
    k = _tile(k_ptr + base * K, t, T, H * K, tl.arange(0, BK), K, DOT)
    m = _pairs(R, G, document, i[:, None] > i[None, :]) * beta[None, :]
    m *= tl.dot(k, tl.trans(k), input_precision=PRECISION)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0) - tl.where(i[:, None] // 2 == i[None, :] // 2, m, 0.0)
    for doubling in tl.static_range(1, DOUBLINGS):
        size = 1 << doubling
        below = tl.where(i[:, None] // size == i[None, :] // size, 0.0, m)
        below = tl.where(i[:, None] // (2 * size) == i[None, :] // (2 * size), below, 0.0)
        below = tl.dot(inverse, below, input_precision=PRECISION)
        inverse -= tl.dot(below, inverse, input_precision=PRECISION)
    _put(inverse_ptr + program * C * C, inverse, i, C, C, i, C)


@triton.jit(do_not_specialize=("T",))
def advance(
    q_ptr, k_ptr, v_ptr, g_ptr, beta_ptr, reset_ptr, S_ptr, inverse_ptr,
    o_ptr, last_ptr, states_ptr, errors_ptr, T, H, chunks,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FORWARD: tl.constexpr,
    DECAY_FIRST: tl.constexpr, HAS_RESET: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BV columns of one head's state from the first chunk to the last.

    FORWARD stores read-outs and the last state; without it, each chunk's first state and its errors are stored.
    """
    head = tl.program_id(0).to(tl.int64)
    h, b = head % H, head // H
    i, x, y = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    base = b * T * H + h
    S = _tile(S_ptr + head * K * V, x, K, V, y, V, tl.float32)
    for c in range(chunks):
        t = c * C + i
        chunk = (b * chunks + c) * H + h
        G, R, document, beta, tail, keep = _decays(
            g_ptr + base, beta_ptr + base, reset_ptr + b * T, t, T, H, DECAY_FIRST, HAS_RESET, DOT
        )
        k = _tile(k_ptr + base * K, t, T, H * K, x, K, DOT)
        v = _tile(v_ptr + base * V, t, T, H * V, y, V, tl.float32)
        inverse = _tile(inverse_ptr + chunk * C * C, i, C, C, i, C, DOT)
        error = _times(inverse, v - _from_start(R, document) * _times(k, S, DOT, PRECISION), DOT, PRECISION)
        if FORWARD:
            q = _tile(q_ptr + base * K, t, T, H * K, x, K, DOT)
            a = _pairs(G, G, document, i[:, None] >= i[None, :]) * beta[None, :]
            a *= tl.dot(q, tl.trans(k), input_precision=PRECISION)
            o = _from_start(G, document) * tl.dot(q, operand(S, DOT), input_precision=PRECISION)
            o += tl.dot(operand(a, DOT), operand(error, DOT), input_precision=PRECISION)
            _put(o_ptr + base * V, o, t, T, H * V, y, V)
        else:
            _put(states_ptr + chunk * K * V, S, x, K, V, y, V)
            _put(errors_ptr + base * V, error, t, T, H * V, y, V)
        S = S * keep + _times(tl.trans(k), error * (beta * tail)[:, None], DOT, PRECISION)
    if FORWARD:
        _put(last_ptr + head * K * V, S, x, K, V, y, V)


@triton.jit(do_not_specialize=("T",))
def retreat(
    q_ptr, k_ptr, g_ptr, beta_ptr, reset_ptr, inverse_ptr, do_ptr, dlast_ptr,
    dv_ptr, dstates_ptr, dS_ptr, T, H, chunks,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAY_FIRST: tl.constexpr, HAS_RESET: tl.constexpr, HAS_LAST: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BV columns of the gradient by one head's state, from the last chunk to the first.

    Stores the gradient by the values, by each chunk's last state and by the initial state.
    """
    head = tl.program_id(0).to(tl.int64)
    h, b = head % H, head // H
    i, x, y = tl.arange(0, C), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    base = b * T * H + h
    dS = tl.zeros((BK, BV), tl.float32)
    if HAS_LAST:
        dS += _tile(dlast_ptr + head * K * V, x, K, V, y, V, tl.float32)
    for back in range(chunks):
        c = chunks - 1 - back
        t = c * C + i
        chunk = (b * chunks + c) * H + h
        G, R, document, beta, tail, keep = _decays(
            g_ptr + base, beta_ptr + base, reset_ptr + b * T, t, T, H, DECAY_FIRST, HAS_RESET, DOT
        )
        q = _tile(q_ptr + base * K, t, T, H * K, x, K, DOT)
        k = _tile(k_ptr + base * K, t, T, H * K, x, K, DOT)
        do = _tile(do_ptr + base * V, t, T, H * V, y, V, DOT)
        inverse = _tile(inverse_ptr + chunk * C * C, i, C, C, i, C, DOT)
        end = operand(dS, DOT)
        _put(dstates_ptr + chunk * K * V, end, x, K, V, y, V)
        # Row s, column t of A', without its beta_s, which comes with the gradient of the errors below.
        a = _pairs(-G, -G, document, i[:, None] <= i[None, :])
        a *= tl.dot(k, tl.trans(q), input_precision=PRECISION)
        dv = tl.dot(operand(a, DOT), do, input_precision=PRECISION)
        dv += tail[:, None] * tl.dot(k, end, input_precision=PRECISION)
        dv = tl.dot(tl.trans(inverse), operand(beta[:, None] * dv, DOT), input_precision=PRECISION)
        _put(dv_ptr + base * V, dv, t, T, H * V, y, V)
        dS *= keep
        read = operand(_from_start(G, document) * do.to(tl.float32), DOT)
        dS += tl.dot(tl.trans(q), read, input_precision=PRECISION)
        retrieved = operand(_from_start(R, document) * dv, DOT)
        dS -= tl.dot(tl.trans(k), retrieved, input_precision=PRECISION)
    _put(dS_ptr + head * K * V, dS, x, K, V, y, V)


@triton.jit(do_not_specialize=("T",))
def collect(
    q_ptr, k_ptr, g_ptr, beta_ptr, reset_ptr, errors_ptr, states_ptr, dstates_ptr, do_ptr, dv_ptr,
    dq_ptr, dk_ptr, dg_ptr, dbeta_ptr, T, H, chunks, sums,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAY_FIRST: tl.constexpr, HAS_RESET: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk by BK columns of queries and keys, and these columns' part of those by g and beta."""
    program = tl.program_id(0).to(tl.int64)
    h, c, b = program % H, program // H % chunks, program // H // chunks
    i, x = tl.arange(0, C), tl.program_id(1) * BK + tl.arange(0, BK)
    t = c.to(tl.int32) * C + i
    base = b * T * H + h
    G, R, document, beta, tail, keep = _decays(
        g_ptr + base, beta_ptr + base, reset_ptr + b * T, t, T, H, DECAY_FIRST, HAS_RESET, DOT
    )
    q = _tile(q_ptr + base * K, t, T, H * K, x, K, DOT)
    k = _tile(k_ptr + base * K, t, T, H * K, x, K, DOT)

    # Through the states at both ends of the chunk: queries and keys as rows, keys as columns (without beta).
    dq = tl.zeros((C, BK), tl.float32)
    drow = tl.zeros((C, BK), tl.float32)
    dcolumn = tl.zeros((C, BK), tl.float32)
    carried = 0.0
    for v in range(0, V, BV):
        y = v + tl.arange(0, BV)
        error = _tile(errors_ptr + base * V, t, T, H * V, y, V, DOT)
        do = _tile(do_ptr + base * V, t, T, H * V, y, V, DOT)
        dv = _tile(dv_ptr + base * V, t, T, H * V, y, V, DOT)
        start = _tile(states_ptr + program * K * V, x, K, V, y, V, DOT)
        end = _tile(dstates_ptr + program * K * V, x, K, V, y, V, DOT)
        dq += tl.dot(do, tl.trans(start), input_precision=PRECISION)
        drow -= tl.dot(dv, tl.trans(start), input_precision=PRECISION)
        dcolumn += tl.dot(error, tl.trans(end), input_precision=PRECISION)
        carried += tl.sum(start.to(tl.float32) * end.to(tl.float32))
    dq *= _from_start(G, document)
    drow *= _from_start(R, document)
    dcolumn *= tail[:, None]
    dbeta = tl.sum(dcolumn * k.to(tl.float32), 1)
    dG = tl.sum(dq * q.to(tl.float32), 1)
    dR = tl.sum(drow * k.to(tl.float32), 1)
    dG += tl.where(i == C - 1, carried * keep + tl.sum(dbeta * beta), 0.0)

    # Through pairs of steps of the chunk; row t sees column s. One matrix after the other: registers are scarce.
    errors_ptr, do_ptr, dv_ptr = errors_ptr + base * V, do_ptr + base * V, dv_ptr + base * V
    pairs = _pairs(G, G, document, i[:, None] >= i[None, :])
    pairs *= _grams(do_ptr, errors_ptr, t, T, H * V, V, BV, C, DOT, PRECISION)
    dq += tl.dot(operand(pairs * beta[None, :], DOT), k, input_precision=PRECISION)
    pairs *= tl.dot(q, tl.trans(k), input_precision=PRECISION)
    dbeta += tl.sum(pairs, 0)
    dG += tl.sum(pairs * beta[None, :], 1)
    pairs = _pairs(R, G, document, i[:, None] > i[None, :])
    pairs *= -_grams(dv_ptr, errors_ptr, t, T, H * V, V, BV, C, DOT, PRECISION)
    drow += tl.dot(operand(pairs * beta[None, :], DOT), k, input_precision=PRECISION)
    pairs *= tl.dot(k, tl.trans(k), input_precision=PRECISION)
    dbeta += tl.sum(pairs, 0)
    dR += tl.sum(pairs * beta[None, :], 1)
    dG += dR - beta * dbeta

    # The same matrices the other way round: row s is seen by column t.
    pairs = _pairs(-G, -G, document, i[:, None] <= i[None, :])
    pairs *= _grams(errors_ptr, do_ptr, t, T, H * V, V, BV, C, DOT, PRECISION)
    dcolumn += tl.dot(operand(pairs, DOT), q, input_precision=PRECISION)
    pairs = _pairs(-G, -R, document, i[:, None] < i[None, :])
    pairs *= -_grams(errors_ptr, dv_ptr, t, T, H * V, V, BV, C, DOT, PRECISION)
    dcolumn += tl.dot(operand(pairs, DOT), k, input_precision=PRECISION)

    _put(dq_ptr + base * K, dq, t, T, H * K, x, K)
    _put(dk_ptr + base * K, drow + beta[:, None] * dcolumn, t, T, H * K, x, K)
    dg = tl.cumsum(dG, 0, reverse=True)
    if not DECAY_FIRST:
        dg -= dR
    part = tl.program_id(1).to(tl.int64) * sums + base
    tl.store(dg_ptr + part + t * H, dg, t < T)
    tl.store(dbeta_ptr + part + t * H, dbeta, t < T)
