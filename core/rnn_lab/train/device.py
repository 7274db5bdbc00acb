"""Devices: choosing one, what it can do at most, how much memory a run took."""

import resource
from contextlib import AbstractContextManager, nullcontext

import torch

from rnn_lab.errors import ConfigError

PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 6000 Ada": 364e12}
"""Dense bf16 rate of the datasheet per second, by part of the device's name."""


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA where there is one.

    A GPU with a number becomes torch's current one, where kernels are launched.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"train.device = {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"train.device = {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"train.device = {name!r}: torch sees {torch.cuda.device_count()} CUDA devices here")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Dtype of matrix products: bf16 autocast on CUDA, fp32 on the CPU unless told otherwise."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """bf16 autocast over fp32 master weights, or nothing for fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def peak_flops(device: torch.device) -> float | None:
    """Datasheet bf16 rate of a known GPU, None elsewhere."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAK_BF16_FLOPS.items() if part in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that torch held on a GPU, or the largest resident size of this process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
