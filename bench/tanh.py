"""Ways to compute tanh in the matrix kernels: what each costs, and what it does to results.

    python bench/tanh.py --json docs/benchmarks/h100-tanh.json

The recurrence of E88 (32 heads) and E74 at B 32, T 512, bf16, under a CUDA graph, with one function of functions.cuh
exchanged. Errors are relative to the plain loop in fp64 on 2 sequences of 512 steps: of the results, and of the
gradient that is furthest off.
"""

import argparse
import json
import re
import sys
from typing import Any
from unittest import mock

import torch
from asked import file, on_gpu, seconds
from rnn_lab.bench import machine
from rnn_lab.bench.calls import Bound, bind
from rnn_lab.bench.cases import Case, Source
from rnn_lab.bench.timing import time_graph
from rnn_lab.config import ModelSection
from rnn_lab.kernels import cuda_jit
from rnn_lab.kernels.matrix import cuda as matrix_cuda
from rnn_lab.kernels.matrix import engine as matrix
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry
from rnn_lab.tensors import relative_error
from rnn_lab_cli.bench_options import name_and_fields
from run import say

MODELS = (
    "e88:dim=1024,n_state=32,n_heads=32",
    "e88:dim=2048,n_state=64,n_heads=32",
    "e74:dim=640,n_state=32,nonlinearity=tanh",
)

PACKED = """
    unsigned both;
    const float scale = 1.0f / TANH_SCALE;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(x[i + 1] * scale), "f"(x[i] * scale));
    asm("tanh.approx.f16x2 %0, %0;" : "+r"(both));
    const __half2 pair = *reinterpret_cast<const __half2*>(&both);
    x[i] = __low2float(pair), x[i + 1] = __high2float(pair);
"""
POLYNOMIAL = """
__device__ __forceinline__ float polynomial_exp2(float x) {
    x = fmaxf(x, -126.0f);
    const float shifted = x + 12582912.0f;  // 1.5 * 2 ** 23: its last bits are the nearest integer
    const float f = x - (shifted - 12582912.0f);
    float p = fmaf(f, 1.3400432653725147e-03f, 9.676037356257439e-03f);
    p = fmaf(f, p, 5.550327152013779e-02f);
    p = fmaf(f, p, 2.402210682630539e-01f);
    p = fmaf(f, p, 6.931471824645996e-01f);
    p = fmaf(f, p, 1.0f);
    return __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
}
"""
EACH = "for (int i = 0; i < N; ++i) x[i] = scaled_tanh(x[i]);"
ONE = "{ return fmaf(reciprocal(fast_exp2(x) + 1.0f), -2.0f, 1.0f); }"
APPROX = '{ float r; asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x * (1.0f / TANH_SCALE))); return r; }'

VARIANTS: dict[str, dict[str, str]] = {
    "exp2 each, a reciprocal for four": {},
    "exp2 and a reciprocal each": {"tile": EACH},
    "tanh.approx.f32": {"one": APPROX, "tile": EACH},
    "tanh.approx.f16x2": {"tile": f"for (int i = 0; i < N; i += 2) {{{PACKED}}}"},
    "polynomial exp2, a reciprocal for four": {"exp2": "polynomial_exp2(lesser(x[i], 28.0f))"},
    "polynomial exp2 for half, a reciprocal for four": {
        "exp2": "(i % 2 ? polynomial_exp2(lesser(x[i], 28.0f)) : fast_exp2(lesser(x[i], 28.0f)))"
    },
}


def main() -> int:
    """Measure every variant, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--seconds", type=seconds, default=0.3, help="per measurement; default: 0.3")
    parser.add_argument("--json", type=file, metavar="FILE", help="also write the figures there")
    options = on_gpu(parser)
    header, rows = machine.header(torch.device("cuda")), []
    say(f"{'model':<38}{'tanh':<50}{'forward, ms':<13}{'both, ms':<11}{'error':<11}of gradients")
    for model in options.models:
        for name, change in VARIANTS.items():
            with changed(change):
                row = {"model": model, "tanh": name} | measured(model, options.seconds)
            say(
                f"{model:<38}{name:<50}{row['forward_ms']:<13.4f}{row['both_ms']:<11.4f}"
                f"{row['error']:<11.2e}{row['gradient_error']:.2e}"
            )
            rows.append(row)
    if options.json:
        page = {"kind": "tanh", "header": header, "rows": rows}
        options.json.write_text(json.dumps(page, indent=1) + "\n")
    return 0


def changed(change: dict[str, str]) -> Any:
    """The kernels' text with other functions, while this holds."""
    matrix.kernel.cache_clear()
    return mock.patch.object(matrix_cuda, "skeleton", lambda *parts: patched(cuda_jit.skeleton(*parts), change))


def patched(text: str, change: dict[str, str]) -> str:
    """`one` is the function of one number, `tile` the body of that of several, `exp2` what that one calls."""
    if "exp2" in change:
        head = "// Of N numbers, N at most 4, in place"
        text = replaced(text, head, POLYNOMIAL + head)
        text = replaced(text, "fast_exp2(lesser(x[i], 28.0f))", change["exp2"])
    if "one" in change:
        text = replaced(text, ONE, change["one"])
    if "tile" in change:
        found = re.search(r"void scaled_tanh\(float\* x\) \{\n(.*?)\n\}\n", text, re.DOTALL)
        assert found is not None
        text = replaced(text, found[1], f"#pragma unroll\n    {change['tile']}")
    return text


def replaced(text: str, old: str, new: str) -> str:
    """With the one place where `old` stands changed; the change must not be lost on a text that has moved on."""
    assert text.count(old) == 1, f"functions.cuh no longer has {old!r} once"
    return text.replace(old, new)


def measured(model: str, budget: float) -> dict[str, float]:
    """Times at B 32, T 512, errors at B 2."""
    name, fields = name_and_fields(model)
    spec = model_spec(ModelSection(name=name, depth=1, fields=fields), registry())
    device = torch.device("cuda")
    source = Source(name, spec, torch.bfloat16, device)
    bound = ours(source.case("recurrence", 32, 512))
    small = source.case("recurrence", 2, 512)
    (results, gradients), exact = ours(small).forward_backward(), bind(small.op.reference, small.args, torch.float64)
    wanted, wanted_gradients = exact.forward_backward()
    errors = [relative_error(a, b) for a, b in zip(results, wanted, strict=True)]
    pairs = [(a, b) for a, b in zip(gradients, wanted_gradients, strict=True) if a is not None and b is not None]
    return {
        "forward_ms": time_graph([bound.inference], device, budget).median,
        "both_ms": time_graph([bound.forward_backward], device, budget).median,
        "error": max(errors),
        "gradient_error": max(relative_error(a, b) for a, b in pairs),
    }


def ours(case: Case) -> Bound:
    """The case by the matrix kernels, certified or not: that is what is asked."""
    backend = next(b for b in case.op.backends if b.name == "matrix")
    if reason := backend.refuses(*case.args):
        sys.exit(f"{case.model}: {reason}")
    return bind(backend.run, case.args)


if __name__ == "__main__":
    sys.exit(main())
