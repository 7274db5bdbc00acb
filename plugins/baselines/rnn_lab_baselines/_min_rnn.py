"""What minGRU and minLSTM share: one projection of everything, a linear element-wise recurrence, a positive state."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams
from rnn_lab.layer import Layer, SearchSpace, State
from rnn_lab.layers import ExpandedConfig
from rnn_lab.parts import Dense, Part
from torch import Tensor, nn


class MinRNN(Layer):
    """h = a h + u with a and u from the input alone; out_proj only where the expansion is not 1."""

    Config = ExpandedConfig
    lm_defaults: ClassVar[Mapping[str, Any]] = {"norm": "layer"}
    streams: ClassVar[int]
    """Projections of the input: the candidate and the gates."""
    in_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._cell = Cell(_update, before=self.gates, after=_itself)

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """All projections of the input in one matrix; out_proj."""
        d, n = cfg.d_inner, cls.streams
        parts: dict[str, Part] = {"in_proj": Dense(cfg.dim, n * d, stacked=n * (d,))}
        return parts if cfg.expansion == 1 else parts | {"out_proj": Dense(cfg.d_inner, cfg.dim)}

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """The state h itself, not its logarithm."""
        return {"h": (cfg.d_inner,)}

    @classmethod
    def search_space(cls, cfg: Any) -> SearchSpace:
        """Expansion 1, which needs no out_proj, before 1.5 and 2."""
        return SearchSpace(choices={"expansion": (1.0, 1.5, 2.0)})

    @staticmethod
    @abstractmethod
    def gates(*streams_BTd: Tensor) -> tuple[Tensor, Tensor]:
        """Decay a and what is written, u, from the candidate and the gates' pre-activations."""

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward."""
        state = self.init_state(x_BTD.shape[0]) if state is None else state
        streams = Streams(self.in_proj(x_BTD).chunk(self.streams, -1))
        h_BTd, h = RECURRENCE(self.backends, self._cell, state["h"], streams, reset_BT)
        return (h_BTd if self.cfg.expansion == 1 else self.out_proj(h_BTd)), {"h": h}


def positive(u: Tensor) -> Tensor:
    """g(u) = u + 1/2 for u >= 0, sigmoid(u) below: continuous and positive."""
    return torch.where(u >= 0, u + 0.5, torch.sigmoid(u))


def _itself(h: Tensor) -> Tensor:
    """The state is what leaves, in the dtype of the projections."""
    return h


def _update(h: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """a h + u."""
    return a * h + u
