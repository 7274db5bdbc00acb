"""Layer shapes that families share: a model file adds only what is its own."""

from rnn_lab.kernels.linear.rank_one import retrieve, write
from rnn_lab.layers.matrix_state import (
    MatrixStateConfig,
    MatrixStateLayer,
    TiedConfig,
    TiedLayer,
    normalise,
    unit_key,
)
from rnn_lab.layers.plain import PlainLayer
from rnn_lab.layers.projected import (
    ExpandedConfig,
    ProjectedConfig,
    ProjectedLayer,
    TwoBranchLayer,
    gate,
    self_gate,
    widen,
)

__all__ = [
    "ExpandedConfig",
    "MatrixStateConfig",
    "MatrixStateLayer",
    "PlainLayer",
    "ProjectedConfig",
    "ProjectedLayer",
    "TiedConfig",
    "TiedLayer",
    "TwoBranchLayer",
    "gate",
    "normalise",
    "retrieve",
    "self_gate",
    "unit_key",
    "widen",
    "write",
]
