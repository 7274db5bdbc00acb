"""How busy the GPU says it is, sampled beside training by nvidia-ml-py where that is installed.

NVML's utilisation is the share of time in which some kernel was resident: one that holds a single multiprocessor counts
as busy. Read it beside tokens per second.
"""

import importlib
import threading
from collections.abc import Callable
from typing import Any

import torch

FIRST_STEP = 10
"""Samples of earlier steps, which compile and warm up, are left out."""


class GpuLoad:
    """Samples utilisation and used memory of one GPU in a thread until it is closed.

    Args:
        device: of the run.
        seconds: between samples; 0: none.
        note: hears why there are none on a GPU.

    """

    def __init__(self, device: torch.device, seconds: float, note: Callable[[str], None]) -> None:
        self.samples: list[tuple[float, float]] = []
        self._seconds, self._fresh = seconds, 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._read: Callable[[], tuple[float, float]] | None = None
        if device.type != "cuda" or seconds <= 0:
            return
        try:
            self._read = _reader(device)
        except ImportError:
            return  # optional, and nobody asked for it
        except Exception as error:
            note(f"no figures of the GPU's load: {type(error).__name__}: {error}")

    def step(self, k: int) -> dict[str, float]:
        """Means over the samples since the last step that had any, as columns of its line."""
        if self._read is not None and self._thread is None and k >= FIRST_STEP:
            self._thread = threading.Thread(target=self._sample, name="gpu-load", daemon=True)
            self._thread.start()
        new = self.samples[self._fresh :]
        if not new:
            return {}
        self._fresh += len(new)
        return {"gpu_util": _mean([u for u, _ in new]), "gpu_memory_used_bytes": new[-1][1]}

    def summary(self) -> dict[str, float] | None:
        """Mean and 10th percentile of utilisation in percent, over the session; None without samples."""
        found = sorted(u for u, _ in self.samples)
        if not found:
            return None
        return {"util_mean": _mean(found), "util_p10": found[len(found) // 10], "samples": len(found)}

    def close(self) -> None:
        """End the thread; may be called more than once."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        assert self._read is not None
        while not self._ended.wait(self._seconds):
            try:
                self.samples.append(self._read())
            except Exception:  # a driver that answers no more must not end a run
                return


def _reader(device: torch.device) -> Callable[[], tuple[float, float]]:
    """What reads utilisation in percent and used bytes.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        Exception: NVML has no such GPU, or gives no figures of it.

    """
    nvml: Any = importlib.import_module("pynvml")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def read() -> tuple[float, float]:
        return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu), float(nvml.nvmlDeviceGetMemoryInfo(handle).used)

    read()
    return read


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
