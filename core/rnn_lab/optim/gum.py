"""GUM (arXiv 2510.17802): GaLore-Muon without its bias, by full-rank periods at random; see optim.galore."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rnn_lab.optim.batch import MatrixBatch, Member, Signals
from rnn_lab.optim.galore import Subspaces
from rnn_lab.optim.muon import MuonRule
from rnn_lab.optim.projector import alive, chosen, leading_vectors


def is_full(index: int, taken: int, every: int, share: float) -> bool:
    """Whether a parameter's matrices are full-rank in the period of step `taken`, counted from 1."""
    period = max(0, taken - 1) // every
    return random.Random(f"{index} {period}").random() < share


class GumBatch(MatrixBatch):
    """The matrices of one parameter, all low-rank or all full-rank in a period.

    Args:
        member: the parameter's piece.
        rank: of the subspace.
        subspaces: how often it is refreshed.
        rule: Muon's settings.
        share: probability q of a full-rank period.
        index: tells this batch's draws from those of others.

    """

    def __init__(
        self, member: Member, rank: int, subspaces: Subspaces, rule: MuonRule, share: float, index: int
    ) -> None:
        super().__init__([member])
        self.rank, self.subspaces, self.rule, self.share, self.index = rank, subspaces, rule, share, index
        K, m, _ = self.shape
        self.U = torch.zeros(K, m, rank, dtype=subspaces.dtype or self.dtype, device=self.device)
        self.waiting: list[int] = []
        """Matrices whose refresh was due at a gradient of zeros."""
        self.begin(1)

    def begin(self, taken: int) -> None:
        """Zero momentum of the kind that the period of step `taken` has."""
        K, m, n = self.shape
        self.full = is_full(self.index, taken, self.subspaces.every, self.share)
        rows = m if self.full else self.rank
        self.value = torch.zeros(K, rows, n, dtype=self.dtype, device=self.device)

    def step(self, now: Signals, weight_decay: float, taken: int) -> None:
        """One update, the `taken`-th of the run, counted from 1."""
        G_Kmn = self.gradients(now) * now.scale.to(self.dtype)
        if (taken - 1) % self.subspaces.every == 0:
            self.begin(taken)
            self.waiting = list(range(self.shape[0]))
        if self.waiting:
            self._refresh(G_Kmn, taken)
        U_Kmr, q = self.U.to(self.dtype), self.share
        g_Krn = torch.bmm(U_Kmr.mT, G_Kmn)
        new = (G_Kmn - torch.bmm(U_Kmr, g_Krn)) / q if self.full else g_Krn / (1 - q)
        self.value.mul_(self.rule.beta).add_(new)
        step = self.rule.direction(self.value)
        step_Kmn = step if self.full else torch.bmm(U_Kmr, step.to(self.dtype))
        factor = self.subspaces.alpha * self.rule.factor(self.rows, self.columns)
        self.apply(step_Kmn, now, weight_decay, factor)

    def _refresh(self, G_Kmn: Tensor, taken: int) -> None:
        """New subspaces of waiting matrices with a gradient; momentum of the period is zero up to there."""
        alive_K = alive(G_Kmn)
        waiting_K = chosen(self.waiting, alive_K)
        which_K = waiting_K & alive_K
        self.waiting = (waiting_K & ~alive_K).nonzero().flatten().tolist()
        if which_K.any():
            new_Kmr = leading_vectors(G_Kmn, self.rank, 1_000_003 * taken + self.index)
            self.U.copy_(torch.where(which_K[:, None, None], new_Kmr.to(self.U.dtype), self.U))

    def stored(self) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
        """(parameter, name, tensor) of everything stored."""
        return self.states({"U": self.U, "momentum": self.value})
