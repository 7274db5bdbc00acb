"""Backward of one product over kept positions, beside the whole one: gradients by input and by matrix.

    python bench/filtered.py --json docs/benchmarks/h100-filtered.json

B 32, T 512, bf16, 35 % of the positions filtered at random, under a CUDA graph. In milliseconds: both products over all
positions by torch's library; over the kept rows where these lie together already, which no filter is faster than;
with copying them together and apart; and every configuration of the kernel, with its largest error.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rnn_lab.bench import machine
from rnn_lab.bench.timing import time_graph
from rnn_lab.kernels.fused import filtered_linear_triton as kernels
from rnn_lab.kernels.fused.filtered_linear import gathered, mask_of
from rnn_lab.kernels.triton_support import trying
from rnn_lab.tensors import relative_error
from run import say
from torch import Tensor

SHAPES = ((1024, 1024), (2048, 1024), (1024, 2048), (2048, 2048), (4096, 4096))


def main() -> None:
    """Measure every shape, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["x".join(map(str, s)) for s in SHAPES], metavar="MxK")
    parser.add_argument("--sparsity", type=float, default=0.35)
    parser.add_argument("--seconds", type=float, default=0.2, help="per measurement; default: 0.2")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        M, K = map(int, shape.split("x"))
        rows += (found := measured(M, K, options.sparsity, options.seconds))
        for row in found:
            error = "" if row["error"] is None else f"  errors {row['error']:.1e}"
            say(f"{shape:>10}  {row['way']:<40}{row['ms']:8.4f} ms  {row['reduction']:+7.1%}{error}")
    if options.json:
        page = {"kind": "filtered", "header": machine.header(torch.device("cuda")), "sparsity": options.sparsity}
        options.json.write_text(json.dumps({**page, "rows": rows}, indent=1) + "\n")


def measured(M: int, K: int, sparsity: float, seconds: float, B: int = 32, T: int = 512) -> list[dict[str, Any]]:
    """Rows of one shape of W; `reduction` is the share of the whole products' time that is saved."""
    device = torch.device("cuda")
    g = torch.randn(B, T, M, device=device).bfloat16()
    x = torch.randn(B, T, K, device=device).bfloat16()
    weight = (torch.randn(M, K, device=device) * K**-0.5).bfloat16()
    keep = torch.rand(B, T, device=device).topk(round((1 - sparsity) * T), 1).indices.sort(1).values
    kept = (keep + torch.arange(B, device=device)[:, None] * T).flatten()
    mask = mask_of(x, kept)
    few_g, few_x = (a.flatten(0, 1).index_select(0, kept) for a in (g, x))
    ways: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "all positions": lambda: products(g.flatten(0, 1), x.flatten(0, 1), weight),
        "kept rows that lie together": lambda: products(few_g, few_x, weight),
        "kept rows copied": lambda: gathered(g, x, weight, kept),
    }
    wanted = gathered(g.double(), x.double(), weight.double(), kept)
    rows = [{"way": way, "ms": timed(call, seconds), "error": None} for way, call in ways.items()]
    for i, config in enumerate(kernels.gradients_kernel.configs):
        with trying(i):
            error = max(map(relative_error, kernels.filtered_gradients(g, x, weight, kept, mask), wanted))
            ms = timed(lambda: kernels.filtered_gradients(g, x, weight, kept, mask), seconds)
        rows.append({"way": f"kernel, {size(config)}", "ms": ms, "error": error})
    return [{"M": M, "K": K, "reduction": 1 - row["ms"] / rows[0]["ms"], **row} for row in rows]


def products(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Both, in bf16."""
    return g @ weight, g.mT @ x


def size(config: Any) -> str:
    """A configuration in words."""
    tile = config.kwargs
    return f"{tile['ROWS']} x {tile['COLUMNS']}, {config.num_stages} stages"


def timed(call: Callable[[], object], seconds: float) -> float:
    """Milliseconds under a CUDA graph."""
    call()  # compiles
    return time_graph([call], torch.device("cuda"), seconds).median


if __name__ == "__main__":
    main()
