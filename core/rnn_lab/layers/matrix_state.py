"""Layers whose state is a square matrix per sequence (or per block): S_t from S_{t-1}, keys and values.

Orientation: row i of S belongs to value i, column j to key j; S is read as S q and written as v k'.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rnn_lab.layers.projected import ProjectedConfig, ProjectedLayer


def normalise(k: Tensor, eps: float = 1e-6) -> Tensor:
    """K / (|k| + eps) over the last axis."""
    length: Tensor = torch.linalg.vector_norm(k, dim=-1, keepdim=True)
    return k / (length + eps)


def retrieve(S: Tensor, k: Tensor) -> Tensor:
    """S k for `[..., i, j]` and `[..., j]`."""
    return (S @ k.unsqueeze(-1)).squeeze(-1)


def write(S: Tensor, v: Tensor, k: Tensor) -> Tensor:
    """S + v k' as one batched rank-one product."""
    rows, columns = S.shape[-2:]
    flat = torch.baddbmm(S.reshape(-1, rows, columns), v.reshape(-1, rows, 1), k.reshape(-1, 1, columns))
    return flat.view_as(S)


class MatrixStateConfig(ProjectedConfig):
    """Fields of every layer with a square matrix state."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")
    n_state: int = Field(32, ge=1, le=4096, description="side n of the square state")


class MatrixStateLayer(ProjectedLayer):
    """Projected shell around a state `[B, n, n]`; the read-out has width n."""

    Config = MatrixStateConfig

    @classmethod
    def d_read(cls, cfg: Any) -> int:
        """N."""
        return int(cfg.n_state)

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """(n, n)."""
        return (cfg.n_state, cfg.n_state)
