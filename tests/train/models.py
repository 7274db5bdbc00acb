"""Small language models in fp64 whose parameters all matter, and windows of bytes."""

import torch
from rnn_lab.lm import LM, LMConfig
from rnn_lab.registry import registry
from rnn_lab.sections import ObjectiveSection
from rnn_lab.testing.subject import Subject
from rnn_lab.train.objective import Objective

NAMES = sorted(registry().models)


def model_of(name="e61", *, depth=2, seed=0, **fields) -> LM:
    ref, alias = registry().find_model(name)
    subject = Subject(ref, {**alias, **fields})
    cfg = subject.variants[0].cfg
    torch.manual_seed(seed)
    model = LM(subject.model, cfg, LMConfig(**{**subject.model.lm_defaults, "depth": depth}))
    with torch.no_grad():  # initial zeros, such as an output projection's, would hide what lies behind them
        for p in model.layers.parameters():
            p.add_(torch.randn(p.shape) * (0.3 / max(1, p.shape[-1] if p.dim() else 1) ** 0.5))
    model.prepare()
    return model.double()


def windows(B=4, T=12, ahead=1, seed=0):
    return torch.randint(97, 123, (B, T + ahead), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def carried(model):
    """Gradients of a loss that every part of a pass matters for: states before and behind it, documents that begin."""
    window = windows()
    reset = torch.zeros(4, 12, dtype=torch.bool)
    reset[1, 7] = reset[2, 0] = True
    states = model.loss(windows(seed=1))[1]
    states = [{key: t.detach() for key, t in state.items()} for state in states]
    loss, new = model.loss(window, states, reset)
    return gradients(model, loss + sum(t.double().square().sum() for s in new for t in s.values()))


def filtered(name, recurrent, walk):
    """Gradients under a token filter, by a walk through the layers."""
    model = model_of(name, depth=3)
    model.walk = walk
    made = Objective(ObjectiveSection(use_collider=True, collider_recurrent=recurrent))
    return gradients(model, made(model, windows(), None, None, filtering=True).objective)


def assert_equal(one, other, atol=0.0):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=0, atol=atol), (
            name, (one[name] - other[name]).abs().max()
        )  # fmt: skip
