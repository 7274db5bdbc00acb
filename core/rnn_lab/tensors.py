"""What everything that computes asks: how far apart two tensors are, and whether it was memory that lacked."""

import torch
from torch import Tensor


def relative_error(actual: Tensor, reference: Tensor) -> float:
    """RMS(actual - reference) / RMS(reference) in fp64; infinite where a value is not finite, 0 for empty tensors."""
    if actual.numel() == 0:
        return 0.0
    error = (actual.detach().double() - reference.detach().double()).square().mean().sqrt().item()
    scale = reference.detach().double().square().mean().sqrt().item()
    if error == 0:
        return 0.0
    return error / scale if scale > 0 and error == error else float("inf")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised this for want of memory, on a GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("not enough memory", "can't allocate memory")
    )
