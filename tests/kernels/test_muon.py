"""The kernels of Muon's momentum against plain torch: values, codes, a skipped step."""

import pytest
import torch
from rnn_lab.optim.batch import Member, Signals
from rnn_lab.optim.muon import MuonBatch, MuonRule, advance
from rnn_lab.optim.quantise import Blockwise
from rnn_lab.optim.routing import Piece
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def signals(scale=0.7, skipped=False):
    flag = torch.tensor(skipped, device=DEVICE)
    double = (~flag).double()
    return Signals(torch.tensor(scale, dtype=torch.float64, device=DEVICE), flag, double, 0.01 * double)


def made(codec, shape):
    torch.manual_seed(0)
    rule = MuonRule(codec=codec, product_dtype=torch.float32)
    members = [Member(nn.Parameter(torch.randn(shape, device=DEVICE)), Piece(0, 1, *shape), 0) for _ in range(2)]
    batch = MuonBatch(members, rule)
    batch.fused = True
    return batch


@pytest.mark.parametrize("codec", [None, Blockwise(256), Blockwise(100)], ids=["plain", "blocks", "odd-blocks"])
@pytest.mark.parametrize("shape", [(64, 66), (70, 64)])
def test_one_pass_is_plain_torch(codec, shape):
    """Wide matrices and tall ones, whose gradients lie transposed; one that has no gradient in a step."""
    batch, other = made(codec, shape), made(codec, shape)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for i, (one, two) in enumerate(zip(batch.members, other.members, strict=True)):
            grad = None if step == i else torch.randn(shape, generator=generator).to(DEVICE)
            one.parameter.grad = two.parameter.grad = grad
        now = signals()
        u = batch._advance_fused(now)
        m = other.momentum.read()
        expected = advance(m, other.gradients(now), 0.95, now)
        other.momentum.write(m, now.skipped)
        torch.testing.assert_close(u, expected, rtol=1e-5, atol=1e-5)
        assert (batch.momentum.read() - m).abs().max() <= m.abs().max() * (1e-6 if codec is None else 1 / 250)
        if codec is not None:
            ours, theirs = batch.momentum.codes, other.momentum.codes
            assert (ours.int() - theirs.int()).abs().max() <= 1 and (ours != theirs).float().mean() < 1e-3
            torch.testing.assert_close(batch.momentum.scales, other.momentum.scales, rtol=1e-6, atol=0)


@pytest.mark.parametrize("codec", [None, Blockwise(256)], ids=["plain", "coded"])
def test_a_skipped_pass_writes_nothing(codec):
    batch = made(codec, (64, 66))
    for member in batch.members:
        member.parameter.grad = torch.randn_like(member.parameter)
    batch.step(signals(), 0.1)
    before = [t.clone() for t in batch.tensors.values()]
    weights = [member.parameter.detach().clone() for member in batch.members]
    for member in batch.members:
        member.parameter.grad.fill_(torch.nan)
    batch.step(signals(torch.nan, skipped=True), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, batch.tensors.values(), strict=True))
    assert all(torch.equal(a, m.parameter) for a, m in zip(weights, batch.members, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [Piece(0, 1, 40, 70), Piece(40, 1, 66, 70), Piece(0, 1, 106, 70)])
def test_a_step_is_applied_to_rows_wide_and_tall(dtype, piece):
    torch.manual_seed(0)
    first = torch.randn(106, 70, device=DEVICE).to(dtype)
    weights = [first.clone(), first.clone()]
    step = torch.randn(piece.shape, device=DEVICE).to(torch.bfloat16)
    for weight, fused in zip(weights, (True, False), strict=True):
        parameter = nn.Parameter(weight)
        parameter.grad = torch.zeros_like(parameter)
        batch = MuonBatch([Member(parameter, piece, 0)], MuonRule())
        batch.fused_apply = fused
        batch.apply(step, signals(), 0.1, 1.5)
    exact = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(weights[0], weights[1], **exact)
    untouched = torch.ones(106, dtype=torch.bool)
    untouched[piece.start : piece.start + piece.rows] = False
    assert torch.equal(weights[0][untouched], weights[1][untouched])
