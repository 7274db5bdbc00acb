"""The chunked gated delta rule beside the plain loop: results and every gradient, in fp64 on the same inputs."""

from typing import Any

import pytest
import torch
from rnn_lab.kernels.certificates import LIMITS, evaluate
from rnn_lab.kernels.linear import gated_delta_rule
from rnn_lab.tensors import relative_error
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")
from rnn_lab.kernels.linear import gated_delta_rule_chunked as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("o", "last", "q", "k", "v", "g", "beta", "S")


def call(
    B: int, T: int, H: int, N: int, V: int, dtype: torch.dtype = torch.float32, resets: bool = False, first: bool = True
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(B + 10 * T + 100 * N + V)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    # Keys have a direction in common, as those after a SiLU have.
    q, k = (F.normalize(random(B, T, H, N) + 0.3, dim=-1).to(dtype) for _ in range(2))
    v, S = random(B, T, H, V).to(dtype), random(B, H, N, V)
    g = -F.softplus(random(B, T, H) - 2)
    beta = torch.sigmoid(random(B, T, H)) if first else torch.ones(B, T, H)
    reset = torch.rand(B, T, generator=generator) < 0.05 if resets else None
    return tuple(x.to(DEVICE) if isinstance(x, Tensor) else x for x in (q, k, v, g, beta, S, reset, first))


def compare(args: tuple[Any, ...]) -> None:
    want, want_gradients = evaluate(gated_delta_rule.reference, args, torch.float64)
    got, got_gradients = evaluate(kernels.gated_delta_rule, args)
    errors = dict(zip(NAMES, map(relative_error, [*got, *got_gradients], [*want, *want_gradients]), strict=True))
    limits = LIMITS[args[2].dtype]
    bad = {name: error for name, error in errors.items() if not error <= limits[name not in NAMES[:2]]}
    assert not bad, errors


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resets", [False, True])
def test_equals_the_loop(dtype: torch.dtype, resets: bool, first: bool) -> None:
    compare(call(1, 130, 2, 16, 16, dtype, resets, first))


@pytest.mark.parametrize(
    ("B", "T", "H", "N", "V"),
    [(1, 1, 16, 8, 8), (2, 1, 3, 16, 32), (1, 63, 1, 5, 7), (1, 65, 2, 24, 40), (1, 64, 1, 136, 70), (1, 5, 1, 256, 9)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes(B: int, T: int, H: int, N: int, V: int, dtype: torch.dtype) -> None:
    compare(call(B, T, H, N, V, dtype))


@pytest.mark.parametrize("first", [True, False])
def test_a_dead_state_is_forgotten_without_nan(first: bool) -> None:
    args = list(call(1, 70, 2, 8, 8, first=first))
    args[3][:, 10] = -torch.inf
    args[3][:, 40:50] = -300.0
    (o, last), gradients = evaluate(kernels.gated_delta_rule, tuple(args))
    args[3].clamp_(min=-80.0)
    want, _ = evaluate(gated_delta_rule.reference, tuple(args), torch.float64)
    assert relative_error(o, want[0]) < 1e-5
    assert relative_error(last, want[1]) < 1e-5
    assert all(x.isfinite().all() for x in gradients)


def test_parts_with_the_state_carried_are_the_whole() -> None:
    q, k, v, g, beta, S, _, _ = call(2, 90, 1, 8, 16)
    whole, last = kernels.gated_delta_rule(q, k, v, g, beta, S)
    first, middle = kernels.gated_delta_rule(q[:, :37], k[:, :37], v[:, :37], g[:, :37], beta[:, :37], S)
    second, end = kernels.gated_delta_rule(q[:, 37:], k[:, 37:], v[:, 37:], g[:, 37:], beta[:, 37:], middle)
    assert relative_error(torch.cat([first, second], 1), whole) < 1e-5
    assert relative_error(end, last) < 1e-5


@pytest.mark.parametrize("resets", [False, True])
def test_custom_op(resets: bool) -> None:
    q, k, v, g, beta, S, reset, first = call(1, 20, 1, 8, 8, resets=resets)
    leaves = [x.requires_grad_() for x in (q, k, v, g, beta, S)]
    reset = None if reset is None else reset.to(torch.uint8)
    torch.library.opcheck(kernels.forward, (*leaves, reset, first))


def test_compiled_equals_eager() -> None:
    args = call(1, 20, 1, 8, 8)[:6]
    compiled = torch.compile(kernels.gated_delta_rule, backend="aot_eager", fullgraph=True)
    got, got_gradients = evaluate(compiled, args)
    want, want_gradients = evaluate(kernels.gated_delta_rule, args)
    for x, y in zip([*got, *got_gradients], [*want, *want_gradients], strict=True):
        assert relative_error(x, y) < 1e-6


def test_probe_is_a_small_call_of_the_same_kind() -> None:
    args = call(4, 3, 5, 8, 16, torch.bfloat16, resets=True, first=False)
    small = gated_delta_rule._probe(*args)
    assert [x.dtype for x in small[:7]] == [x.dtype for x in args[:7]]
    assert [x.shape[3:] for x in small[:3]] == [x.shape[3:] for x in args[:3]]
    assert small[7] is False
    compare(small)


def test_what_needs_no_padding_is_not_copied():
    x = torch.randn(2, 3, 8)
    assert kernels._padded(x, 0) is x
    assert torch.equal(kernels._padded(x, 2, 1), F.pad(x, (0, 2, 0, 1)))
