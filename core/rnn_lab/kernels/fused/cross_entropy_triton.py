# Triton reads the signatures of kernels in its own way.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment,misc"
"""Triton kernels of cross_entropy: a block of rows per program."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from rnn_lab.kernels.triton_support import tuned

CONFIGS = [Config({"ROWS": 8}, num_warps=2), Config({"ROWS": 16}, num_warps=4), Config({"ROWS": 32}, num_warps=8)]


@tuned(CONFIGS, key=("V",))
@triton.jit
def forward_kernel(
    logits_ptr, targets_ptr, nll_ptr, lse_ptr, rows, V: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Per row: log of the sum of exponentials, and how far the target's logit is below it; zeros where ignored."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + row, mask=row < rows, other=-1)
    counted = target >= 0
    mask = counted[:, None] & (column < V)[None, :]
    logits = tl.load(logits_ptr + row[:, None] * V + column[None, :], mask=mask, other=float("-inf")).to(tl.float32)
    logits = tl.where(counted[:, None], logits, 0.0)
    largest = tl.max(logits, 1)
    lse = largest + tl.log(tl.sum(tl.exp(logits - largest[:, None]), 1))
    hit = tl.load(logits_ptr + row * V + target, mask=counted, other=0.0).to(tl.float32)
    tl.store(lse_ptr + row, tl.where(counted, lse, 0.0), mask=row < rows)
    tl.store(nll_ptr + row, tl.where(counted, lse - hit, 0.0), mask=row < rows)


@tuned(CONFIGS, key=("V",))
@triton.jit
def backward_kernel(
    dloss_ptr, logits_ptr, targets_ptr, lse_ptr, count_ptr, dlogits_ptr, rows,
    V: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """(softmax - one at the target) * dloss / count; zero where the position is ignored."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at = row[:, None] * V + column[None, :]
    target = tl.load(targets_ptr + row, mask=row < rows, other=-1)
    counted = (target >= 0)[:, None] & (column < V)[None, :]
    logits = tl.load(logits_ptr + at, mask=counted, other=float("-inf")).to(tl.float32)
    lse = tl.load(lse_ptr + row, mask=row < rows, other=0.0)
    p = tl.exp(logits - lse[:, None])
    p = tl.where(column[None, :] == target[:, None], p - 1.0, p)
    scale = tl.load(dloss_ptr).to(tl.float32) / tl.load(count_ptr)
    inside = (row < rows)[:, None] & (column < V)[None, :]
    tl.store(dlogits_ptr + at, (p * scale).to(dlogits_ptr.dtype.element_ty), mask=inside)


def _grid(rows: int) -> Any:
    return lambda config: (triton.cdiv(rows, config["ROWS"]),)


@torch.library.custom_op("rnn_lab::cross_entropy", mutates_args=())
def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean nats per position, per row the log of the sum of exponentials, and how many rows are in the mean."""
    logits, targets = logits_BTV.contiguous(), targets_BT.contiguous()
    V, rows = logits.shape[-1], targets.numel()
    lse = torch.empty(rows, dtype=torch.float32, device=logits.device)
    nll = torch.empty_like(lse)
    forward_kernel[_grid(rows)](logits, targets, nll, lse, rows, V=V, BLOCK=triton.next_power_of_2(V))
    count = (targets >= 0).sum(dtype=torch.float32).clamp(min=1)
    return nll.sum() / count, lse, count


@cross_entropy.register_fake
def _(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lse = logits_BTV.new_empty(targets_BT.numel(), dtype=torch.float32)
    return lse.new_empty(()), lse, lse.new_empty(())


@torch.library.custom_op("rnn_lab::cross_entropy_backward", mutates_args=())
def cross_entropy_backward(dloss: Tensor, logits_BTV: Tensor, targets_BT: Tensor, lse: Tensor, count: Tensor) -> Tensor:
    """Gradient of the logits, in their dtype."""
    logits, targets = logits_BTV.contiguous(), targets_BT.contiguous()
    V, rows = logits.shape[-1], targets.numel()
    dlogits = torch.empty_like(logits)
    backward_kernel[_grid(rows)](
        dloss, logits, targets, lse, count, dlogits, rows, V=V, BLOCK=triton.next_power_of_2(V)
    )  # fmt: skip
    return dlogits


@cross_entropy_backward.register_fake
def _(dloss: Tensor, logits_BTV: Tensor, targets_BT: Tensor, lse: Tensor, count: Tensor) -> Tensor:
    return logits_BTV.new_empty(logits_BTV.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])


def _backward(ctx: Any, dloss: Tensor, *unused: Tensor) -> tuple[Tensor, None]:
    return torch.ops.rnn_lab.cross_entropy_backward(dloss, *ctx.saved_tensors), None


cross_entropy.register_autograd(_backward, setup_context=_keep)
