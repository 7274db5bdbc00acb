"""CUDA C++ kernels on the CPU: the same text as plain C++, threads of a cluster as fibres that meet where they must.

Fibres run one after the other, in an order that a test may turn round: results that change with it are a race. What an
asynchronous copy writes is not a number until a thread waits for it. Copies into shared memory may only read tensors
that the kernel was given, and nothing may write around them; what is read there is not a number.
"""

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
BUILT = Path(tempfile.gettempdir()) / "rnn_lab_emulated"
"""Libraries stay between runs: compiling one takes about a second."""
MARGIN = 4096
"""Bytes before and after a tensor that are no part of it."""
COPIED = "*target = valid ? *source :"
"""The copy in matrix.cuh that is not asynchronous."""


def available():
    """Whether there is a compiler."""
    return shutil.which("g++") is not None


@cache
def _library(text, name):
    from rnn_lab.kernels.cuda_jit import skeleton

    source = text
    for part in ("ptx", "cluster", "warpgroup"):
        source = source.replace(skeleton(part), (HERE / f"emulated_{part}.h").read_text())
    assert source != text
    assert source.count(COPIED) == ("copy_tile" in text)
    source = source.replace(COPIED, COPIED.replace("*source", "*emulated::inside(source)"))
    source += '\nextern "C" const char* go(const void* args, unsigned grid, int threads, int cluster, int reversed, '
    source += "const emulated::Range* ranges, int n) {\n    emulated::memory = ranges, emulated::tensors = n;\n"
    source += "    static recurrence::Args a;\n    std::memcpy(&a, args, sizeof a);\n"
    source += f"    emulated::run(grid, threads, cluster, reversed, [] {{ recurrence::{name}(a); }});\n"
    source += "    return emulated::fault;\n}\n"
    BUILT.mkdir(exist_ok=True)
    path = BUILT / f"{hashlib.sha256(source.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        file, made = (path.with_suffix(f".{os.getpid()}.{suffix}") for suffix in ("cc", "tmp"))
        file.write_text(source)
        subprocess.run(["g++", "-std=c++17", "-O0", "-w", "-shared", "-fPIC", str(file), "-o", str(made)], check=True)
        made.rename(path)
        file.unlink()
    go = ctypes.CDLL(str(path)).go
    go.restype = ctypes.c_char_p
    return go


class Apart:
    """A copy of a tensor's memory that has nothing next to it."""

    def __init__(self, x):
        last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
        self.x, self.size = x, (last + 1) * x.element_size() if x.numel() else 0
        # Not a number, as which floating-point type it is read; an index that exists.
        self.filled = 0 if x.dtype == torch.int64 else 255
        room = torch.full((self.size + 2 * MARGIN,), self.filled, dtype=torch.uint8)
        before = MARGIN - (room.data_ptr() - x.data_ptr()) % 64  # aligned as the tensor is
        self.margins = room[:before], room[before + self.size :]
        self.first = room.data_ptr() + before
        self.last = self.first + self.size
        ctypes.memmove(self.first, x.data_ptr(), self.size)

    def back(self):
        """What the kernel wrote."""
        assert all((m == self.filled).all() for m in self.margins), "a kernel wrote outside the tensors' memory"
        ctypes.memmove(self.x.data_ptr(), self.first, self.size)


class EmulatedKernel:
    """In the place of cuda_jit.Kernel."""

    reversed = False

    def __init__(self, text, name, signature, file="kernel.cu", options=(), cluster=(1, 1, 1)):
        self.text, self.name, self.signature, self.cluster = text, name, signature, cluster

    def __call__(self, grid, block, *values, shared=0):
        copies = {id(v): Apart(v) for v in values if isinstance(v, torch.Tensor)}
        tensors = [copies.get(id(v), v) for v in values]
        apart = list(copies.values())
        numbers = [v.first if isinstance(v, Apart) else 0 if v is None else v for v in tensors]
        ranges = struct.pack(f"{2 * len(apart)}Q", *(n for v in apart for n in (v.first, v.last)))
        arguments = struct.pack(self.signature[0], *numbers)
        assert shared <= 227 * 1024
        go = _library(self.text, self.name)
        fault = go(arguments, grid[0], block[0], self.cluster[0], int(EmulatedKernel.reversed), ranges, len(apart))
        assert fault is None, fault.decode()
        for v in apart:
            v.back()
