"""What the docstrings of E2 and E3 say about their slots."""

from typing import Any

import pytest
import torch
from rnn_lab.layer import Layer
from rnn_lab.registry import registry
from torch import Tensor


def build(name: str, **fields: Any) -> Layer:
    torch.manual_seed(5)
    model = registry().models[name].load()
    return model(model.Config(dim=16, **fields)).double()


def inputs() -> Tensor:
    return torch.randn(2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_e2_from_zero_is_e1_with_its_output_scaled() -> None:
    e2, e1 = build("e2", n_slots=3), build("e1", constraint="none")
    with torch.no_grad():
        e2.get_parameter("C").copy_(torch.tensor([0.5, -0.1, 0.8]))
    e1.load_state_dict({name: t for name, t in e2.state_dict().items() if name in e1.state_dict()})
    x_BTD = inputs()
    torch.testing.assert_close(e2(x_BTD)[0], 1.2 * e1(x_BTD)[0])


@pytest.mark.parametrize(
    ("name", "form", "separate"),
    [
        ("e2", "full", False),
        ("e2", "diagonal", False),
        ("e3", "diagonal", False),
        ("e3", "low_rank", True),
    ],
)
def test_slots_separate_in_the_low_rank_form_only(name: str, form: str, separate: bool) -> None:
    layer, x_BTD = build(name, form=form, n_slots=3), inputs()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(5):
        layer.prepare()
        optimizer.zero_grad()
        y_BTD, state = layer(x_BTD)
        (y_BTD - x_BTD).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    spread = (state["h"] - state["h"].mean(1, keepdim=True)).abs().max().item()
    assert spread > 1e-3 if separate else spread < 1e-12
