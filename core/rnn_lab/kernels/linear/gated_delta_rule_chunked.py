"""The gated delta rule by chunked Triton kernels (gated_delta_rule_triton), as a torch operation with gradients."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.linear import gated_delta_rule_triton as kernels

CHUNK = 64
"""Steps per chunk C: the side of a Hopper tensor core's tile."""


def _sizes(q: Tensor, v: Tensor) -> dict[str, Any]:
    """Tile sizes and modes of a call. Chunks and value tiles shrink where they would not fit the registers.

    With 4 warps and a 16-bit tile narrower than 64, or keys wider than 128, Triton 3.6 computes wrong values or writes
    out of bounds on Hopper; with 2, which take another instruction, every shape tried is right (docs/performance.md).
    """
    K, V = q.shape[-1], v.shape[-1]
    BK = max(16, triton.next_power_of_2(K))
    wide = v.dtype == torch.float32
    dot = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[v.dtype]
    side = CHUNK // 2 if wide else CHUNK
    BV = max(16, min(side if BK < 256 else side // 2, triton.next_power_of_2(V)))
    return {
        "K": K, "V": V, "BK": BK, "BV": BV, "C": side, "DOT": dot, "PRECISION": "tf32x3" if wide else "tf32",
        "num_warps": 4 if wide or (BK in (64, 128) and BV == 64) else 2, "num_stages": 2,
    }  # fmt: skip


@torch.library.custom_op("rnn_lab::gated_delta_rule", mutates_args=())
def forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor, reset: Tensor | None, decay_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Read-outs `[B, T, H, V]`, last state, inverse of every chunk `[B, chunks, H, C, C]`; all arguments contiguous."""
    sizes = _sizes(q, v)
    B, T, H, _ = q.shape
    chunks = triton.cdiv(T, sizes["C"])
    o, last = torch.empty_like(v), torch.empty_like(S)
    inverse = v.new_empty(B, chunks, H, sizes["C"], sizes["C"])
    modes = {"DECAY_FIRST": decay_first, "HAS_RESET": reset is not None}
    reset = g if reset is None else reset
    solving = {name: size for name, size in sizes.items() if name not in ("V", "BV")}
    doublings = sizes["C"].bit_length() - 1
    kernels.invert[(B * H * chunks,)](k, g, beta, reset, inverse, T, H, chunks, **solving, DOUBLINGS=doublings, **modes)
    grid = (B * H, triton.cdiv(sizes["V"], sizes["BV"]))
    kernels.advance[grid](
        q, k, v, g, beta, reset, S, inverse, o, last, o, o, T, H, chunks, FORWARD=True, **sizes, **modes
    )
    return o, last, inverse


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor, reset: Tensor | None, decay_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    C = _sizes(q, v)["C"]
    inverse = v.new_empty(q.shape[0], (q.shape[1] + C - 1) // C, q.shape[2], C, C)
    return torch.empty_like(v), torch.empty_like(S), inverse


@torch.library.custom_op("rnn_lab::gated_delta_rule_backward", mutates_args=())
def backward(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor,
    reset: Tensor | None, inverse: Tensor, decay_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by q, k, v, g, beta and S."""
    sizes = _sizes(q, v)
    B, T, H, K = q.shape
    V, chunks = sizes["V"], inverse.shape[1]
    modes = {"DECAY_FIRST": decay_first, "HAS_RESET": reset is not None}
    reset = g if reset is None else reset
    states, errors = v.new_empty(B, chunks, H, K, V), torch.empty_like(v)
    grid = (B * H, triton.cdiv(V, sizes["BV"]))
    kernels.advance[grid](
        q, k, v, g, beta, reset, S, inverse, v, S, states, errors, T, H, chunks, FORWARD=False, **sizes, **modes
    )
    dv, dstates, dS = torch.empty_like(v), torch.empty_like(states), torch.empty_like(S)
    kernels.retreat[grid](
        q, k, g, beta, reset, inverse, do, S if dlast is None else dlast, dv, dstates, dS, T, H, chunks,
        HAS_LAST=dlast is not None, **sizes, **modes,
    )  # fmt: skip
    sizes["BK"], sizes["BV"] = min(sizes["C"], sizes["BK"]), max(16, min(sizes["C"], triton.next_power_of_2(V)))
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    parts = triton.cdiv(K, sizes["BK"])
    dg, dbeta = g.new_empty(parts, B, T, H), g.new_empty(parts, B, T, H)
    kernels.collect[(B * H * chunks, parts)](
        q, k, g, beta, reset, errors, states, dstates, do, dv, dq, dk, dg, dbeta, T, H, chunks, B * T * H,
        **sizes, **modes,
    )  # fmt: skip
    return dq, dk, dv, dg.sum(0), dbeta.sum(0), dS


@backward.register_fake
def _(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor,
    reset: Tensor | None, inverse: Tensor, decay_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv, dg, dbeta, dS = (torch.empty_like(x) for x in (q, k, v, g, beta, S))
    return dq, dk, dv, dg, dbeta, dS


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, g, beta, S, reset, ctx.decay_first = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, g, beta, S, reset, output[2])


def _gradients(ctx: Any, do: Tensor | None, dlast: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    q, k, v, g, beta, S, reset, inverse = ctx.saved_tensors
    do = torch.zeros_like(v) if do is None else do.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    return (*backward(do, dlast, q, k, v, g, beta, S, reset, inverse, ctx.decay_first), None, None)


forward.register_autograd(_gradients, setup_context=_setup)


def gated_delta_rule(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    S_BHNV: Tensor,
    reset_BT: Tensor | None = None,
    decay_first: bool = True,
) -> tuple[Tensor, Tensor]:
    """`kernels.linear.gated_delta_rule.reference` in chunks, in the dtype of the values.

    Args:
        q_BTHN: queries.
        k_BTHN: keys.
        v_BTHV: values.
        g_BTH: log decay.
        beta_BTH: write strength.
        S_BHNV: initial state.
        reset_BT: True at t zeroes the state before step t.
        decay_first: whether the state decays before or after the retrieval.

    Returns:
        Read-outs `[B, T, H, V]` in the dtype of the values and the last state in fp32.

    """
    N, V = k_BTHN.shape[-1], v_BTHV.shape[-1]
    # Rows of whole 16 bytes: what they are padded with is zero and stays zero.
    more_N, more_V = -N % 8, -V % 8
    q, k = (_padded(x.to(v_BTHV.dtype), more_N) for x in (q_BTHN, k_BTHN))
    v, S = _padded(v_BTHV, more_V), _padded(S_BHNV.float(), more_V, more_N)
    reset = None if reset_BT is None else reset_BT.to(torch.uint8).contiguous()
    o, last, _ = forward(q, k, v, g_BTH.float().contiguous(), beta_BTH.float().contiguous(), S, reset, decay_first)
    return (o[..., :V] if more_V else o), (last[..., :N, :V] if more_N or more_V else last)


def _padded(x: Tensor, columns: int, rows: int = 0) -> Tensor:
    """Contiguous, with zeros behind each row; F.pad copies even where it adds nothing."""
    return (F.pad(x, (0, columns, 0, rows)) if rows or columns else x).contiguous()
