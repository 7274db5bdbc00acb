"""h_t = (1 - z_t) * h_{t-1} + z_t * g(c_t)

Minimal gated recurrent unit: gate and candidate come from the input alone, so the recurrence is linear and can run
in parallel over time. In a LayerNorm shell.

    [c; z~]_BT = P_in x_BTD                  D = dim, d = int(dim * expansion), state h `[d]`
    z_BTd      = sigmoid(z~)
    g(u)       = u + 1/2 for u >= 0, sigmoid(u) below: keeps a state that starts positive positive
    y_BTD      = P_out h, or h itself with expansion 1

The source runs this as a scan over logarithms. A carried state enters there by its logarithm, so it is this
recurrence for every state that can occur.

Parent      gru: no reset gate, and no state inside gate and candidate; Feng et al., arXiv 2410.01201.
Parameters  2*D*d per layer, and d*D unless the expansion is 1.
Source      elman size search, best minGRU: D 2944, depth 14, LayerNorm = 243,521,792 parameters.
"""

import torch
from rnn_lab.layers import ExpandedConfig
from torch import Tensor

from rnn_lab_baselines._min_rnn import MinRNN, positive


class Config(ExpandedConfig):
    """Fields of `fit --model mingru`."""


class Model(MinRNN):
    """See the module docstring."""

    Config = Config
    streams = 2

    @staticmethod
    def gates(*streams_BTd: Tensor) -> tuple[Tensor, Tensor]:
        """1 - z and z g(c)."""
        c_BTd, z_BTd = streams_BTd
        return torch.sigmoid(-z_BTd), torch.sigmoid(z_BTd) * positive(c_BTd)
