"""What products of matrices are taken to cost, where a form of a recurrence is chosen by arithmetic."""

from typing import NamedTuple

import torch

NARROW = (torch.bfloat16, torch.float16)
"""Dtypes whose numbers tensor cores take as they are."""


class Cost(NamedTuple):
    """FLOP/s of products of many rows and of few, bytes/s at which these read their matrix, seconds of a launch."""

    rate: float
    thin_rate: float
    bandwidth: float
    launch: float

    def thin(self, rows: int, n: int, k: int, rate: float | None = None) -> float:
        """Seconds of a product of few rows of n with a matrix [n, k] that the cache holds, and that others wait for."""
        return self.launch + max(2 * rows * n * k / (rate or self.thin_rate), 4 * n * k / self.bandwidth)


COSTS = {
    ("cuda", True): Cost(170e12, 45e12, 5.5e12, 3e-6),
    ("cuda", False): Cost(45e12, 45e12, 5.5e12, 3e-6),
    ("cpu", False): Cost(70e9, 70e9, 20e9, 2e-6),
    ("cpu", True): Cost(70e9, 70e9, 20e9, 2e-6),
}
"""By device and by whether inputs are narrow. An H100's rates are arithmetic, not measured: three products of 16 bits
at 510 TFLOP/s for one of fp32, two thirds of its fp32 units, its L2 cache; its launch is that of a small product in a
CUDA graph. The CPU's are read off timings of one core."""


def cost_of(x: torch.Tensor) -> Cost:
    """Of products on the device of these inputs."""
    return COSTS[x.device.type, x.dtype in NARROW]
