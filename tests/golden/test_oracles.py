"""Our layers against numpy loops, finite differences, and torch's own GRU and LSTM."""

from typing import Any

import numpy as np
import pytest
import torch
from rnn_lab.layer import Layer
from rnn_lab.registry import registry
from torch import Tensor, nn

from . import oracles, oracles_memory
from .oracles import Array, Oracle, power_iteration

B, T, D = 2, 6, 6
CASES: list[tuple[str, Oracle, dict[str, Any]]] = [
    *[("e0", oracles.e0, {"constraint": c}) for c in ("none", "spectral", "orthogonal")],
    ("e0", oracles.e0, {"constraint": "none", "use_conv": True}),
    *[("e1", oracles.e1, {"constraint": c}) for c in ("none", "spectral")],
    ("e1", oracles.e1, {"constraint": "none", "use_conv": True}),
    *[("e61", oracles.e61, {"form": f}) for f in ("convex", "additive", "tied")],
    ("e61", oracles.e61, {"tanh": True, "use_conv": True}),
    *[("e68", oracles.e68, {"form": f}) for f in ("standard", "inverse")],
    ("e74", oracles.e74, {"n_state": 4}),
    ("e74", oracles.e74, {"n_state": 4, "projection": "full"}),
    ("e74", oracles.e74, {"n_state": 4, "update": "simple"}),
    ("e74", oracles_memory.e74_low_rank, {"n_state": 4, "state": "low_rank", "rank": 3}),
    ("e74", oracles_memory.e74_low_rank, {"n_state": 4, "state": "low_rank", "rank": 3, "nonlinearity": "linear"}),
    *[("e63m", oracles_memory.e63m, {"n_slots": 4, "form": f}) for f in ("full", "lite", "rnn")],
    *[("e75", oracles_memory.e75, {"n_state": 4, "n_heads": 3, "nonlinearity": f}) for f in ("tanh", "linear")],
    ("e88", oracles.e88, {"n_state": 4, "n_heads": 3, "gate": "silu", "output_norm": True}),
]
IDS = [f"{name}-{'-'.join(str(v) for v in fields.values())}" for name, _, fields in CASES]


