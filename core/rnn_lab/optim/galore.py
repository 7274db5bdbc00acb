"""GaLore: momentum in a subspace of a matrix's gradients, refreshed now and then, for Muon and for AdamW.

    U = leading left singular vectors of G, every T steps        R: β R + (1 - β) U'G
    Muon:   W = (1 - lr wd) W - lr σ α U NS((1 - β) U'G + β R)
    AdamW:  W = (1 - lr wd) W - lr α U Adam(U'G)

A matrix is transposed if it is tall, so U is `[m, r]` and R `[r, n]` with m <= n: r (m + n) values instead of m n.
GaLore-Muon as such need not converge; `debias = "gum"` (arXiv 2510.17802) makes its steps unbiased: in each period of T
steps a matrix is full-rank with probability q, R = β R + (G - U U'G) / q, and otherwise R = β R + U'G / (1 - q).
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rnn_lab.optim.adamw import AdamRule, direction
from rnn_lab.optim.batch import MatrixBatch, Member, Signals
from rnn_lab.optim.moments import Momentum, momentum
from rnn_lab.optim.muon import MuonRule, advance
from rnn_lab.optim.projector import Drawn, alive, chosen, energy, leading_vectors, overlap

LOST = 0.20
"""An adaptive refresh follows where 1 - cos(G, U U'G) is above this."""


@dataclass(frozen=True)
class Subspaces:
    """Settings of the projection; see OptimizerSection.

    Attributes:
        every: steps between refreshes, T.
        on_refresh: `reproject`, `keep` or `reset`.
        alpha: factor of projected steps.
        adaptive: every T / 4 steps, also refresh what has lost its gradient.
        dtype: in which U is stored; None: that of the momentum.

    """

    every: int = 200
    on_refresh: str = "reproject"
    alpha: float = 1.0
    adaptive: bool = False
    dtype: torch.dtype | None = None


@dataclass
class Watch:
    """What the last refresh showed; figures of those matrices of a batch whose gradients were not zero."""

    energy: Tensor | None = None
    stale: Tensor | None = None
    overlap: Tensor | None = None
    seconds: float = 0.0
    refreshes: int = field(default=0)


class GaLoreBatch(MatrixBatch):
    """Matrices of one shape with momentum in subspaces of rank r.

    Args:
        members: the matrices of a batch, but for those of other processes.
        rank: of the subspaces.
        subspaces: how often they are refreshed.
        rule: Muon's or AdamW's settings.
        drawn: their places in the whole batch, whose random probes are drawn together; None: it is whole.

    """

    def __init__(
        self, members: list[Member], rank: int, subspaces: Subspaces, rule: MuonRule | AdamRule,
        drawn: Drawn | None = None,
    ) -> None:  # fmt: skip
        super().__init__(members)
        self.drawn = drawn
        self.rank, self.subspaces, self.rule = rank, subspaces, rule
        K, m, n = self.shape
        self.small = (K, rank, n)
        self.U = torch.zeros(K, m, rank, dtype=subspaces.dtype or self.dtype, device=self.device)
        codec = rule.codec if isinstance(rule, MuonRule) else None
        self.momentum: Momentum = momentum(self.small, codec, self.dtype, self.device)
        self.second = None if isinstance(rule, MuonRule) else torch.zeros(
            self.small, dtype=self.dtype, device=self.device
        )  # fmt: skip
        self.watch = Watch()
        self.waiting: list[int] = []
        """Matrices whose refresh was due at a gradient of zeros."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """State `[K, ...]` by name."""
        second = {} if self.second is None else {"second": self.second}
        return {"U": self.U, **self.momentum.tensors, **second}

    def step(self, now: Signals, weight_decay: float, taken: int) -> None:
        """One update, the `taken`-th of the run, counted from 1."""
        G_Kmn = self.gradients(now) * now.scale.to(self.dtype)
        self._refresh(G_Kmn, taken)
        U_Kmr = self.U.to(self.dtype)
        step_Krn = self._projected_step(torch.bmm(U_Kmr.mT, G_Kmn), now, taken)
        factor = self.subspaces.alpha
        if isinstance(self.rule, MuonRule):
            factor *= self.rule.factor(self.rows, self.columns)
        self.apply(torch.bmm(U_Kmr, step_Krn.to(self.dtype)), now, weight_decay, factor)

    def _projected_step(self, g_Krn: Tensor, now: Signals, taken: int) -> Tensor:
        m_Krn = self.momentum.read()
        if isinstance(self.rule, MuonRule):
            unscaled = Signals(torch.ones_like(now.scale), now.skipped, now.going, now.lr)
            u_Krn = advance(m_Krn, g_Krn, self.rule.beta, unscaled)
            self.momentum.write(m_Krn, None)
            return self.rule.direction(u_Krn)
        assert self.second is not None
        beta1, beta2 = self.rule.betas
        m_Krn.lerp_(g_Krn, 1 - beta1)
        self.second.lerp_(g_Krn.square(), 1 - beta2)
        return direction(m_Krn, self.second, self.rule, torch.tensor(taken))

    def _refresh(self, G_Kmn: Tensor, taken: int) -> None:
        """New subspaces where they are due; a matrix whose gradient is zero waits for its first other one."""
        every = self.subspaces.every
        due = (taken - 1) % every == 0
        looks = self.subspaces.adaptive and not due and (taken - 1) % max(1, every // 4) == 0
        if due:
            self.waiting = list(range(self.shape[0]))
        if not self.waiting and not looks:
            return
        alive_K = alive(G_Kmn)
        waiting_K = chosen(self.waiting, alive_K)
        which_K = waiting_K | (1 - energy(self.U, G_Kmn).sqrt() > LOST) if looks else waiting_K
        which_K = which_K & alive_K
        self.waiting = (waiting_K & ~alive_K).nonzero().flatten().tolist()
        if not which_K.any():
            return
        began = time.perf_counter()
        new_Kmr = leading_vectors(G_Kmn, self.rank, self._seed(taken), self.drawn).to(self.U.dtype)
        new_Kmr = torch.where(which_K[:, None, None], new_Kmr, self.U)
        shown_K = (alive_K if looks else which_K) & alive(self.U)  # those that had a subspace before
        if shown_K.any():
            self.watch.stale = energy(self.U, G_Kmn)[shown_K]
            self.watch.overlap = overlap(new_Kmr.to(self.dtype), self.U)[shown_K]
            self._carry_over(new_Kmr, which_K)
        self.U.copy_(new_Kmr)
        self.watch.energy = energy(self.U, G_Kmn)[alive_K]
        self.watch.seconds, self.watch.refreshes = time.perf_counter() - began, self.watch.refreshes + 1

    def _carry_over(self, new_Kmr: Tensor, which_K: Tensor) -> None:
        """Momentum in the new subspaces; second moments are no vectors and stay."""
        how = self.subspaces.on_refresh
        if how == "keep":
            return
        m_Krn = self.momentum.read()
        if how == "reset":
            gone_Krn = torch.zeros_like(m_Krn)
            second = None if self.second is None else torch.zeros_like(self.second)
        else:
            turn_Krr = torch.bmm(new_Kmr.to(self.dtype).mT, self.U.to(self.dtype))
            gone_Krn, second = torch.bmm(turn_Krr, m_Krn), None
        gone_Krn = torch.where(which_K[:, None, None], gone_Krn, m_Krn)
        self.momentum.write(gone_Krn, None)
        if second is not None and self.second is not None:
            self.second.copy_(torch.where(which_K[:, None, None], second, self.second))

    def _seed(self, taken: int) -> int:
        """Of this batch's probe at this step: a resumed run draws the same one."""
        slot = self.members[0].slot if self.drawn is None else self.drawn.slot
        return 1_000_003 * taken + 7919 * slot + self.shape[1] * 31 + self.shape[2]

    def figures(self) -> dict[str, Any]:
        """Tensors of the last refresh, per matrix, by name."""
        watch = self.watch
        found = {"energy": watch.energy, "energy_stale": watch.stale, "subspace_overlap": watch.overlap}
        return {name: value for name, value in found.items() if value is not None}
