"""in_proj -> recurrence -> out_proj without activation or gate: the shell of textbook cells such as GRU and LSTM."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rnn_lab.init import constant, normal
from rnn_lab.layers.projected import ProjectedLayer
from rnn_lab.parts import Dense, Part


class PlainLayer(ProjectedLayer):
    """Linear projections N(0, 0.02) in and zeros out, so that a layer starts as the identity of its residual."""

    lm_defaults: ClassVar[Mapping[str, Any]] = {"norm": "layer"}

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """The shell's parts with this shell's initial values."""
        return super().parts(cfg) | {
            "in_proj": Dense(cfg.dim, cfg.d_inner, init=normal(0.02)),
            "out_proj": Dense(cfg.d_inner, cfg.dim, init=constant(0.0)),
        }

    @classmethod
    def has_silu(cls, cfg: Any) -> bool:
        """No."""
        return False

    def output(self, o_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor | None) -> Tensor:
        """The read-out itself."""
        return o_BTd
