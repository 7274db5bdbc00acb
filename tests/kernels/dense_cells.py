"""Calls of every cell whose state meets itself through matrices, for tests of kernels.dense."""

import torch
from rnn_lab.kernels.recurrence import Cell, Streams
from rnn_lab.layers import self_gate
from rnn_lab_baselines import gru, lstm
from rnn_lab_e0_e5 import _elman, e2, e3
from rnn_lab_e61_e68 import e63, e66, e67
from torch.nn import functional as F


def gated(o, z):
    return o * F.silu(z)


def rates(h, u, a, W, tau, b):
    """What no model of ours does: products of a function of the state, a weight of one number, another notation."""
    return torch.lerp(h, F.linear(torch.tanh(h), W, b) + u, torch.sigmoid(a + tau))


def divided(h, u, a, W):
    """Not a number where inputs are zeros."""
    return torch.tanh(F.linear(h, W) + u / torch.sqrt(u * u + a * a))


def partly(h, u, W, b):
    """Half of its input and of its bias are used."""
    return torch.tanh(F.linear(h, W) + u.chunk(2, -1)[0] + b.chunk(2, -1)[1])


def per_head(h, u, W):
    """A matrix and a bias for each head, as FlashRNN has them."""
    return torch.tanh(torch.bmm(h.transpose(0, 1), W).transpose(0, 1) + u)


def side_by_side(s, u, W):
    """A state of two parts in one axis, of which the first is exchanged; both are seen."""
    h, c = s.chunk(2, -1)
    f, g = (F.linear(h, W) + u).split([c.shape[-1], c.shape[-1]], -1)
    c = torch.sigmoid(f) * c + (1 - torch.sigmoid(f)) * torch.tanh(g)
    return torch.cat([torch.tanh(c), c], -1)


LEAK = e63.Model.before
# Cell, pieces of inputs, weights, pieces of biases and of gates, state. Weights: square matrices on top of each other,
# factors of rank r, `b` for a bias of so many pieces, `1` for one number; with h, one for each head.
CELLS = {
    "e0": (Cell(_elman.dense), [1], ["1d"], [], [], "d"),
    "e1": (Cell(_elman.dense, after=gated), [1], ["1d"], [], [1], "d"),
    "e2": (Cell(e2.full), ["slot"], ["1d"], [], [], "hd"),
    "e3": (Cell(e3.low_rank), ["slot"], ["hdr", "hrd"], [], [], "hd"),
    "e4": (Cell(_elman.low_rank, after=gated), [1], ["dr", "rd"], [], [1], "d"),
    "e63": (Cell(e63.complementary, None, LEAK, self_gate), [1, 1], ["1d"], [1, 1], [], "d"),
    "e63b": (Cell(e63.independent, None, e63.two_gates, self_gate), [1, 1, 1], ["1d"], [1, 1, 1], [], "d"),
    "e63c": (Cell(e63.h_dependent, None, e63.side_by_side, self_gate), [1, 1, 1], ["3d"], [1, 1, 1], [], "d"),
    "e63d": (Cell(e63.residual, None, LEAK, self_gate), [1, 1], ["1d"], [1, 1], [], "d"),
    "e66": (Cell(e66.Model.update, None, LEAK, self_gate), [1, 1], ["dr", "rd"], [1, 1], [], "d"),
    "e67": (Cell(e67.low_rank, None, e67.Model.before, self_gate), [1, 1], ["dr", "rd"], [1, 1], [], "d"),
    "gru": (Cell(gru.cudnn), [3], ["3d", "b3"], [], [], "d"),
    "lstm": (Cell(lstm.cudnn, lstm.read, lstm.before), [4], ["4d", "b4"], [4], [], "2d"),
    "lstm-one-bias": (Cell(lstm.one_bias, lstm.read, lstm.before), [3, 1], ["3d", "1d"], [3], [], "2d"),
    "rates": (Cell(rates, after=gated), [1, 1], ["1d", "1", "b1"], [], [1], "d"),
    "divided": (Cell(divided), [1, 1], ["1d"], [], [], "d"),
    "partly": (Cell(partly), [2], ["1d", "b2"], [], [], "d"),
    "heads": (Cell(per_head), ["head"], ["h1d"], [], [], "hd"),
    "both-parts": (Cell(side_by_side), [2], ["2d"], [], [], "side"),
    "lstm-states": (Cell(lstm.cudnn), [4], ["4d", "b4"], [], [], "2d"),
}  # fmt: skip
HEADS, RANK = 2, 24


def call(name, B, T, d, dtype=torch.bfloat16, reset=False, device="cpu"):
    """Arguments of the recurrence."""
    cell, inputs, weights, biases, gates, kind = CELLS[name]
    torch.manual_seed(0)
    lead = {"slot": (1, d), "head": (HEADS, d)}

    def stream(pieces):
        shape = lead[pieces] if pieces in lead else (pieces * d,)
        return torch.randn(B, T, *shape).to(device, dtype)

    def weight(which):
        if which == "1":
            return torch.tensor(0.3, device=device)
        if which[0] == "b":
            return (0.3 * torch.randn(int(which[1:]) * d)).to(device)
        sizes = {"1d": (d, d), "2d": (2 * d, d), "3d": (3 * d, d), "4d": (4 * d, d), "dr": (d, RANK), "rd": (RANK, d),
                 "hdr": (HEADS, d, RANK), "hrd": (HEADS, RANK, d), "h1d": (HEADS, d, d)}  # fmt: skip
        shape = sizes[which]
        return (0.7 * torch.randn(shape) / shape[-1] ** 0.5).to(device)

    shape = {"d": (d,), "hd": (HEADS, d), "2d": (2, d), "side": (2 * d,)}[kind]
    h = (0.3 * torch.randn(B, *shape)).to(device)
    vectors = tuple(weight(f"b{pieces}") for pieces in biases)
    streams = Streams(tuple(map(stream, inputs)), tuple(map(weight, weights)), (), vectors, tuple(map(stream, gates)))
    reset_BT = (torch.rand(B, T) < 0.2).to(device) if reset else None
    return cell, h, streams, reset_BT
