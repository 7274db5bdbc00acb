"""What every Triton kernel of rnn-lab needs: may it run here, which configuration, and functions that are exact enough.

Kernels load in any dtype, compute in fp32 and cast at the store. `TRITON_INTERPRET=1`, set before Python starts, runs
them on the CPU, one element-wise operation at a time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial, wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
P = ParamSpec("P")
R = TypeVar("R")


def constant(fact: Callable[P, R]) -> Callable[P, R]:
    """As functools.cache, for what never changes on a machine: torch.compile asks once and traces nothing of it."""
    known = cast("Callable[P, R]", cache(fact))

    @wraps(fact)
    def ask(*args: P.args, **kwargs: P.kwargs) -> R:
        return known(*args, **kwargs)

    # What torch.compiler.assume_constant_result sets, which imports the compiler: seconds for whoever never compiles.
    ask._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return ask


@constant
def _installed() -> bool:
    return find_spec("triton") is not None


@constant
def capability(index: int) -> tuple[int, int]:
    """Compute capability of a GPU."""
    return torch.cuda.get_device_capability(index)


@constant
def multiprocessors(index: int) -> int:
    """Of a GPU."""
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def refuses_gpu(*tensors: Tensor) -> str | None:
    """Why no kernel of ours can take these tensors, or None: dtype, device, or a GPU too old."""
    if reason := _refuses_dtype(*tensors):
        return reason
    device = tensors[0].device
    if device.type != "cuda":
        return f"tensors are on {device.type}, not on cuda"
    return "the GPU is older than sm_80" if capability(device.index or 0) < (8, 0) else None


def _refuses_dtype(*tensors: Tensor) -> str | None:
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"tensors are {str(tensor.dtype).removeprefix('torch.')}; its kernels take fp32, bf16 and fp16"
    return None


def refuses_triton(*tensors: Tensor) -> str | None:
    """Why Triton kernels cannot take these tensors, or None: as refuses_gpu, or no Triton."""
    if INTERPRETED:
        on_cpu = tensors[0].device.type == "cpu"
        return _refuses_dtype(*tensors) if on_cpu else "TRITON_INTERPRET=1 runs kernels on the CPU only"
    return refuses_gpu(*tensors) or (None if _installed() else "triton is not installed")


SMALL = 2**16
"""A call whose tensors all have fewer elements is not worth the seconds that compiling other configurations takes."""


class Tuned:
    """A Triton kernel and the few configurations from which the fastest is taken, once per `key`.

    `key` names arguments that decide the speed: widths and flags, never a number of steps. Triton keeps the timings
    on disk. A SMALL call takes the first configuration. `trying(i)` takes the i-th instead: a certificate has to hold
    for whatever may be chosen.
    """

    def __init__(self, kernel: Any, configs: Sequence[Any], key: Sequence[str]) -> None:
        import triton

        self.kernel, self.configs = kernel, list(configs)
        self._tuner = None
        if len(self.configs) > 1 and not INTERPRETED:
            self._tuner = triton.autotune(self.configs, key=list(key), cache_results=True)(kernel)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """Launcher for a grid, which may be a function of the configuration."""
        index = tried(len(self.configs))
        if index is None and self._tuner is not None:
            return partial(self._launch, grid)
        return self._configured(grid, index or 0)

    def _configured(self, grid: Any, index: int) -> Callable[..., Any]:
        return partial(self.kernel[grid], **self.configs[index].all_kwargs())

    def _launch(self, grid: Any, *args: Any, **named: Any) -> Any:
        tensors = (value for value in (*args, *named.values()) if isinstance(value, Tensor))
        small = all(tensor.numel() < SMALL for tensor in tensors)
        assert self._tuner is not None
        launch = self._configured(grid, 0) if small else self._tuner[grid]
        return launch(*args, **named)


@dataclass
class Trial:
    """Every tuned kernel runs in configuration `index`, modulo how many it has; the most of any that ran is `count`."""

    index: int
    count: int = 1


_trial: Trial | None = None


@contextmanager
def trying(index: int) -> Iterator[Trial]:
    """A trial of configuration `index`, for as long as the block lasts."""
    global _trial
    before, _trial = _trial, Trial(index)
    try:
        yield _trial
    finally:
        _trial = before


def tried(count: int) -> int | None:
    """Which of a kernel's `count` configurations a surrounding trial asks for, or None where it may choose.

    Under the interpreter one stands for all.
    """
    if _trial is None:
        return None
    _trial.count = max(_trial.count, 1 if INTERPRETED else count)
    return _trial.index % count


def form(count: int) -> int | None:
    """As `tried`, for forms of a launch, which differ under the interpreter too."""
    if _trial is None:
        return None
    _trial.count = max(_trial.count, count)
    return _trial.index % count


def tuned(configs: Sequence[Any], key: Sequence[str]) -> Callable[[Any], Tuned]:
    """Decorator over `triton.jit`; see Tuned."""
    return lambda kernel: Tuned(kernel, configs, key)
