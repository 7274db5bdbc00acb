"""CUDA C++ kernels compiled at first use, without a CUDA toolkit: NVRTC as PyTorch's CUDA wheels bring it.

A `Kernel` is CUDA C++ text, the name of one `extern "C"` kernel in it and the layout of its parameters. The first call
on a device compiles the text to a cubin, which is kept on disk, and loads it; every call launches on torch's current
stream, so that it also works while a CUDA graph is captured. Compiling needs no GPU: `compile_cuda` and `resources`.
Headers there are: `cuda_bf16.h`, `cuda_fp16.h` and what they include; cooperative groups and `cuda/std` are not.
"""

import ctypes
import hashlib
import importlib.util
import json
import re
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnn_lab.errors import KernelUnavailable
from rnn_lab.kernels.triton_support import constant, refuses_gpu
from rnn_lab.system.atomic import write_bytes_atomic
from rnn_lab.system.paths import cache_dir

STATIC_SHARED = 48 * 1024
"""Bytes of shared memory that a block gets without asking."""
PORTABLE_CLUSTER = 8
"""Blocks in the largest cluster that every Hopper GPU has."""


class CudaCompileError(KernelUnavailable):
    """NVRTC refused a source; the text is its log, with the lines of the source."""


@dataclass(frozen=True)
class Resources:
    """What one kernel takes per thread (`registers`, `stack` and `spilled` bytes) and per block (`shared` bytes)."""

    registers: int
    stack: int
    spilled: int
    shared: int


@cache
def skeleton(*parts: str) -> str:
    """Text from the `.cuh` files of this folder and those in it, one after the other; messages name their lines."""
    found = {path.stem: path for path in Path(__file__).parent.rglob("*.cuh")}
    return "\n".join(f'#line 1 "{part}.cuh"\n{found[part].read_text()}' for part in parts)


def refuses_cuda(*tensors: Tensor) -> str | None:
    """Why CUDA C++ kernels cannot take these tensors, or None: device, dtype, or nothing to compile them with."""
    return refuses_gpu(*tensors) or missing()


@constant
def missing() -> str | None:
    """What compiling lacks on this machine, or None."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except ImportError:
        return "cuda-bindings is not installed"
    except (OSError, RuntimeError):
        return "NVRTC is not installed (nvidia-cuda-nvrtc)"
    return None if _headers() else "the headers of the CUDA runtime are not installed (nvidia-cuda-runtime)"


def nvrtc_version() -> tuple[int, int] | None:
    """Version of the compiler, or None where there is none."""
    if missing():
        return None
    from cuda.bindings import nvrtc

    major, minor = _checked(nvrtc.nvrtcVersion())
    return int(major), int(minor)


def architecture(capability: tuple[int, int]) -> str:
    """NVRTC's name for a compute capability; Hopper with the instructions that only it has."""
    major, minor = capability
    return f"sm_{major}{minor}" + "a" * (capability == (9, 0))


def compile_cuda(text: str, arch: str, file: str = "kernel.cu", options: Sequence[str] = ()) -> tuple[bytes, str]:
    """The cubin of a source, and the compiler's log.

    Args:
        text: CUDA C++.
        arch: such as `sm_90a`.
        file: what the log calls the source.
        options: further options of NVRTC.

    Raises:
        CudaCompileError: the source is wrong.
        KernelUnavailable: there is no NVRTC.

    """
    if reason := missing():
        raise KernelUnavailable(f"CUDA C++ cannot be compiled: {reason}.")
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(text.encode(), file.encode(), 0, [], []))
    try:
        # What is not annotated is device code: NVRTC 13.0 asks it of lambdas, later ones do not.
        given = ["--std=c++17", "--device-as-default-execution-space", f"--include-path={_headers()}"]
        given += [f"--gpu-architecture={arch}", *options]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(given), [option.encode() for option in given])
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        log_text = log.decode(errors="replace").rstrip("\0 \n")
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CudaCompileError(f"{file} does not compile for {arch}:\n{log_text or error.name}")
        code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(code), log_text


def cubin(text: str, arch: str, file: str = "kernel.cu", options: Sequence[str] = ()) -> bytes:
    """As `compile_cuda`, from the disk where the same NVRTC has compiled the same text before."""
    key = json.dumps([text, file, arch, list(options), nvrtc_version()])
    path = cache_dir() / "cubins" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.cubin"
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    digest, code = kept[:32], kept[32:]
    if code and hashlib.sha256(code).digest() == digest:
        return code
    code, _ = compile_cuda(text, arch, file, options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, hashlib.sha256(code).digest() + code)
    except OSError:  # a folder that cannot be written costs the next process one compilation
        pass
    return code


def resources(text: str, arch: str, options: Sequence[str] = ()) -> dict[str, Resources]:
    """What each kernel of a source takes, as the assembler reports it. Needs no GPU.

    NVRTC keeps what it has compiled once, and then says nothing: if so it is told to compile again.
    """
    options = [*options, "--ptxas-options=-v"]
    _, log = compile_cuda(text, arch, options=options)
    if "Compiling entry function" not in log:
        _, log = compile_cuda(text, arch, options=[*options, "--no-cache"])
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        numbers = {
            key: sum(map(int, re.findall(pattern, part)))
            for key, pattern in {
                "registers": r"Used (\d+) registers",
                "stack": r"(\d+) bytes stack frame",
                "spilled": r"(\d+) bytes spill",
                "shared": r"(\d+) bytes smem",
            }.items()
        }
        found[name] = Resources(**numbers)
    return found


