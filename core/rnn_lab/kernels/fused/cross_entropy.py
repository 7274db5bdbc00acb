"""Mean over positions of log(sum_v exp(l_v)) - l_target, in fp32 from logits of any dtype.

    logits_BTV  as the head's product leaves them        targets_BT  indices into V, int64

A position whose target is `IGNORED` is not in the mean, and its logits get no gradient. No fp32 copy of the logits and
no probabilities are kept: the way back computes them again from the logits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.triton_support import refuses_triton

IGNORED = -1
"""Target of a position that is left out."""

LARGEST_VOCABULARY = 4096
"""A row is held in the registers of one program."""


def reference(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Torch's cross-entropy on widened logits.

    Args:
        logits_BTV: scores.
        targets_BT: what each position has to predict, or IGNORED.

    Returns:
        The mean in nats, fp32 (fp64 for fp64 logits); zero where every position is ignored.

    """
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)
    flat = logits_BTV.to(wide).flatten(0, 1)
    total = F.cross_entropy(flat, targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets_BT != IGNORED).sum().clamp(min=1)


def _refuses(logits_BTV: Tensor, targets_BT: Tensor) -> str | None:
    """Why the Triton kernels cannot take this call, or None."""
    if logits_BTV.shape[-1] > LARGEST_VOCABULARY:
        return f"a vocabulary of {logits_BTV.shape[-1]} is above {LARGEST_VOCABULARY}, the widest row of one program"
    return refuses_triton(logits_BTV)


def _triton(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The fused kernels; see `reference`."""
    from rnn_lab.kernels.fused.cross_entropy_triton import cross_entropy

    loss: Tensor = cross_entropy(logits_BTV, targets_BT)[0]
    return loss


def _probe(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """A few rows with logits far apart, as a trained model has them; some are ignored."""
    logits = 4 * torch.randn(2, 67, logits_BTV.shape[-1], device=logits_BTV.device)
    targets = torch.randint(logits_BTV.shape[-1], (2, 67), device=targets_BT.device)
    targets[:, ::5] = IGNORED
    return logits.to(logits_BTV.dtype), targets


CROSS_ENTROPY = Op("cross_entropy", reference, [Backend("triton", _triton, _refuses)], _probe)
