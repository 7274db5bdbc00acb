r"""Dense recurrences: this library's clusters beside the captured loop and cuDNN in fp16 and bf16, one layer, T 512.

    python bench/dense.py --widths 768,1024,1280 --batches 32,256 --json FILE
    python bench/dense.py --every-plan --widths 1024 --batches 32

Milliseconds of forward and of forward with backward, inputs drawn at random, products of inputs left out of ours and
part of cuDNN's. Each of ours is checked against fp64 before it is timed; `us` is per step, `plan` what was predicted.
With `--every-plan` only our two kernels, spread in every way that fits, and for each what the model of a step says.
With `--together` several independent forward passes at once, as layers would run whose chunks of time follow each
other: what a wavefront over layers could gain at most.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from asked import file, on_gpu
from rnn_lab.bench import machine
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
RESIDENT, ROWS, GROUPS = dense_plan.RESIDENT, dense_plan.ROWS, dense_plan.GROUPS
"""What planning may choose among, before it is restricted."""


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
    args = arguments(B, CHECKED, D, torch.bfloat16)
    got, want = evaluate(run_dense, args), evaluate(reference, args, torch.float64)
    worst = [max(map(relative_error, a, b)) for a, b in zip(got, want, strict=True)]
    return f"r {worst[0]:.1e} {worst[1]:.1e}"


def cudnn(B: int, D: int, dtype: torch.dtype) -> Bound:
    """torch.nn.RNN with tanh."""
    torch.manual_seed(0)
    module = nn.RNN(D, D, batch_first=False).to(DEVICE, dtype)
    x = torch.randn(STEPS, B, D, device=DEVICE).to(dtype).requires_grad_()
    return Bound(lambda: module(x), [x, *module.parameters()])


def forms(D: int) -> list[Form]:
    """Of both directions."""
    args = arguments(1, 1, D, torch.bfloat16)
    program = args[0].dense(*args[1:])
    return [Form(program, way, D, (torch.bfloat16,), torch.float32, False, True) for way in (True, False)]


def predicted(B: int, D: int) -> str:
    """Microseconds per step of both directions, and how they are spread."""
    found = [planned(form, B, 1, DEVICE) for form in forms(D)]
    return " ".join(f"{p.takes(B, 1):.2f} ({p.cluster}x{p.groups}x{p.rows}, {p.held}/{p.kept}/{p.far})" for p in found)


def kernels(bound: Bound) -> str:
    """Milliseconds of each of our two kernels, as CUPTI saw them in one call."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        bound.forward_backward()
        torch.cuda.synchronize()
    events = [event for event in seen.events() if event.name in ("forward", "backward")]
    return ", ".join(f"{event.name} {event.device_time_total / 1e3:.3f}" for event in events)


def every_plan(B: int, D: int, of: Sequence[int]) -> Iterator[str]:
    """Each way that both directions fit in: what its kernels take, and microseconds per step as predicted."""
    for (cluster, room), rows, groups in product(RESIDENT.items(), ROWS, of):
        restrict({cluster: room}, (rows,), (groups,))
        if all(dense_plan.plans(form.problem) for form in forms(D)):
            bound = bind(run_dense, arguments(B, STEPS, D, torch.bfloat16))
            bound.forward_backward()
            yield f"{kernels(bound)}; plan {predicted(B, D)}"


def together(B: int, D: int) -> Iterator[str]:
    """One to four forward passes on streams of their own, under one graph, by sequences of a cluster."""
    streams = [torch.cuda.Stream() for _ in range(4)]
    for rows in (8, 16, 32):
        restrict(RESIDENT, (rows,), (1,))
        bounds = [bind(run_dense, arguments(B, STEPS, D, torch.bfloat16)) for _ in streams]
        for count in range(1, len(streams) + 1):
            pairs = list(zip(streams, bounds, strict=True))[:count]
            spread = time_graph([partial(at_once, pairs)], DEVICE, SECONDS)
            each = spread.median / count
            yield f"clusters of {rows} sequences, {count} at once: {spread.median:.3f} ms, {each:.3f} each"


def at_once(pairs: Sequence[tuple[torch.cuda.Stream, Bound]]) -> None:
    """Forward passes that begin together; the current stream waits for all."""
    current = torch.cuda.current_stream()
    for stream, bound in pairs:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            bound.inference()
    for stream, _ in pairs:
        current.wait_stream(stream)


def restrict(resident: dict[int, int], rows: tuple[int, ...], groups: tuple[int, ...]) -> None:
    """Planning chooses among these."""
    dense_plan.RESIDENT, dense_plan.ROWS, dense_plan.GROUPS = resident, rows, groups
    for function in (dense_plan.plans, dense_plan.choose, dense_plan.choices):
        function.cache_clear()


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
    parser.add_argument("--groups", type=numbers, default=list(GROUPS), help="sequences' groups of a cluster")
    parser.add_argument("--every-plan", action="store_true", help="our kernels alone, spread in every way")
    parser.add_argument("--together", action="store_true", help="several forward passes at once")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--json", type=file, help="also write the figures there")
    options = on_gpu(parser)
    page: dict[str, Any] = {"kind": "dense", "header": machine.header(DEVICE), "steps": STEPS, "rows": []}
    restrict(RESIDENT, ROWS, tuple(options.groups))
    sys.stdout.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, T {STEPS}\n")
    for B, D in product(options.batches, options.widths):
        every = partial(every_plan, of=options.groups)
        alone = every if options.every_plan else together if options.together else None
        if alone:
            for line in alone(B, D):
                sys.stdout.write(f"D {D:5} B {B:4}  {line}\n")
                sys.stdout.flush()
            continue
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
            page["rows"].append({"D": D, "B": B, "name": name, "forward_ms": forward, "both_ms": both, "notes": notes})
    if options.json:
        options.json.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
