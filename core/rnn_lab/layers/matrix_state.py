"""Layers whose state is a matrix per sequence (or per head, or per block): S_t from S_{t-1}, keys and values.

Orientation: row i of S belongs to value i, column j to key j; S is read as S q and written as v k'.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rnn_lab.kernels.linear.rank_one import retrieve
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers.projected import ProjectedConfig, ProjectedLayer, widen
from rnn_lab.parts import Dense, Part, pieces, together

PROJECTIONS = {
    "full": ("W_k", "W_v", "W_q"),
    "no_z": ("W_k", "W_v", "W_q"),
    "tied_kq": ("W_k", "W_v"),
    "tied_kvq": ("W_k",),
}
"""Matrices that a sharing leaves; without W_v the key is the value too, without W_q the query."""


def normalise(k: Tensor, eps: float = 1e-6) -> Tensor:
    """K / (|k| + eps) over the last axis, in the dtype of the state: a bf16 key would not have length one."""
    k = widen(k)
    length: Tensor = torch.linalg.vector_norm(k, dim=-1, keepdim=True)
    return k / (length + eps)


def unit_key(k: Tensor, v: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
    """Keys to length one where S is retrieved and written; queries and tied values stay. To be a cell's `before`."""
    return normalise(k), v, *gates


class MatrixStateConfig(ProjectedConfig):
    """Fields of every layer with a square matrix state."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")
    n_state: int = Field(32, ge=1, le=4096, description="side n of the square state")


class MatrixStateLayer(ProjectedLayer):
    """Projected shell around a state `[B, n, n]`, or `[B, H, n, n]`, that is read as S q.

    `update(S, k, v, *gates, *weights)` is the model's own; every state of the H has its part of k, v and q.
    """

    Config: ClassVar[type[ProjectedConfig]] = MatrixStateConfig
    read = staticmethod(retrieve)
    W_k: nn.Linear
    W_v: nn.Linear
    W_q: nn.Linear

    @classmethod
    def d_read(cls, cfg: Any) -> int:
        """N."""
        return int(cfg.n_state)

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """(n, n)."""
        return (cfg.n_state, cfg.n_state)

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """W_k, W_v, W_q; to be extended by a cell."""
        sharing = getattr(cfg, "projection", "no_z")
        return {name: Dense(cfg.d_inner, cls.d_read(cfg)) for name in PROJECTIONS[sharing]}

    @classmethod
    def products(cls, cfg: Any) -> int:
        """Products of the size of S per step: retrieve, write, read."""
        return 3

    @classmethod
    def recurrence_flops(cls, cfg: Any, seq_len: int) -> int:
        """2 per entry of S and product."""
        return 2 * cls.products(cfg) * math.prod(cls.hidden_shape(cfg))

    def project(self, x_BTd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Key, value, query."""
        names = [name for name in ("W_k", "W_v", "W_q") if hasattr(self, name)]
        parts = pieces(together(x_BTd, *(getattr(self, name) for name in names)), len(names))
        found = dict(zip(names, parts, strict=True))
        k_BTn = found["W_k"]
        return k_BTn, found.get("W_v", k_BTn), found.get("W_q", k_BTn)

    def gates(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """What `update` takes per step besides key and value."""
        return ()

    def split(self, x_BTn: Tensor) -> Tensor:
        """`[B, T, H n]` -> `[B, T, H, n]` where the state has heads or blocks."""
        heads = self.hidden_shape(self.cfg)[:-2]
        return x_BTn.view(*x_BTn.shape[:-1], *heads, -1) if heads else x_BTn

    def streams(self, x_BTd: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Key, value and gates for `update`; the query for `read`."""
        k, v, q = (self.split(part) for part in self.project(x_BTd))
        gates = (self.split(gate) for gate in self.gates(x_BTd))
        return (k, v, *gates), (q,)

    def _run(
        self, cell: Cell, x_BTd: Tensor, h: Tensor, reset_BT: Tensor | None, *gates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read-outs of all heads side by side."""
        o_BTn, h = super()._run(cell, x_BTd, h, reset_BT, *gates)
        return o_BTn.flatten(2), h


class TiedConfig(MatrixStateConfig):
    """Fields of layers whose key, value and query may share matrices."""

    projection: Literal["no_z", "full", "tied_kq", "tied_kvq"] = Field("no_z", description="which matrices are shared")
    activation: Literal["silu", "none"] = Field("silu", description="between projection and cell; the seeds' had none")


class TiedLayer(MatrixStateLayer):
    """A MatrixStateLayer with `projection` and `activation`."""

    Config = TiedConfig

    @classmethod
    def has_silu(cls, cfg: Any) -> bool:
        """Unless switched off."""
        return bool(cfg.activation == "silu")
