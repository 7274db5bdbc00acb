"""One-sided projections of GaLore (arXiv 2403.03507, 2504.20437): the leading left singular vectors of a gradient."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 10
POWER_ITERATIONS = 2


@dataclass(frozen=True)
class Drawn:
    """Matrices that share a random draw with others, so that it does not matter where those are.

    Attributes:
        total: of them all.
        which: of them are here.
        slot: of the first of all, as Member.slot.

    """

    total: int
    which: tuple[int, ...]
    slot: int


def leading_vectors(G_Kmn: Tensor, rank: int, seed: int, drawn: Drawn | None = None) -> Tensor:
    """U `[K, m, r]`, orthonormal, by a randomised range finder with power iterations.

    Args:
        G_Kmn: gradients, m <= n.
        rank: r, at most m.
        seed: of the random probe; equal seeds give equal subspaces.
        drawn: of how many matrices these are which, where others of the same draw are in other processes.

    """
    G_Kmn = G_Kmn.to(torch.promote_types(G_Kmn.dtype, torch.float32))
    K, m, n = G_Kmn.shape
    q = min(rank + OVERSAMPLING, m)
    generator = torch.Generator(G_Kmn.device).manual_seed(seed)
    all_K = K if drawn is None else drawn.total
    probe_Knq = torch.randn(all_K, n, q, dtype=G_Kmn.dtype, device=G_Kmn.device, generator=generator)
    probe_Knq = probe_Knq if drawn is None else probe_Knq[list(drawn.which)]
    Q_Kmq = torch.linalg.qr(torch.bmm(G_Kmn, probe_Knq))[0]
    for _ in range(POWER_ITERATIONS):
        Z_Knq = torch.linalg.qr(torch.bmm(G_Kmn.mT, Q_Kmq))[0]
        Q_Kmq = torch.linalg.qr(torch.bmm(G_Kmn, Z_Knq))[0]
    B_Kqn = torch.bmm(Q_Kmq.mT, G_Kmn)
    # Eigenvalues come in ascending order; the vectors of B B' are the left singular ones of B.
    vectors_Kqq = torch.linalg.eigh(torch.bmm(B_Kqn, B_Kqn.mT))[1]
    return torch.bmm(Q_Kmq, vectors_Kqq.flip(-1)[..., :rank])


def energy(U_Kmr: Tensor, G_Kmn: Tensor) -> Tensor:
    """ρ = |U'G|² / |G|² per matrix: the share of a gradient within a subspace; 0 for a gradient of zeros."""
    inside = torch.bmm(U_Kmr.to(G_Kmn.dtype).mT, G_Kmn).square().sum((-2, -1))
    total = G_Kmn.square().sum((-2, -1))
    return inside / total.clamp(min=1e-38)


def alive(G_Kmn: Tensor) -> Tensor:
    """Which matrices are not all zeros, `[K]`; zeros have no leading vectors."""
    return (G_Kmn != 0).flatten(1).any(1)


def chosen(indices: Iterable[int], like_K: Tensor) -> Tensor:
    """Mask `[K]` of some matrices, where `like_K` is."""
    mask_K = torch.zeros(like_K.shape[0], dtype=torch.bool)
    mask_K[list(indices)] = True
    return mask_K.to(like_K.device)


def overlap(new_Kmr: Tensor, old_Kmr: Tensor) -> Tensor:
    """|U_new' U_old|² / r per matrix: 1 for the same subspace, about r / m for unrelated ones."""
    return torch.bmm(new_Kmr.mT, old_Kmr.to(new_Kmr.dtype)).square().sum((-2, -1)) / new_Kmr.shape[-1]


def saves(rank: int, rows: int, columns: int) -> bool:
    """Whether r (m + n) values are fewer than the m n that they replace."""
    return rank * (rows + columns) < rows * columns
