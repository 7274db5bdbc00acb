"""Spectral constraints: the norm that they promise, and what autograd sees of them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rnn_lab.config import ModelSection
from rnn_lab.init import xavier
from rnn_lab.modelspec import model_spec
from rnn_lab.parts import Recurrent, RecurrentProduct
from rnn_lab.registry import registry
from rnn_lab.spectral import SpectralMatrix, prepare_together
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ROUNDS = 200


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def settled(module: nn.Module) -> nn.Module:
    """The module in double precision after the power iteration has converged."""
    module.double()
    for _ in range(ROUNDS):
        module.prepare()  # type: ignore[operator]
    return module


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), 2))


@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_rescaled_matrix_has_the_norm_exactly(gain: float) -> None:
    assert norm(settled(Recurrent(12, xavier(gain), "spectral", 0.99).build())()) == pytest.approx(0.99, abs=1e-6)


def test_clipped_matrix_is_untouched_below_the_bound() -> None:
    module = settled(Recurrent(12, xavier(0.1), "clip", 0.99).build())
    assert torch.equal(module(), module.get_parameter("weight"))


def test_clipped_matrix_stays_at_the_bound() -> None:
    module = settled(Recurrent(12, xavier(10.0), "clip", 0.99).build())
    assert norm(module()) == pytest.approx(0.99, abs=1e-6)


def test_a_clip_is_a_constant_for_autograd() -> None:
    module = Recurrent(12, xavier(10.0), "clip", 0.99).build().double()
    given = torch.randn(12, 12, dtype=torch.float64)
    (module() * given).sum().backward()
    grad = module.get_parameter("weight").grad
    assert grad is not None
    torch.testing.assert_close(grad, given * module.get_buffer("scale"))
    assert module.get_buffer("scale") < 1


@pytest.mark.parametrize("factor", [0.1, 3.0])
def test_product_has_the_norm_exactly_and_shares_the_factor(factor: float) -> None:
    module = settled(RecurrentProduct(12, 4, lambda w: nn.init.normal_(w, std=factor), 0.95).build())
    U, V = module()
    assert norm(U @ V) == pytest.approx(0.95, abs=1e-5)
    root = U / module.get_parameter("U")
    torch.testing.assert_close(root, root.mean().expand_as(root))
    torch.testing.assert_close(V / module.get_parameter("V"), root.mean().expand_as(V))


PARTS: dict[str, Callable[[], nn.Module]] = {
    "spectral": Recurrent(12, xavier(), "spectral").build,
    "clip": Recurrent(12, xavier(10.0), "clip").build,
    "product": RecurrentProduct(12, 4, xavier(), 0.95).build,
}


@pytest.mark.parametrize("part", PARTS)
def test_a_prepare_between_forward_and_backward_does_no_harm(part: str) -> None:
    module = PARTS[part]().double()
    out = module()
    loss = sum(m.square().sum() for m in (out if isinstance(out, tuple) else (out,)))
    parameters = list(module.parameters())
    wanted = torch.autograd.grad(loss, parameters, retain_graph=True)
    module.prepare()  # type: ignore[operator]
    for got, grad in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        assert torch.equal(got, grad)


@pytest.mark.parametrize("part", PARTS)
def test_a_restored_iteration_goes_on_exactly(part: str) -> None:
    module, other = PARTS[part](), PARTS[part]()
    other.load_state_dict(module.state_dict())
    for _ in range(2):
        module.prepare()  # type: ignore[operator]
        other.prepare()  # type: ignore[operator]
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("part", PARTS)
def test_equal_parts_advance_together_as_they_would_alone(part: str) -> None:
    alone = [PARTS[part]() for _ in range(3)]
    other = Recurrent(7, xavier(), "spectral").build()
    together = copy.deepcopy([*alone, other])
    for _ in range(2):
        for module in (*alone, other):
            module.prepare()  # type: ignore[operator]
        prepare_together([*together, nn.Linear(2, 2)])
    for module, twin in zip((*alone, other), together, strict=True):
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(twin.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_prepare_of_its_own_is_kept() -> None:
    class Counting(SpectralMatrix):
        calls = 0

        def prepare(self) -> None:
            super().prepare()
            self.calls += 1

    module = Counting(nn.Parameter(torch.randn(4, 4)), 0.9)
    prepare_together([module, Recurrent(4, xavier(), "spectral").build()])
    assert module.calls == 2


def test_a_model_advances_its_layers_in_a_few_operations() -> None:
    counts = []
    for depth in (2, 6):
        lm = model_spec(ModelSection(name="e1", depth=depth, fields={"dim": 16}), registry()).build()
        before = {name: t.clone() for name, t in lm.named_buffers()}
        with _Count() as count:
            lm.prepare()
        counts.append(count.operations)
        assert not any(torch.equal(t, before[name]) for name, t in lm.named_buffers() if name.endswith(".u"))
    assert counts[0] == counts[1]


class _Count(TorchDispatchMode):
    """Counts operations that compute something."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not func.is_view and func is not torch.ops.aten.detach.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_computed_on_the_meta_device(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def computes(*args: object) -> None:
        raise AssertionError("arithmetic on the meta device imports torch's compiler")

    for function in ("mv", "dot"):
        monkeypatch.setattr(torch, function, computes)
    with torch.device("meta"):
        PARTS[part]().prepare()  # type: ignore[operator]
