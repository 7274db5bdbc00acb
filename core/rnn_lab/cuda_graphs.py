"""Capturing CUDA graphs, and what a capture that fails leaves behind in torch."""

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

_shared: dict[int, Any] = {}
"""The memory pool of each device's graphs that share one."""


def capture(
    body: Callable[[], object], stream: torch.cuda.Stream | None = None, shared: bool = False
) -> torch.cuda.CUDAGraph:
    """A graph of what `body` launches.

    Args:
        body: runs once, on `stream`, without anything being computed.
        stream: of the capture; default: one of torch's own.
        shared: whether the graph takes its memory from a pool that it shares with others which say so.

    Raises:
        Exception: what stood in the way; device, allocator and random numbers are as before.

    """
    gc.collect()  # so that no graph of old is destroyed in the midst of a capture, which would spoil it
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    device = torch.cuda.current_device() if stream is None else stream.device_index
    if shared:
        pool = _shared.setdefault(device, pool)
    drawn = torch.cuda.default_generators[device].get_offset()
    try:
        # thread_local: what another thread does meanwhile, a tracker's for one, must not spoil the capture.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            body()
    except BaseException:
        _leave(device, pool)
        _end_of_random_capture(device, drawn)
        raise
    return graph


def _leave(device: int, pool: Any) -> None:
    """Close the memory pool that a failed capture leaves open, as torch does not, and take this graph's share from it.

    While one is open, freeing cached memory is an internal error of torch's allocator. That of pinned memory cannot be
    told, and takes the pool for one in use forever: graphs that come share another.
    """
    if _shared.get(device) == pool:
        del _shared[device]
    with suppress(AttributeError, RuntimeError):  # torch renamed them, or closed the pool after all
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


def _end_of_random_capture(device: int, drawn: int) -> None:
    """Give the device's generator the state that it had, not in a capture as a failed one leaves it."""
    generator = torch.cuda.default_generators[device]
    fresh = torch.Generator(torch.device("cuda", device)).manual_seed(generator.initial_seed())
    fresh.set_offset(drawn)
    generator.graphsafe_set_state(fresh.clone_state())
