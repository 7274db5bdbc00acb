"""Backward of products over kept positions, beside the whole ones: gradients by the input and by each matrix.

    python bench/filtered.py --json docs/benchmarks/h100-filtered.json

B 32, T 512, bf16, 35 % of the positions filtered at random, under a CUDA graph; one matrix, and two of one input. In
milliseconds: over all positions by torch's library; over kept rows where these lie together already; with copying them
together and apart; and by the kernel, with its largest error.
"""

import argparse
import json
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from asked import file, on_gpu, seconds, shape, share
from rnn_lab.bench import machine
from rnn_lab.bench.timing import time_graph
from rnn_lab.kernels.fused.filtered_linear import gathered, mask_of
from rnn_lab.kernels.fused.filtered_linear_cuda import filtered_gradients
from rnn_lab.tensors import relative_error
from run import say
from torch import Tensor

SHAPES = ((1024, 1024), (2048, 1024), (1024, 2048), (2048, 2048), (4096, 4096))


def main() -> None:
    """Measure every shape, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="MxK")
    parser.add_argument("--sparsity", type=share, default=0.35)
    parser.add_argument("--seconds", type=seconds, default=0.2, help="per measurement; default: 0.2")
    parser.add_argument("--json", type=file)
    options = on_gpu(parser)
    rows = []
    for M, K in options.shapes:
        for maps in (1, 2):
            found = measured(M, K, maps, options.sparsity, options.seconds)
            rows += found
            for row in found:
                error = f"  error {row['error']:.1e}" if "error" in row else ""
                say(f"{maps} of {f'{M}x{K}':>10}  {row['way']:<30}{row['ms']:8.4f} ms  {row['reduction']:+7.1%}{error}")
    if options.json:
        page = {"kind": "filtered", "header": machine.header(torch.device("cuda")), "sparsity": options.sparsity}
        options.json.write_text(json.dumps({**page, "rows": rows}, indent=1) + "\n")


def measured(M: int, K: int, maps: int, sparsity: float, seconds: float) -> list[dict[str, Any]]:
    """Rows of one shape of W; `reduction` is the share of the whole products' time that is saved."""
    device, (B, T) = torch.device("cuda"), (32, 512)
    grads = [torch.randn(B, T, M, device=device).bfloat16() for _ in range(maps)]
    x = torch.randn(B, T, K, device=device).bfloat16()
    weights = [(torch.randn(M, K, device=device) * K**-0.5).bfloat16() for _ in range(maps)]
    keep = torch.rand(B, T, device=device).topk(round((1 - sparsity) * T), 1).indices.sort(1).values
    kept = (keep + torch.arange(B, device=device)[:, None] * T).flatten()
    mask = mask_of(x, kept)
    whole = [a.flatten(0, 1) for a in (*grads, x)]
    few = [a.index_select(0, kept) for a in whole]
    ways: dict[str, Callable[[], object]] = {
        "all positions": lambda: products(*whole, weights=weights),
        "kept rows that lie together": lambda: products(*few, weights=weights),
        "kept rows copied": lambda: gathered(grads, x, weights, kept),
        "kernel": lambda: filtered_gradients(grads, x, weights, kept, mask),
    }
    rows = [{"M": M, "K": K, "maps": maps, "way": way, "ms": timed(call, seconds)} for way, call in ways.items()]
    (dx, found), (wanted, exact) = (
        filtered_gradients(grads, x, weights, kept, mask),
        gathered([g.double() for g in grads], x.double(), [w.double() for w in weights], kept),
    )
    rows[-1]["error"] = max(relative_error(a, b) for a, b in zip([dx, *found], [wanted, *exact], strict=True))
    return [{**row, "reduction": 1 - row["ms"] / rows[0]["ms"]} for row in rows]


def products(*rows: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """All gradients in bf16, those by x added up as autograd does."""
    *grads, x = rows
    return reduce(operator.add, (g @ w for g, w in zip(grads, weights, strict=True))), *(g.mT @ x for g in grads)


def timed(call: Callable[[], object], seconds: float) -> float:
    """Milliseconds under a CUDA graph."""
    call()  # compiles
    return time_graph([call], torch.device("cuda"), seconds).median


if __name__ == "__main__":
    main()