class Arguments:
    """Memory from which the driver reads a launch's parameters.

    `signature` has one struct format per parameter: `"PPq"` is two pointers and an int64, `["2P3q", "f"]` a structure
    of two pointers and three int64 and then a float.
    """

    def __init__(self, signature: Sequence[str]) -> None:
        form, offsets = "", []
        for part in signature:
            offsets.append(struct.calcsize(form))
            form += part
            form += f"{-struct.calcsize(form) % 16}x"
        self._struct = struct.Struct(form)
        self._memory = ctypes.create_string_buffer(self._struct.size)
        first = ctypes.addressof(self._memory)
        self._pointers = (ctypes.c_void_p * len(offsets))(*(first + offset for offset in offsets))
        self.address = ctypes.addressof(self._pointers)

    def pack(self, values: Sequence[Any]) -> int:
        """Write the values; the address of the parameters' addresses, which the driver takes."""
        self._struct.pack_into(self._memory, 0, *values)
        return self.address


@dataclass
class _Loaded:
    """A kernel on one device, and what a launch needs besides, so that it looks nothing up."""

    driver: Any
    function: Any
    context: Any
    address: int
    shared: int = STATIC_SHARED


class Kernel:
    """One CUDA C++ kernel.

    Args:
        text: the source.
        name: the kernel, declared `extern "C"`.
        signature: its parameters; see Arguments.
        file: what messages call the source.
        options: further options of NVRTC.
        cluster: blocks of a cluster along x, y and z.

    """

    def __init__(
        self,
        text: str,
        name: str,
        signature: Sequence[str],
        file: str = "kernel.cu",
        options: Sequence[str] = (),
        cluster: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        self.text, self.name, self.signature = text, name, signature
        self.file, self.options, self.cluster = file, tuple(options), cluster
        self._loaded: dict[int, _Loaded] = {}
        self._own = threading.local()

    def __call__(self, grid: tuple[int, int, int], block: tuple[int, int, int], *values: Any, shared: int = 0) -> None:
        """Launch on torch's current stream of the tensors' device.

        `values` are numbers, tensors, which become their addresses, and None, which becomes a null pointer.
        `shared` is the dynamic shared memory in bytes.
        """
        index = next(v.device.index for v in values if isinstance(v, Tensor))
        loaded = self._loaded.get(index) or self._load(index)
        driver = loaded.driver
        numbers = [v.data_ptr() if isinstance(v, Tensor) else 0 if v is None else v for v in values]
        # Per thread, because the driver reads them without the interpreter's lock.
        arguments = getattr(self._own, "arguments", None)
        if arguments is None:
            arguments = self._own.arguments = Arguments(self.signature)
        address = arguments.pack(numbers)
        stream = torch.cuda.current_stream(index).cuda_stream
        # A thread of autograd may have no context yet, or another device's.
        foreign = int(_checked(driver.cuCtxGetCurrent())) != loaded.address
        if foreign:
            _checked(driver.cuCtxPushCurrent(loaded.context))
        try:
            if shared > loaded.shared:
                attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _checked(driver.cuFuncSetAttribute(loaded.function, attribute, shared))
                loaded.shared = shared
            if self.cluster == (1, 1, 1):
                _checked(driver.cuLaunchKernel(loaded.function, *grid, *block, shared, stream, address, 0))
            else:
                config = self._config(grid, block, shared, stream)
                _checked(driver.cuLaunchKernelEx(config, loaded.function, address, 0))
        finally:
            if foreign:
                _checked(driver.cuCtxPopCurrent())

    def _config(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int, stream: int) -> Any:
        """Configuration of a launch in clusters."""
        from cuda.bindings import driver

        attribute, config = driver.CUlaunchAttribute(), driver.CUlaunchConfig()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        dim = attribute.value.clusterDim
        dim.x, dim.y, dim.z = self.cluster
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes, config.hStream = shared, driver.CUstream(stream)
        config.attrs, config.numAttrs = [attribute], 1
        return config

    def _load(self, index: int) -> _Loaded:
        """The kernel, compiled for a device and loaded there."""
        from cuda.bindings import driver

        context = _checked(driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(index))))
        code = cubin(self.text, architecture(torch.cuda.get_device_capability(index)), self.file, self.options)
        _checked(driver.cuCtxPushCurrent(context))
        try:
            kernel = _checked(driver.cuLibraryGetKernel(_library(code), self.name.encode()))
            function = _checked(driver.cuKernelGetFunction(kernel))
            if self.cluster[0] * self.cluster[1] * self.cluster[2] > PORTABLE_CLUSTER:
                attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
                _checked(driver.cuFuncSetAttribute(function, attribute, 1))
        finally:
            _checked(driver.cuCtxPopCurrent())
        self._loaded[index] = _Loaded(driver, function, context, int(context))
        return self._loaded[index]


@cache
def _library(code: bytes) -> Any:
    """The loaded cubin, which serves every kernel in it."""
    from cuda.bindings import driver

    return _checked(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))


@cache
def _headers() -> str | None:
    """Folder with cuda_bf16.h, where NVIDIA's own search finds it or in the wheel beside torch."""
    try:
        from cuda.pathfinder import find_nvidia_header_directory

        if found := find_nvidia_header_directory("cudart"):
            return str(found)
    except ImportError:  # an older cuda-pathfinder looks for libraries only
        pass
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    wheels = [path.parent for root in roots for path in root.glob("cu*/include/cuda_bf16.h")]
    return str(max(wheels)) if wheels else None


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of NVIDIA's bindings returns besides its error code."""
    error, *values = result
    if error.value:
        raise RuntimeError(f"{error.name}, raised by a CUDA C++ kernel of rnn-lab")
    return values[0] if len(values) == 1 else tuple(values)
