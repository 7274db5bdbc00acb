"""c_t = f_t * c_{t-1} + i_t * g_t,  h_t = o_t * tanh(c_t)

Long short-term memory between bias-free projections, in a LayerNorm shell. The state is `[2, d]`: h and c.

    x~_BTd  = P_in x_BTD                              D = dim, d = int(dim * expansion)
    i, f, o = sigmoid(W x~ + b + U h + c)             gates, forget bias 1
    g       = tanh(W_g x~ + b_g + U_g h + c_g)        candidate
    y_BTD   = P_out h                                 P_out starts at zero

Forms: `cudnn`, two bias vectors (forget bias 1 in both), equal to torch.nn.LSTM; `one_bias`.

Parent      none: Hochreiter and Schmidhuber 1997.
Parameters  2*D*d + 8*d*d + 8*d per layer; 4*d fewer with one bias.
Aliases     cudalstm: form = one_bias
Source      elman baseline LSTM: D 384, d 768, depth 20, LayerNorm = 106,405,632 parameters.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from rnn_lab.init import Init, normal, orthogonal
from rnn_lab.kernels.recurrence import Cell
from rnn_lab.layers import PlainLayer, ProjectedConfig
from rnn_lab.parts import Dense, Part, Weight
from torch import Tensor, nn


class Config(ProjectedConfig):
    """Fields of `fit --model lstm`."""

    expansion: float = Field(2.0, gt=0, le=64, description="inner width d = int(dim * expansion)")
    form: Literal["cudnn", "one_bias"] = Field("cudnn", description="torch.nn.LSTM's two bias vectors, or one")


class Model(PlainLayer):
    """See the module docstring."""

    Config = Config
    W_ih: nn.Linear
    b_ih: nn.Parameter
    W_hh: nn.Parameter
    b_hh: nn.Parameter
    W_fio: nn.Linear
    b_fio: nn.Parameter
    U_fio: nn.Parameter
    W_c: nn.Linear
    U_c: nn.Parameter

    @classmethod
    def hidden_shape(cls, cfg: Any) -> tuple[int, ...]:
        """H and c."""
        return (2, cfg.d_inner)

    @classmethod
    def cell_parts(cls, cfg: Any) -> dict[str, Part]:
        """Gates packed [i; f; g; o] as torch does, or [f; i; o] and the candidate apart."""
        d = cfg.d_inner
        if cfg.form == "cudnn":
            return {
                "W_ih": Dense(d, 4 * d, init=orthogonal(), stacked=4 * (d,)),
                "b_ih": Weight((4 * d,), _one_in_block(1, 4)),
                "W_hh": Weight((4 * d, d), orthogonal(), flops=8 * d * d, stacked=4 * (d,)),
                "b_hh": Weight((4 * d,), _one_in_block(1, 4)),
            }
        return {
            "W_fio": Dense(d, 3 * d, init=normal(0.02), stacked=3 * (d,)),
            "b_fio": Weight((3 * d,), _one_in_block(0, 3)),
            "U_fio": Weight((3, d, d), orthogonal(), flops=6 * d * d),
            "W_c": Dense(d, d, bias=0.0, init=normal(0.02)),
            "U_c": Weight((d, d), orthogonal(), flops=2 * d * d),
        }

    def inputs(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        """Input side of all gates, without the bias that b_ih or b_fio is."""
        return (self.W_ih(x_BTd),) if self.cfg.form == "cudnn" else (self.W_fio(x_BTd), self.W_c(x_BTd))

    def biases(self) -> tuple[Tensor, ...]:
        """What `before` adds to the first input."""
        return (self.b_ih if self.cfg.form == "cudnn" else self.b_fio,)

    def weights(self) -> tuple[Tensor, ...]:
        """Recurrent side of all gates."""
        return (self.W_hh, self.b_hh) if self.cfg.form == "cudnn" else (self.U_fio.flatten(0, 1), self.U_c)

    def cell(self) -> Cell:
        """The update of the chosen form; read h."""
        return Cell(cudnn if self.cfg.form == "cudnn" else one_bias, read, before)


def before(*inputs_and_bias: Tensor) -> tuple[Tensor, ...]:
    """The first input with its bias, added in the dtype of the state."""
    u, *rest, b = inputs_and_bias
    return u + b, *rest


def cudnn(s: Tensor, u: Tensor, W_hh: Tensor, b_hh: Tensor) -> Tensor:
    """torch.nn.LSTM on the stacked state."""
    h, c = s.unbind(-2)
    i, f, g, o = (u + torch.addmm(b_hh, h, W_hh.T)).chunk(4, -1)
    return _next(c, f, i, o, g)


def one_bias(s: Tensor, u_fio: Tensor, u_c: Tensor, U_fio: Tensor, U_c: Tensor) -> Tensor:
    """The same equations with gates packed [f; i; o]."""
    h, c = s.unbind(-2)
    f, i, o = torch.addmm(u_fio, h, U_fio.T).chunk(3, -1)
    return _next(c, f, i, o, torch.addmm(u_c, h, U_c.T))


def _next(c: Tensor, f: Tensor, i: Tensor, o: Tensor, g: Tensor) -> Tensor:
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.stack([torch.sigmoid(o) * torch.tanh(c), c], -2)


def read(s: Tensor) -> Tensor:
    """H of the stacked state."""
    return s[..., 0, :]


def _one_in_block(block: int, blocks: int) -> Init:
    """Zeros but for ones in one of `blocks` equal parts: the forget bias."""

    def fill(b: Tensor) -> None:
        b.zero_()
        b.chunk(blocks)[block].fill_(1.0)

    return fill
