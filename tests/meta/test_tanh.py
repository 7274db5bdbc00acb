"""The variants of tanh that bench/tanh.py measures are other texts, and each compiles."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from rnn_lab.kernels import cuda_jit
from rnn_lab.kernels.matrix import cuda as matrix_cuda

BENCH = Path(__file__).resolve().parents[2] / "bench"
PARTS = ("ptx", "functions", "matrix")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_tanh", BENCH / "tanh.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("run", "asked"):
        sys.modules.pop(name, None)


def test_every_variant_is_another_text_that_compiles(script):
    pytest.importorskip("cuda.bindings.nvrtc")
    plain, texts = cuda_jit.skeleton(*PARTS), set()
    for change in script.VARIANTS.values():
        with script.changed(change):
            text = matrix_cuda.skeleton(*PARTS)
        assert (text == plain) == (not change)
        functions = text[: text.index('#line 1 "matrix.cuh"')]
        user = 'extern "C" __global__ void f(float* x) { recurrence::scaled_tanh<4>(x); }'
        cuda_jit.compile_cuda(f"{functions}\n{user}", "sm_90a")
        texts.add(text)
    assert len(texts) == len(script.VARIANTS)


def test_the_polynomial_is_close(script):
    """Its coefficients, in fp32 as the kernel has them."""
    found = [float(line.split("f, ")[1].split("f)")[0]) for line in script.POLYNOMIAL.splitlines() if "1.34004" in line]
    rest = [float(line.rsplit(" ", 1)[1].rstrip("f);")) for line in script.POLYNOMIAL.splitlines() if "fmaf" in line]
    f = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)
    p = f * found[0] + rest[0]
    for c in rest[1:]:
        p = f * p + c
    assert ((p - 2**f) / 2**f).abs().max() < 3e-7


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_it_says_so(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tanh.py"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "there is none that torch can use" in capsys.readouterr().err
