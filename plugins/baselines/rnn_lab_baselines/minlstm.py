"""h_t = f'_t * h_{t-1} + i'_t * g(c_t),  f' = f / (f + i),  i' = i / (f + i)

Minimal LSTM: forget and input gate come from the input alone and are scaled to sum to one, so the recurrence is
linear and can run in parallel over time. In a LayerNorm shell.

    [c; f~; i~]_BT = P_in x_BTD              D = dim, d = int(dim * expansion), state h `[d]`
    f, i           = sigmoid(f~), sigmoid(i~)
    g(u)           = u + 1/2 for u >= 0, sigmoid(u) below: keeps a state that starts positive positive
    y_BTD          = P_out h, or h itself with expansion 1

The source runs this as a scan over logarithms, where a carried state enters as log g(h): its second chunk starts
from g(h) instead of h, and differs from the same steps in one pass. Here h itself is carried; to start as the
source does, hand in `positive(h)`.

Parent      lstm: no state inside the gates, no output gate, one state; Feng et al., arXiv 2410.01201.
Parameters  3*D*d per layer, and d*D unless the expansion is 1.
Source      elman size search, best minLSTM: D 1792, depth 31, LayerNorm = 299,220,992 parameters.
"""

import torch
from rnn_lab.layers import ExpandedConfig
from torch import Tensor
from torch.nn import functional as F

from rnn_lab_baselines._min_rnn import MinRNN, positive


class Config(ExpandedConfig):
    """Fields of `fit --model minlstm`."""


class Model(MinRNN):
    """See the module docstring."""

    Config = Config
    streams = 3

    @staticmethod
    def gates(*streams_BTd: Tensor) -> tuple[Tensor, Tensor]:
        """f' and i' g(c)."""
        c_BTd, f_BTd, i_BTd = streams_BTd
        # f' = sigmoid(log f - log i): never 0 / 0, however small both gates are.
        odds_BTd = F.logsigmoid(f_BTd) - F.logsigmoid(i_BTd)
        return torch.sigmoid(odds_BTd), torch.sigmoid(-odds_BTd) * positive(c_BTd)
