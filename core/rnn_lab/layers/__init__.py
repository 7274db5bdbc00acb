"""Layer shapes that families share: a model file adds only what is its own."""

from rnn_lab.layers.matrix_state import MatrixStateConfig, MatrixStateLayer, normalise, retrieve, write
from rnn_lab.layers.plain import PlainLayer
from rnn_lab.layers.projected import ProjectedConfig, ProjectedLayer, TwoBranchLayer, self_gate

__all__ = [
    "MatrixStateConfig",
    "MatrixStateLayer",
    "PlainLayer",
    "ProjectedConfig",
    "ProjectedLayer",
    "TwoBranchLayer",
    "normalise",
    "retrieve",
    "self_gate",
    "write",
]
