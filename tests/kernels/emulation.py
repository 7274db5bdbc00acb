"""CUDA C++ kernels on the CPU: the same text as plain C++, threads of a block as fibres that meet where they must.

Fibres run one after the other, in an order that a test may turn round: results that change with it are a race.
"""

import ctypes
import hashlib
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
BUILT = Path(tempfile.gettempdir()) / "rnn_lab_emulated"
"""Libraries stay between runs: compiling one takes a second or two."""


def available():
    """Whether there is a compiler."""
    return shutil.which("g++") is not None


@cache
def _library(text, name):
    from rnn_lab.kernels.cuda_jit import skeleton

    source = text.replace(skeleton("ptx"), (HERE / "emulated_ptx.h").read_text())
    assert source != text
    source += '\nextern "C" void go(const void* args, unsigned grid, int threads, int reversed) {\n'
    source += "    static recurrence::Args a;\n    std::memcpy(&a, args, sizeof a);\n"
    source += f"    emulated::run(grid, threads, reversed, [] {{ recurrence::{name}(a); }});\n}}\n"
    BUILT.mkdir(exist_ok=True)
    path = BUILT / f"{hashlib.sha256(source.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        file, made = path.with_suffix(".cc"), path.with_suffix(".tmp")
        file.write_text(source)
        subprocess.run(["g++", "-std=c++17", "-O0", "-w", "-shared", "-fPIC", str(file), "-o", str(made)], check=True)
        made.rename(path)
    return ctypes.CDLL(str(path))


class EmulatedKernel:
    """In the place of cuda_jit.Kernel."""

    reversed = False

    def __init__(self, text, name, signature, file="kernel.cu"):
        self.text, self.name, self.signature = text, name, signature

    def __call__(self, grid, block, *values, shared=0):
        numbers = [v.data_ptr() if isinstance(v, torch.Tensor) else 0 if v is None else v for v in values]
        arguments = struct.pack(self.signature[0], *numbers)
        assert shared <= 227 * 1024
        _library(self.text, self.name).go(arguments, grid[0], block[0], int(EmulatedKernel.reversed))
