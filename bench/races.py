r"""Small dense recurrences for compute-sanitizer: clusters of 8 and 16, one group and several, forward and backward.

    compute-sanitizer --tool racecheck --racecheck-report all python bench/races.py
    compute-sanitizer --tool memcheck --report-api-errors no python bench/races.py

racecheck does not follow what blocks tell each other by asynchronous stores: that a thread writes partial sums again
only when it has a message which their readers sent. Here a barrier of the block stands for that before every product,
so that what it then reports is a race in anything else. With `--as-it-is` it does not.
"""

import argparse
import sys
from typing import Any

import torch
from dense import restrict
from rnn_lab.kernels.certificates import LIMITS, evaluate
from rnn_lab.kernels.dense import engine
from rnn_lab.kernels.dense import plan as dense_plan
from rnn_lab.kernels.dense.cuda import source
from rnn_lab.kernels.recurrence import Cell, Streams, reference
from rnn_lab.kernels.recurrence_backends import run_dense
from rnn_lab.tensors import relative_error

PRODUCT = "matrix.multiply(p, exchange.receive("
STEPS = 6
CASES = (
    (8, 1, (4,), 9, 128), (8, 2, (4,), 19, 128), (8, 3, (1,), 21, 128), (8, 5, (1,), 37, 128), (16, 1, (2,), 9, 256),
    (16, 2, (4,), 17, 256),
)  # fmt: skip
"""Blocks of a cluster, groups, stages of inputs, sequences, width."""


def main() -> None:
    """Run and check each."""
    parser = argparse.ArgumentParser(description="Dense recurrences under compute-sanitizer.")
    parser.add_argument("--as-it-is", action="store_true", help="without the barrier")
    if not parser.parse_args().as_it_is:
        engine.source = with_barrier  # type: ignore[attr-defined]
    for cluster, groups, stages, B, D in CASES:
        restrict({cluster: 7}, (8,), (groups,))
        dense_plan.STAGES = stages
        torch.manual_seed(0)
        W, b = torch.randn(2 * D, D, device="cuda") / (2 * D**0.5), torch.randn(D, device="cuda")
        u = torch.randn(B, STEPS, 2 * D, device="cuda").bfloat16()
        reset = torch.rand(B, STEPS, device="cuda") < 0.2
        args = Cell(gated), torch.zeros(B, D, device="cuda"), Streams((u,), (W, b)), reset
        got, want = evaluate(run_dense, args), evaluate(reference, args, torch.float64)
        for limit, ours, theirs in zip(LIMITS[torch.bfloat16], got, want, strict=True):
            assert max(map(relative_error, ours, theirs)) < limit
        sys.stdout.write(f"clusters of {cluster}, {groups} groups of 8, {stages[0]} stages, B {B}: right\n")


def with_barrier(*args: Any) -> str:
    """The kernel with a barrier of the block before every product."""
    text = source(*args)
    assert f" {PRODUCT}" in text
    return text.replace(f" {PRODUCT}", f" __syncthreads(), {PRODUCT}")


def gated(h: torch.Tensor, u: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A gate and a candidate, both of the state."""
    z, c = (torch.addmm(u, h, W.T)).chunk(2, -1)
    return torch.lerp(h, torch.tanh(c + b), torch.sigmoid(z))


if __name__ == "__main__":
    main()
