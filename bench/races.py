r"""Small recurrences in CUDA C++ for compute-sanitizer, forward and backward, each held to the plain loop.

    compute-sanitizer --tool racecheck --racecheck-report all python bench/races.py
    compute-sanitizer --tool memcheck --report-api-errors no python bench/races.py

Dense ones in clusters of 8 and 16, one group and several; matrices in every way to spread them over lanes and blocks,
with rows that are aligned and that are not; element-wise ones; products over kept rows.

For the dense, racecheck does not follow what blocks tell each other by asynchronous stores: that a thread writes
partial sums again only when it has a message which their readers sent. Here a barrier of the block stands for that
before every product, so that what it then reports is a race in anything else. With `--as-it-is` it does not.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from asked import on_gpu
from dense import restrict
from rnn_lab.kernels.certificates import LIMITS, evaluate
from rnn_lab.kernels.dense import engine
from rnn_lab.kernels.dense import plan as dense_plan
from rnn_lab.kernels.dense.cuda import source
from rnn_lab.kernels.fused.filtered_linear import FILTERED_LINEAR
from rnn_lab.kernels.recurrence import Cell, Streams, reference
from rnn_lab.kernels.recurrence_backends import run_dense, run_diagonal_cuda, run_matrix
from rnn_lab.kernels.triton_support import trying
from rnn_lab.tensors import relative_error
from torch.nn import functional as F

PRODUCT = "matrix.multiply(p, exchange.receive("
STEPS = 6
CASES = (
    (8, 1, (4,), 9, 128), (8, 2, (4,), 19, 128), (8, 3, (1,), 21, 128), (8, 5, (1,), 37, 128), (16, 1, (2,), 9, 256),
    (16, 2, (4,), 17, 256),
)  # fmt: skip
"""Blocks of a cluster, groups, stages of inputs, sequences, width."""
MATRICES = ((1, 19, 24), (2, 16, 9), (1, 10, 40), (1, 9, 128))
"""Sequences, steps, rows and columns."""


def main() -> None:
    """Run and check each."""
    parser = argparse.ArgumentParser(description="Recurrences under compute-sanitizer.")
    kinds = {"dense": dense, "matrix": matrices, "diagonal": channels, "filtered": products}
    parser.add_argument(
        "kinds", nargs="*", default=list(kinds), metavar="KIND", help=f"{', '.join(kinds)}; default: all"
    )
    parser.add_argument("--as-it-is", action="store_true", help="without the barrier")
    options = on_gpu(parser)
    if unknown := set(options.kinds) - set(kinds):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    if not options.as_it_is:
        engine.source = with_barrier  # type: ignore[attr-defined]
    for kind in options.kinds:
        kinds[kind]()


def matrices() -> None:
    """In every way to spread them."""
    for B, T, n in MATRICES:
        k, v = torch.randn(B, T, n, device="cuda"), torch.randn(B, T, n, device="cuda")
        streams = Streams((F.normalize(k, dim=-1).bfloat16(), v.bfloat16()), queries=(k.bfloat16(),))
        reset = torch.rand(B, T, device="cuda") < 0.2
        index, count = 0, 1
        while index < count:
            with trying(index) as trial:
                check(run_matrix, (Cell(delta, retrieve), torch.zeros(B, n, n, device="cuda"), streams, reset))
            index, count = index + 1, trial.count
        sys.stdout.write(f"matrices of {n} x {n}, B {B}, {T} steps, {count} ways: right\n")


def channels() -> None:
    """Element-wise."""
    for B, T, C in ((2, 19, 70), (1, 16, 128)):
        x, a = (torch.randn(B, T, C, device="cuda").bfloat16() for _ in range(2))
        reset = torch.rand(B, T, device="cuda") < 0.2
        check(run_diagonal_cuda, (Cell(leaky), torch.zeros(B, C, device="cuda"), Streams((x, a)), reset))
        sys.stdout.write(f"{C} channels, B {B}, {T} steps: right\n")


def products() -> None:
    """Over kept rows, tiles that are full and not, and sums in parts."""
    for T, K, heights, kept in ((300, 320, (192, 64), 200), (1700, 256, (64, 64), 1600)):
        x = torch.randn(1, T, K, device="cuda").bfloat16()
        weights = tuple((torch.randn(M, K, device="cuda") * K**-0.5).bfloat16() for M in heights)
        places = torch.randperm(T, device="cuda")[:kept].sort().values
        got, want = (
            evaluate(run, (x, weights, places)) for run in (FILTERED_LINEAR.backends[0].run, FILTERED_LINEAR.reference)
        )
        assert all(relative_error(a, b) < 1e-2 for a, b in zip(got[1], want[1], strict=True))
        sys.stdout.write(f"{kept} of {T} rows by {heights} x {K}: right\n")


def check(run: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Results and gradients are those of the plain loop."""
    got, want = evaluate(run, args), evaluate(reference, args, torch.float64)
    for limit, ours, theirs in zip(LIMITS[torch.bfloat16], got, want, strict=True):
        assert max(map(relative_error, ours, theirs)) < limit


def dense() -> None:
    """In clusters, by groups."""
    for cluster, groups, stages, B, D in CASES:
        restrict({cluster: 7}, (8,), (groups,))
        dense_plan.STAGES = stages
        torch.manual_seed(0)
        W, b = torch.randn(2 * D, D, device="cuda") / (2 * D**0.5), torch.randn(D, device="cuda")
        u = torch.randn(B, STEPS, 2 * D, device="cuda").bfloat16()
        reset = torch.rand(B, STEPS, device="cuda") < 0.2
        args = Cell(gated), torch.zeros(B, D, device="cuda"), Streams((u,), (W, b)), reset
        check(run_dense, args)
        sys.stdout.write(f"clusters of {cluster}, {groups} groups of 8, {stages[0]} stages, B {B}: right\n")


def with_barrier(*args: Any) -> str:
    """The kernel with a barrier of the block before every product."""
    text = source(*args)
    assert f" {PRODUCT}" in text
    return text.replace(f" {PRODUCT}", f" __syncthreads(), {PRODUCT}")


def delta(S: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The delta rule with tanh, as in E74."""
    return torch.tanh(S + (v - retrieve(S, k))[..., None] * k[..., None, :])


def retrieve(S: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """S q."""
    return (S * q[..., None, :]).sum(-1)


def leaky(h: torch.Tensor, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """A leak and a candidate of the state."""
    return torch.lerp(torch.tanh(x + h), h, torch.sigmoid(a))


def gated(h: torch.Tensor, u: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A gate and a candidate, both of the state."""
    z, c = (torch.addmm(u, h, W.T)).chunk(2, -1)
    return torch.lerp(h, torch.tanh(c + b), torch.sigmoid(z))


if __name__ == "__main__":
    main()
