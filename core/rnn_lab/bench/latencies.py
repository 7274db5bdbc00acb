"""What a step of a dense recurrence waits for on this GPU, and the floor that follows for its time per step.

    step = 2 n D (G D / C) / products  +  exchange  +  bytes / ingest

C blocks of a cluster hold G matrices [D, D], clusters split the B sequences into n rows each. Every block multiplies
its share by mma.sync, needs all n rows of h in bf16 from its peers (of the gradients by all G products on the way
back), and knows that they came by an mbarrier. What the cell computes, and what memory delivers, is left out: no form
with one exchange per step in distributed shared memory is faster.
"""

from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from rnn_lab.bench.timing import time_eager
from rnn_lab.kernels.cuda_jit import Kernel, missing, skeleton
from rnn_lab.kernels.dense.plan import RESIDENT

HELD = 400 * 1024
"""Bytes of a matrix that a multiprocessor can hold, in registers and shared memory."""
PAIR = 2
"""Blocks of the cluster in which a load and a signal are measured."""
THREADS = 256
FEW, MANY = 0, 8
"""Logarithms of how many words of 8 bytes a block sends to each of its peers."""
SMALL = 128
"""Bytes of shared memory for barriers, one word or 32 indices."""
FLOP = 16 * 16 * 8 * 2
"""Of one mma.sync.m16n8k16."""
SIGNATURES = {"cluster_barrier": "Pi", "remote_load": "Pi", "ping_pong": "Pi", "exchange": "Piii", "products": "Pi"}


@dataclass(frozen=True)
class Latencies:
    """Microseconds, and rates per multiprocessor.

    `barrier` and `exchange` by blocks of a cluster: a barrier of all, and a word to and from everybody behind which
    the block goes on. `load`: one that waits for the last, from another's shared memory. `signal`: st.async and its
    mbarrier, one way. `ingest`: bytes/s that a block takes in from its peers, by blocks. `products`: FLOP/s.
    """

    barrier: dict[int, float]
    exchange: dict[int, float]
    ingest: dict[int, float]
    load: float
    signal: float
    products: float

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def source() -> str:
    """The kernels."""
    text = Path(__file__).with_name("latencies.cuh").read_text()
    return f'{skeleton("ptx", "cluster")}\n#line 1 "latencies.cuh"\n{text}'


@cache
def kernel(name: str, blocks: int = 1) -> Kernel:
    """One of them, in clusters of so many blocks."""
    return Kernel(source(), name, SIGNATURES[name], file="latencies.cu", cluster=(blocks, 1, 1))


def refuses(device: torch.device) -> str | None:
    """Why a device has no such latencies, or None."""
    if device.type != "cuda":
        return f"{device.type} has no clusters"
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        return f"clusters are measured on compute capability 9.0, and the GPU has {major}.{minor}"
    return missing()


def latencies(device: torch.device, seconds: float = 0.1) -> Latencies:
    """Measured on this GPU, while nothing else runs on it.

    Args:
        device: of compute capability 9.
        seconds: for each of about ten figures.

    """

    def each(name: str, n: int, *values: int, blocks: int = 1, threads: int = THREADS, grid: int = 0) -> float:
        """Seconds of one turn of n, launches left out."""
        grid = grid or blocks
        out = torch.zeros(grid * threads, dtype=torch.float32 if name == "products" else torch.int32, device=device)
        shared = SMALL + (2 * 8 * (values[0] << values[1]) if name == "exchange" else 0)

        def launch(turns: int) -> None:
            kernel(name, blocks)((grid, 1, 1), (threads, 1, 1), out, turns, *values, shared=shared)

        short, long = (time_eager([partial(launch, turns)], device, seconds / 2).median for turns in (n, 9 * n))
        return (long - short) / (8 * n) / 1e3

    barrier, exchange, ingest = {}, {}, {}
    for blocks in RESIDENT:
        barrier[blocks] = 1e6 * each("cluster_barrier", 1000, blocks=blocks)
        few, many = (each("exchange", 500, blocks, log, blocks=blocks) for log in (FEW, MANY))
        exchange[blocks], ingest[blocks] = 1e6 * few, 8 * blocks * ((1 << MANY) - (1 << FEW)) / (many - few)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    turn = each("products", 500, threads=512, grid=multiprocessors)
    return Latencies(
        barrier, exchange, ingest,
        load=1e6 * each("remote_load", 1000, blocks=PAIR, threads=32),
        signal=1e6 * each("ping_pong", 500, blocks=PAIR, threads=32) / 2,
        products=512 // 32 * 8 * FLOP / turn,
    )  # fmt: skip


def floor_us(found: Latencies, D: int, B: int, gates: int = 1) -> float | None:
    """Microseconds of a step forward and one back, in the better cluster; None where no cluster holds the matrices.

    Args:
        found: see Latencies.
        D: width of the state.
        B: sequences.
        gates: recurrent products G.

    """
    steps = []
    for blocks, clusters in RESIDENT.items():
        if 2 * gates * D**2 / blocks > HELD:
            continue
        rows = -(-B // clusters)
        product = 2 * (-(-rows // 8) * 8) * D * gates * D / blocks / found.products
        taken = 2 * rows * D * (1 + gates) / found.ingest[blocks]
        steps.append(2 * found.exchange[blocks] + 1e6 * (2 * product + taken))
    return min(steps, default=None)
