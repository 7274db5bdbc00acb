"""The two symmetric products of a Newton-Schulz iteration: by torch's library, and from half of the tiles.

    python bench/symmetric.py --json docs/benchmarks/h100-symmetric.json

X X', then a + b A + c A A for A = X X', in bf16 under a CUDA graph, for batches as an optimizer has them. TFLOP/s are
those of the whole products, so that the kernel may show more than a GPU can do.
"""

import argparse
import json

import torch
from asked import file, on_gpu, seconds
from rnn_lab.bench import machine
from rnn_lab.bench.timing import time_graph
from rnn_lab.kernels.updates.symmetric_triton import symmetric
from rnn_lab.optim import gram
from rnn_lab.tensors import relative_error
from run import say

SHAPES = ((26, 1600, 1600), (26, 800, 1600), (8, 4096, 4096), (64, 512, 512))
WAYS = {"library": gram.library, "triton": symmetric}


def main() -> None:
    """Measure every shape, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=seconds, default=0.2, help="per measurement; default: 0.2")
    parser.add_argument("--json", type=file)
    options = on_gpu(parser)
    device, rows = torch.device("cuda"), []
    for K, m, n in SHAPES:
        X = (torch.randn(K, m, n, device=device) / (m * n) ** 0.5).bfloat16()
        A = X[:1].double() @ X[:1].double().mT
        exact = 2.0315 * A @ A - 4.775 * A + 3.4445 * torch.eye(m, device=device)
        for way, run in WAYS.items():

            def both(run: gram.Product = run, X: torch.Tensor = X) -> torch.Tensor:
                A = run(X)
                return run(A, A, 2.0315, -4.775, 3.4445)

            error = relative_error(both()[:1], exact)
            ms = time_graph([both], device, options.seconds).median
            flops = 2 * K * m * m * (m + n)
            rows.append({"K": K, "m": m, "n": n, "way": way, "ms": ms, "error": error})
            say(f"{K:3} x {m} x {n}  {way:<8}{ms:9.4f} ms  {flops / ms / 1e9:7.0f} TFLOP/s  error {error:.1e}")
    if options.json:
        page = {"kind": "symmetric", "header": machine.header(device), "rows": rows}
        options.json.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
