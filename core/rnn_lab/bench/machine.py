"""What the figures of a page were taken on, and the two ceilings that they are held against."""

from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from rnn_lab.bench.timing import time_eager
from rnn_lab.kernels.certificates import machine
from rnn_lab.train.device import peak_flops
from rnn_lab.train.rundir import environment

PEERS = ("flash-linear-attention", "mamba-ssm", "causal-conv1d", "flashrnn")
"""Distributions whose implementations are measured beside ours where they are installed."""


def header(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, commit and date."""
    found = environment()
    cuda = device.type == "cuda"
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "driver": machine("cuda").get("driver") if cuda else None,
        "python": found["python"],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "triton": found["packages"]["triton"],
        "peers": {name: _version(name) for name in PEERS},
        "commit": found["git"],
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def ceilings(device: torch.device, seconds: float = 0.5) -> dict[str, float | None]:
    """Bytes per second of a large copy, read and written, and FLOP per second of a large bf16 product."""
    cuda = device.type == "cuda"
    source = torch.randn(2**29 if cuda else 2**22, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    copy = time_eager([lambda: target.copy_(source)], device, seconds)
    side = 8192 if cuda else 256
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    product = time_eager([lambda: a @ b], device, seconds)
    return {
        "copy_bytes_per_s": 2 * source.nbytes / copy.median * 1e3,
        "matmul_flops_per_s": 2 * side**3 / product.median * 1e3,
        "datasheet_flops_per_s": peak_flops(device),
    }


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory; on the CPU inputs are not rotated."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
