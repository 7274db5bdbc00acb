r"""Calls one backend of a model's operation, forward and backward, and nothing else, for a profiler to look at.

    ncu --clock-control none --set basic --section WarpStateStats --kernel-name regex:ward \
        python bench/once.py e64:dim=640,expansion=2 --backend diagonal --calls 1

B 32, T 512, bf16. Without a profiler it prints the milliseconds of the last call's kernels, as CUPTI saw them.
"""

import argparse
import sys

import torch
from rnn_lab.bench.calls import bind
from rnn_lab.bench.cases import Source
from rnn_lab.config import ModelSection
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry
from rnn_lab_cli.bench_options import name_and_fields
from torch.profiler import ProfilerActivity, profile


def main() -> None:
    """Call it; the last call under torch's profiler if there is more than one."""
    parser = argparse.ArgumentParser(description="Calls of one backend, for a profiler.")
    parser.add_argument("model", metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--op", default="recurrence", help="operation; default: recurrence")
    parser.add_argument("--backend", required=True, help="one of the operation's backends")
    parser.add_argument("--calls", type=int, default=4, metavar="N", help="default: 4")
    options = parser.parse_args()
    name, fields = name_and_fields(options.model)
    spec = model_spec(ModelSection(name=name, depth=1, fields=fields), registry())
    case = Source(name, spec, torch.bfloat16, torch.device("cuda")).case(options.op, 32, 512)
    found = {backend.name: backend for backend in case.op.backends}
    if options.backend not in found:
        parser.error(f"{options.op} has no backend {options.backend!r}; there are: {', '.join(found)}")
    if reason := found[options.backend].refuses(*case.args):
        parser.error(f"{options.backend} cannot run: {reason}")
    bound = bind(found[options.backend].run, case.args)
    for _ in range(max(1, options.calls - 1)):
        bound.forward_backward()
    torch.cuda.synchronize()
    if options.calls > 1:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            bound.forward_backward()
            torch.cuda.synchronize()
        for event in seen.events():
            sys.stdout.write(f"{event.device_time_total / 1e3:8.4f} ms  {event.name[:100]}\n")


if __name__ == "__main__":
    main()