def build(name: str, fields: dict[str, Any]) -> Layer:
    """A layer in fp64 whose parameters are all random, so that no bias or gate hides at its start value."""
    torch.manual_seed(3)
    cls = registry().models[name].load()
    options = {"expansion": 1.5} | fields if name != "e88" else fields
    layer = cls(cls.Config(dim=D, **options)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    layer.prepare()
    return layer


def arrays(layer: Layer) -> dict[str, Array]:
    return {name: tensor.detach().numpy() for name, tensor in layer.state_dict().items()}


def inputs(layer: Layer) -> tuple[Tensor, dict[str, Tensor], str]:
    """Input, a random main state beside zero convolution inputs, and the main state's name."""
    generator = torch.Generator().manual_seed(5)
    x_BTD = torch.randn(B, T, D, dtype=torch.float64, generator=generator)
    state = layer.init_state(B)
    key = next(iter(state))
    state[key] = torch.randn(state[key].shape, dtype=torch.float64, generator=generator)
    return x_BTD, state, key


def close(got: Tensor | Array, wanted: Array, limit: float = 1e-12) -> None:
    got = got.detach().numpy() if isinstance(got, Tensor) else got
    assert got.shape == wanted.shape
    assert np.sqrt(np.mean((got - wanted) ** 2)) < limit * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize(("name", "oracle", "fields"), CASES, ids=IDS)
def test_forward_is_the_plain_loop(name: str, oracle: Oracle, fields: dict[str, Any]) -> None:
    layer = build(name, fields)
    x_BTD, state, key = inputs(layer)
    y_BTD, last = layer(x_BTD, state)
    for b in range(B):
        wanted, final = oracle(arrays(layer), x_BTD[b].numpy(), state[key][b].numpy().copy(), layer.cfg.model_dump())
        close(y_BTD[b], wanted)
        close(last[key][b], final)


def test_power_iteration_is_three_rounds() -> None:
    layer = build("e0", {"constraint": "spectral"})
    u = layer.get_buffer("W_h.u").numpy().copy()
    layer.prepare()
    wanted_u, wanted_v = power_iteration(layer.get_parameter("W_h.weight").detach().numpy(), u)
    close(layer.get_buffer("W_h.u"), wanted_u)
    close(layer.get_buffer("W_h.v"), wanted_v)


@pytest.mark.parametrize(
    ("name", "oracle", "fields"),
    [CASES[IDS.index(i)] for i in ("e1-spectral", "e68-standard", "e68-inverse", "e74-4-full")] + [CASES[-1]],
    ids=["e1", "e68", "e68i", "e74", "e88"],
)
def test_gradients_are_the_oracle_s_finite_differences(name: str, oracle: Oracle, fields: dict[str, Any]) -> None:
    layer = build(name, fields)
    x_BTD, state, key = inputs(layer)
    x_TD, first = x_BTD[0].numpy().copy(), state[key][0].numpy().copy()
    dy, dlast = (
        np.cos(np.arange(x_TD.size).reshape(x_TD.shape)),
        np.sin(np.arange(first.size)).reshape(first.shape),
    )
    p = {key_: value.copy() for key_, value in arrays(layer).items()}

    def loss() -> float:
        y, last = oracle(p, x_TD, first, layer.cfg.model_dump())
        return float(np.sum(y * dy) + np.sum(last * dlast))

    leaves = {"x": x_BTD[:1].clone().requires_grad_(), "h": state[key][:1].clone().requires_grad_()}
    y_BTD, last = layer(leaves["x"], {k: v[:1] for k, v in state.items()} | {key: leaves["h"]})
    ours = (y_BTD[0] * torch.tensor(dy)).sum() + (last[key][0] * torch.tensor(dlast)).sum()
    ours.backward()
    tensors = {"x": (x_TD, leaves["x"].grad), "h": (first, leaves["h"].grad)}
    tensors |= {n: (p[n], parameter.grad) for n, parameter in layer.named_parameters()}
    rng = np.random.default_rng(0)
    for label, (values, grad) in tensors.items():
        assert grad is not None, label
        flat, got = values.reshape(-1), grad.reshape(-1).numpy()
        scale = max(1e-2, float(np.abs(got).max()))
        for i in rng.choice(flat.size, min(4, flat.size), replace=False):
            assert abs(_slope(loss, flat, int(i)) - got[i]) < 1e-6 * scale, label


def _slope(loss: Any, flat: Array, i: int, step: float = 1e-4) -> float:
    """Central difference of fourth order."""
    start, values = flat[i], {}
    for k in (-2, -1, 1, 2):
        flat[i] = start + k * step
        values[k] = loss()
    flat[i] = start
    return float((8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step))


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_cudnn_form_is_torch_s_own_module(name: str) -> None:
    layer = build(name, {"form": "cudnn", "expansion": 1.0})
    module: Any = {"gru": nn.GRU, "lstm": nn.LSTM}[name](D, D, batch_first=True, dtype=torch.float64)
    bias = "b_ih" if name == "lstm" else "W_ih.bias"
    pairs = {"weight_ih_l0": "W_ih.weight", "weight_hh_l0": "W_hh", "bias_ih_l0": bias, "bias_hh_l0": "b_hh"}
    with torch.no_grad():
        for theirs, ours in pairs.items():
            module.get_parameter(theirs).copy_(layer.get_parameter(ours))
    x_BTD, state, _ = inputs(layer)
    leaves = [x_BTD.clone().requires_grad_(), state["h"].clone().requires_grad_()]
    start = leaves[1]
    args = start[None] if name == "gru" else (start[None, :, 0], start[None, :, 1])
    wanted, final = module(leaves[0], args)
    final = final[0] if name == "gru" else torch.stack([final[0][0], final[1][0]], 1)
    got, last = layer.run_cell(leaves[0], start)  # type: ignore[operator]
    close(got, wanted.detach().numpy())
    close(last, final.detach().numpy())
    dy, dlast = torch.randn_like(wanted), torch.randn_like(final)
    golden = torch.autograd.grad(
        (wanted * dy).sum() + (final * dlast).sum(), [*leaves, *map(module.get_parameter, pairs)]
    )
    grads = torch.autograd.grad(
        (got * dy).sum() + (last * dlast).sum(), [*leaves, *map(layer.get_parameter, pairs.values())]
    )
    for grad, reference in zip(grads, golden, strict=True):
        close(grad, reference.numpy())
