"""x -> in_proj -> [causal conv] -> SiLU -> recurrence of width d -> gate -> out_proj: the shell of the E-models.

The time-parallel part (`inputs`) and the one-step update are apart, so that the loop, a scan, a fused kernel and
generation all come from the same two definitions.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rnn_lab.kernels.expression import NotElementwise, trace
from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams
from rnn_lab.layer import Layer, LayerConfig, SearchSpace, State
from rnn_lab.parts import CausalConv, Conv, Dense, Part, pieces


def widen(x: Tensor) -> Tensor:
    """X in the dtype of a state: fp32, or fp64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gate(logits: Tensor) -> Tensor:
    """Sigmoid in fp32 or wider: in bf16 a leak above 0.998 would be 1, and what it holds would never fade."""
    return torch.sigmoid(widen(logits))


def self_gate(o: Tensor) -> Tensor:
    """o * silu(o): the output gate of E42, E61-E75. Never negative."""
    return o * F.silu(o)


class ExpandedConfig(LayerConfig):
    """Fields of every layer whose state has another width than the model."""

    expansion: float = Field(1.0, gt=0, le=64, description="inner width d = int(dim * expansion)")

    @model_validator(mode="after")
    def _has_channels(self) -> Self:
        if not self.d_inner:
            raise ValueError(f"expansion = {self.expansion} of dim = {self.dim} leaves no inner channel")
        return self

    @property
    def d_inner(self) -> int:
        """Inner width d."""
        return int(self.dim * self.expansion)


class ProjectedConfig(ExpandedConfig):
    """Fields of every layer with an input and an output projection."""

    use_conv: bool = Field(False, description="causal convolution of 4 taps before the cell")


class ProjectedLayer(Layer):
    """Shell with one branch and the family's self-gate; subclasses give `inputs` and `update`."""

    Config = ProjectedConfig
    branches: ClassVar[int] = 1
    in_proj: nn.Linear
    out_proj: nn.Linear
    conv: CausalConv

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._cell = self.cell()
        self._gated = self._with_output(self._cell)

    @classmethod
    def parts(cls, cfg: Any) -> dict[str, Part]:
        """in_proj, optional conv, the cell's own parts, out_proj."""
        d = cfg.d_inner
        shell: dict[str, Part] = {"in_proj": Dense(cfg.dim, cls.branches * d, stacked=cls.branches * (d,))}
        if cfg.use_conv:
            shell["conv"] = Conv(d)
        return shell | cls.cell_parts(cfg) | {"out_proj": Dense(cls.d_read(cfg), cfg.dim)}

    @classmethod
    @abstractmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """Parts of the cell between the projections."""

    @classmethod
    def d_read(cls, cfg: Any) -> int:
        """Width of the read-out that out_proj takes."""
        return int(cfg.d_inner)

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """Shape of the recurrent state of one sequence."""
        return (cfg.d_inner,)

    @classmethod
    def state_shapes(cls, cfg: Any, seq_len: int = 0) -> dict[str, tuple[int, ...]]:
        """`h` and, with a convolution, its past inputs."""
        return {"h": cls.hidden_shape(cfg)} | ({"conv": (3, cfg.d_inner)} if cfg.use_conv else {})

    @classmethod
    def search_space(cls, cfg: Any) -> SearchSpace:
        """Expansion may be 1, 1.5 or 2, the model's own default first."""
        preferred = cls.Config.model_fields["expansion"].default
        return SearchSpace(choices={"expansion": tuple(sorted((1.0, 1.5, 2.0), key=lambda e: (e != preferred, e)))})

    @classmethod
    def has_silu(cls, cfg: Any) -> bool:
        """Whether SiLU stands between projection, or convolution, and cell."""
        return True

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """Everything the cell needs that does not depend on the state, for all T at once; overridden by a cell."""
        raise NotImplementedError

    def biases(self) -> tuple[Tensor, ...]:
        """Tensors without a time axis for `before`."""
        return ()

    def weights(self) -> tuple[Tensor, ...]:
        """Tensors without a time axis for `update`."""
        return ()

    def streams(self, x_BTd: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """`inputs`, and what `read` takes besides the state; overridden where a read-out has queries."""
        return self.inputs(x_BTd), ()

    def cell(self) -> Cell:
        """The step of the recurrence: the static methods `update` and, where they exist, `before` and `read`."""
        return Cell(self.update, getattr(self, "read", None), getattr(self, "before", None))

    @staticmethod
    def update(h: Tensor, *args: Tensor) -> Tensor:
        """Next state from the last one, the inputs of this step and `weights`; overridden by every cell."""
        raise NotImplementedError

    def output(self, o_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor | None) -> Tensor:
        """Gate on the read-out, before out_proj."""
        return self_gate(o_BTd)

    def _with_output(self, cell: Cell) -> Cell | None:
        """The cell with `output` in it, where that is an element-wise function of read-out and gate branch."""
        if type(self).run_cell is not ProjectedLayer.run_cell:
            return None

        def after(o: Tensor, *z: Tensor) -> Tensor:
            return self.output(o, cast(Tensor, None), *z or (None,))

        try:
            trace(after, "o", *["z"][: self.branches - 1])
        except NotElementwise:
            return None
        return replace(cell, after=after)

    def run_cell(self, x_BTd: Tensor, h: Tensor, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The recurrence alone, between activation and gate: read-outs `[B, T, ...]` and the last state."""
        return self._run(self._cell, x_BTd, h, reset_BT)

    def _run(
        self, cell: Cell, x_BTd: Tensor, h: Tensor, reset_BT: Tensor | None, *gates: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, queries = self.streams(x_BTd)
        streams = Streams(inputs, self.weights(), queries, self.biases(), gates)
        y_BTd, h = RECURRENCE(self.backends, cell, h, streams, reset_BT)
        return y_BTd, h

    def forward(
        self, x_BTD: Tensor, state: State | None = None, reset_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See Layer.forward."""
        state = self.init_state(x_BTD.shape[0]) if state is None else state
        x_BTd, *rest = pieces(self.in_proj(x_BTD), self.branches)
        new: State = {}
        silu = self.has_silu(self.cfg)
        if self.cfg.use_conv:
            x_BTd, new["conv"] = self.conv(x_BTd, state["conv"], reset_BT, silu=silu)
        elif silu:
            x_BTd = F.silu(x_BTd)
        if self._gated is not None:
            y_BTd, new["h"] = self._run(self._gated, x_BTd, state["h"], reset_BT, *rest)
        else:
            o_BTd, new["h"] = self.run_cell(x_BTd, state["h"], reset_BT)
            y_BTd = self.output(o_BTd, x_BTd, rest[0] if rest else None)
        return self.out_proj(y_BTd.to(x_BTd.dtype)), new


class TwoBranchLayer(ProjectedLayer):
    """Shell whose projection also makes a gate branch z: y = out_proj(h * silu(z))."""

    branches = 2

    def output(self, o_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor | None) -> Tensor:
        """o * silu(z)."""
        assert z_BTd is not None
        return o_BTd * F.silu(z_BTd)
