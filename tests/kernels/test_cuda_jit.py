"""CUDA C++ without a toolkit: compiling, caching and messages need no GPU, launching does."""

import ctypes
import re
import struct

import pytest
import torch
from rnn_lab.errors import KernelUnavailable
from rnn_lab.kernels import cuda_jit
from rnn_lab.kernels.cuda_jit import Arguments, CudaCompileError, Kernel

pytest.importorskip("cuda.bindings.nvrtc")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SCALE = """
#include <cuda_bf16.h>
extern "C" __global__ void scale(const __nv_bfloat16* x, float* y, float factor, long long n) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < n) y[i] = factor * __bfloat162float(x[i]);
}
"""
REVERSE = """
extern "C" __global__ void reverse(const float* x, float* y, int n) {
    extern __shared__ float row[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = row[n - 1 - i];
}
"""
RANKS = """
extern "C" __global__ void ranks(int* out) {
    unsigned rank, size;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    out[blockIdx.x] = rank + 100 * size;
}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    return tmp_path / "cubins"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_compiles_without_a_gpu(arch):
    (found,) = cuda_jit.resources(SCALE, arch).values()
    assert 0 < found.registers < 32
    assert (found.stack, found.spilled, found.shared) == (0, 0, 0)


def test_resources_show_a_spill():
    spilling = """
extern "C" __global__ void __launch_bounds__(1024, 2) k(float* x) {
    float a[96];
    for (int i = 0; i < 96; ++i) a[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 96; ++i) x[i * 1024 + threadIdx.x] = a[95 - i] * a[i];
}
"""
    assert cuda_jit.resources(spilling, "sm_90a")["k"].spilled > 0


def test_a_wrong_source_shows_the_log_with_its_lines():
    with pytest.raises(CudaCompileError, match=r"broken\.cu(.|\n)*broken\.cu\(3\): error") as caught:
        cuda_jit.compile_cuda("\n\n__device__ int f() { return nothing; }\n", "sm_90a", "broken.cu")
    assert "nothing" in str(caught.value)
    assert isinstance(caught.value, KernelUnavailable)


def test_cubins_are_kept_and_corrupt_ones_made_again(own_cache, monkeypatch):
    compiled = []
    real = cuda_jit.compile_cuda
    monkeypatch.setattr(cuda_jit, "compile_cuda", lambda *args: compiled.append(args) or real(*args))
    first = cuda_jit.cubin(SCALE, "sm_90a")
    assert cuda_jit.cubin(SCALE, "sm_90a") == first
    assert len(compiled) == 1
    (path,) = own_cache.iterdir()
    for damage in (b"", path.read_bytes()[:-9], b"x" + path.read_bytes()[1:]):
        path.write_bytes(damage)
        assert cuda_jit.cubin(SCALE, "sm_90a") == first
    assert len(compiled) == 4
    cuda_jit.cubin(SCALE, "sm_80")
    cuda_jit.cubin(SCALE, "sm_90a", "kernel.cu", ["--maxrregcount=32"])
    assert len(list(own_cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path / "file"))
    assert cuda_jit.cubin(SCALE, "sm_80")


def test_arguments_stand_where_the_driver_looks():
    arguments = Arguments(["P", "2q", "f", "i"])
    address = arguments.pack([7, -1, 2**40, 0.5, -3])
    pointers = (ctypes.c_void_p * 4).from_address(address)
    read = [struct.unpack(f, ctypes.string_at(p, struct.calcsize(f))) for f, p in zip("PqfI", pointers, strict=True)]
    assert read == [(7,), (-1,), (0.5,), (2**32 - 3,)]
    assert struct.unpack("2q", ctypes.string_at(pointers[1], 16)) == (-1, 2**40)


def test_architectures():
    assert [cuda_jit.architecture(c) for c in ((8, 0), (9, 0), (10, 0))] == ["sm_80", "sm_90a", "sm_100"]


def test_refusals_say_why(monkeypatch):
    assert "cpu" in (cuda_jit.refuses_cuda(torch.zeros(2)) or "")
    monkeypatch.setattr(cuda_jit, "missing", lambda: "cuda-bindings is not installed")
    with pytest.raises(KernelUnavailable, match=re.escape("cuda-bindings is not installed")):
        cuda_jit.compile_cuda(SCALE, "sm_90a")


class TestOnAGPU:
    pytestmark = needs_gpu

    def test_launches_on_the_current_stream(self):
        scale = Kernel(SCALE, "scale", "PPfq")
        x = torch.randn(1000, device="cuda", dtype=torch.bfloat16)
        y = torch.full((1000,), float("nan"), device="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            scale((4, 1, 1), (256, 1, 1), x, y, 3.0, 1000)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(y, x.float() * 3)

    def test_inside_a_graph(self):
        scale = Kernel(SCALE, "scale", "PPfq")
        x = torch.zeros(1000, device="cuda", dtype=torch.bfloat16)
        y = torch.empty(1000, device="cuda")
        scale((4, 1, 1), (256, 1, 1), x, y, 2.0, 1000)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scale((4, 1, 1), (256, 1, 1), x, y, 2.0, 1000)
        x.fill_(1.5)
        graph.replay()
        assert torch.equal(y, torch.full_like(y, 3.0))

    def test_more_shared_memory_than_comes_unasked(self):
        n = 20_000
        x, y = torch.randn(n, device="cuda"), torch.empty(n, device="cuda")
        Kernel(REVERSE, "reverse", "PPi")((1, 1, 1), (512, 1, 1), x, y, n, shared=4 * n)
        assert torch.equal(y, x.flip(0))

    @pytest.mark.parametrize("size", [4, 8, 16])
    def test_clusters(self, size):
        if torch.cuda.get_device_capability() < (9, 0):
            pytest.skip("needs Hopper")
        out = torch.empty(size * 2, device="cuda", dtype=torch.int32)
        Kernel(RANKS, "ranks", "P", cluster=(size, 1, 1))((size * 2, 1, 1), (32, 1, 1), out)
        assert out.tolist() == [i % size + 100 * size for i in range(size * 2)]

    def test_from_a_thread_that_has_no_context(self):
        import threading

        scale = Kernel(SCALE, "scale", "PPfq")
        x, y = torch.ones(8, device="cuda", dtype=torch.bfloat16), torch.empty(8, device="cuda")
        thread = threading.Thread(target=lambda: scale((1, 1, 1), (256, 1, 1), x, y, 2.0, 8))
        thread.start()
        thread.join()
        assert y.tolist() == [2.0] * 8
