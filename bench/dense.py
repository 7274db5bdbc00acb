r"""Dense recurrences: this library's clusters beside the captured loop and cuDNN in fp16 and bf16, one layer, T 512.

    python bench/dense.py --widths 768,1024,1280 --batches 32,256

Milliseconds of forward and of forward with backward, inputs drawn at random, products of inputs left out of ours and
part of cuDNN's. Each of ours is checked against fp64 before it is timed; `us` is per step, `plan` what was predicted.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from rnn_lab.bench.calls import Bound, bind
from rnn_lab.bench.timing import Spread, time_eager, time_graph
from rnn_lab.kernels.certificates import evaluate
from rnn_lab.kernels.dense import plan as dense_plan
from rnn_lab.kernels.dense.cuda import Form
from rnn_lab.kernels.dense.engine import planned
from rnn_lab.kernels.recurrence import Cell, Streams, reference
from rnn_lab.kernels.recurrence_backends import refuses_dense, run_dense, run_graph
from rnn_lab.tensors import relative_error
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

DEVICE = torch.device("cuda")
STEPS = 512
SECONDS = 0.5
CHECKED = 64
"""Steps of the check against fp64."""


def elman(h: Tensor, u: Tensor, W: Tensor) -> Tensor:
    """tanh(u + W h)."""
    return torch.addmm(u, h, W.T).tanh()


def arguments(B: int, T: int, D: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """A call of the recurrence: spectral norm about 1, so that states neither fade nor saturate."""
    torch.manual_seed(0)
    W = torch.randn(D, D, device=DEVICE) / (2 * D**0.5)
    u = torch.randn(B, T, D, device=DEVICE).to(dtype)
    return Cell(elman), torch.zeros(B, D, device=DEVICE), Streams((u,), (W,))


def check(B: int, D: int) -> str:
    """Largest errors of results and of gradients."""
    args = arguments(min(B, 8), CHECKED, D, torch.bfloat16)
    got, want = evaluate(run_dense, args), evaluate(reference, args, torch.float64)
    worst = [max(map(relative_error, a, b)) for a, b in zip(got, want, strict=True)]
    return f"r {worst[0]:.1e} {worst[1]:.1e}"


def cudnn(B: int, D: int, dtype: torch.dtype) -> Bound:
    """torch.nn.RNN with tanh."""
    torch.manual_seed(0)
    module = nn.RNN(D, D, batch_first=False).to(DEVICE, dtype)
    x = torch.randn(STEPS, B, D, device=DEVICE).to(dtype).requires_grad_()
    return Bound(lambda: module(x), [x, *module.parameters()])


def predicted(B: int, D: int) -> str:
    """Microseconds per step of both directions, and how they are spread."""
    args = arguments(1, 1, D, torch.bfloat16)
    program = args[0].dense(*args[1:])
    found = [
        planned(Form(program, way, D, (torch.bfloat16,), torch.float32, False, True), B, 1, DEVICE)
        for way in (True, False)
    ]
    return " ".join(
        f"{p.microseconds * p.rounds(B, 1):.2f} ({p.cluster}x{p.rows}, {p.held}/{p.kept}/{p.far})" for p in found
    )


def kernels(bound: Bound) -> str:
    """Milliseconds of each of our two kernels, as CUPTI saw them in one call."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        bound.forward_backward()
        torch.cuda.synchronize()
    events = [event for event in seen.events() if event.name in ("forward", "backward")]
    return ", ".join(f"{event.name} {event.device_time_total / 1e3:.3f}" for event in events)


def rows(B: int, D: int) -> Iterator[tuple[str, Bound, Callable[..., Spread], str]]:
    """What is compared: name, call, how it is timed, notes."""
    args = arguments(B, STEPS, D, torch.bfloat16)
    if reason := refuses_dense(*args):
        raise SystemExit(f"not here: {reason}")
    ours = bind(run_dense, args)
    ours.forward_backward()
    notes = f"{check(B, D)}; {kernels(ours)}; plan {predicted(B, D)}"
    yield "dense, graph", ours, time_graph, notes
    yield "dense, eager", ours, time_eager, ""
    yield "captured loop", bind(run_graph, args), time_eager, ""
    for dtype in (torch.float16, torch.bfloat16):
        yield f"cuDNN {str(dtype).removeprefix('torch.')}", cudnn(B, D, dtype), time_eager, ""


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(n) for n in text.split(",")]


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description="Dense recurrences beside cuDNN.")
    parser.add_argument("--widths", type=numbers, default=[512, 768, 1024, 1280, 1536, 2048])
    parser.add_argument("--batches", type=numbers, default=[32, 256])
    parser.add_argument("--bulk", action="store_true", help="blocks send by the copy engine")
    parser.add_argument("--only", default="", help="names that contain this")
    options = parser.parse_args()
    os.environ["RNN_LAB_KERNELS"] = "dense"
    dense_plan.BULK = options.bulk
    sys.stdout.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, T {STEPS}\n")
    for B, D in product(options.batches, options.widths):
        for name, bound, timed, notes in rows(B, D):
            if options.only not in name:
                continue
            forward, both = (
                timed([partial(call)], DEVICE, SECONDS).median for call in (bound.inference, bound.forward_backward)
            )
            us = 1e3 * both / STEPS
            line = f"D {D:5} B {B:4}  {name:16} {forward:8.3f} {both:8.3f} ms {us:7.2f} us  {notes}"
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
