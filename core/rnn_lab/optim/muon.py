"""Muon (K. Jordan et al., 2024): momentum, orthogonalised, is the step of a matrix.

    m = β m + (1 - β) g        u = (1 - β) g + β m        W = (1 - lr wd) W - lr σ(rows, columns) NS(u)

with σ = sqrt(max(1, rows / columns)), or 0.2 sqrt(max(rows, columns)), which gives steps the size of AdamW's
(arXiv 2502.16982). With a codec, m is kept in 8 bits between steps and the step itself uses it unrounded.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.kernels.triton_support import refuses_triton
from rnn_lab.optim.batch import MatrixBatch, Member, Signals
from rnn_lab.optim.moments import CodedMomentum, momentum
from rnn_lab.optim.newton_schulz import orthogonalise, product_dtype
from rnn_lab.optim.quantise import Blockwise


@dataclass(frozen=True)
class MuonRule:
    """Settings of Muon; see OptimizerSection.

    Attributes:
        beta: decay of the momentum.
        steps: iterations.
        orthogonalizer: their polynomials.
        scale: `original` or `match_rms_adamw`.
        codec: of the momentum; None keeps it as it is.
        product_dtype: of the iterations; None: bf16 on a GPU, otherwise that of the momentum.

    """

    beta: float = 0.95
    steps: int = 5
    orthogonalizer: str = "ns"
    scale: str = "original"
    codec: Blockwise | None = None
    product_dtype: torch.dtype | None = None

    def factor(self, rows: int, columns: int) -> float:
        """σ of a matrix."""
        return math.sqrt(max(1.0, rows / columns)) if self.scale == "original" else 0.2 * math.sqrt(max(rows, columns))

    def direction(self, u_Kmn: Tensor) -> Tensor:
        """NS(u)."""
        return orthogonalise(u_Kmn, self.steps, self.orthogonalizer, self.product_dtype)


class MuonBatch(MatrixBatch):
    """Muon's state and step for matrices of one shape; nothing in it needs the host."""

    def __init__(self, members: list[Member], rule: MuonRule) -> None:
        super().__init__(members)
        self.rule = rule
        self.momentum = momentum(self.shape, rule.codec, self.dtype, self.device)
        kept = self.momentum
        linear = not isinstance(kept, CodedMomentum) or (kept.codec.kind == "linear" and not kept.codec.stochastic)
        self.fused = linear and self.dtype == torch.float32 and refuses_triton(*kept.tensors.values()) is None
        """Whether one kernel does all before the orthogonalisation."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """State `[K, ...]` by name."""
        return self.momentum.tensors

    def step(self, now: Signals, weight_decay: float) -> None:
        """One update, or none where the step is skipped."""
        if self.fused:
            u_Kmn = self._advance_fused(now)
        else:
            m_Kmn = self.momentum.read()
            u_Kmn = advance(m_Kmn, self.gradients(now), self.rule.beta, now)
            self.momentum.write(m_Kmn, now.skipped)
        self.apply(self.rule.direction(u_Kmn), now, weight_decay, self.rule.factor(self.rows, self.columns))

    def _advance_fused(self, now: Signals) -> Tensor:
        """As `advance` between reading and writing the momentum, in one pass over memory."""
        from rnn_lab.kernels.updates import muon_triton as kernels

        kept, beta = self.momentum, self.rule.beta
        dtype = self.rule.product_dtype or product_dtype(self.members[0].parameter)
        u_Kmn = torch.empty(self.shape, dtype=dtype, device=self.device)
        gain, skipped = ((1 - beta) * now.scale).float(), now.skipped.to(torch.int8)
        if isinstance(kept, CodedMomentum):
            grad_Kmn = self.gradients(now, masked=False)
            kernels.coded(kept.codes, kept.scales, grad_Kmn, u_Kmn, gain, skipped, beta, kept.codec.block)
        else:
            m_Kmn = kept.read()
            for (_, span), grad_kmn in zip(self, self.views(), strict=True):
                kernels.plain(m_Kmn[span], grad_kmn, u_Kmn[span], gain, skipped, beta)
        return u_Kmn


def advance(m: Tensor, grad: Tensor, beta: float, now: Signals) -> Tensor:
    """m <- β m + (1 - β) scale grad in place, unless the step is skipped; u = (1 - β) scale grad + β m."""
    gain = ((1 - beta) * now.scale * now.going).masked_fill(now.skipped, 0.0).to(m.dtype)
    m.mul_((1 - (1 - beta) * now.going).to(m.dtype)).addcmul_(grad, gain)
    return (m * beta).addcmul_(grad, gain)
