"""A run that compiles nothing does not import the compiler, and where there is one, optimizers stay out of its code."""

import subprocess
import sys

RUN = """
import sys
from rnn_lab_cli.main import main

argv = "fit --model e61 --dim 16 --depth 1 --steps 2 --batch-size 2 --seq-len 8 -o eval.tokens=16".split()
assert main([*argv, "--out", sys.argv[1]]) == 0
assert main(["resume", sys.argv[1], "--steps", "3"]) == 0
print("compiler:", *sorted({"torch._dynamo", "torch._inductor", "sympy"} & sys.modules.keys()))
"""

COMPILED = """
import sys
import torch
from rnn_lab.train import optimizers, uncompiled

weight = torch.nn.Parameter(torch.ones(2))
optimizer = optimizers.AdamWScheduleFree([weight], lr=0.1)
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
assert "torch._dynamo" not in sys.modules

from torch._dynamo.testing import CompileCounter

def between(x):
    y = x.sin()
    optimizer.zero_grad()
    return y.cos()

weight.grad, x, counted = torch.ones(2), torch.ones(2), CompileCounter()
assert torch.equal(torch.compile(between, backend=counted)(x), x.sin().cos())
assert weight.grad is None and (counted.frame_count, counted.op_count) == (2, 2)
for name in uncompiled.METHODS:
    kept = getattr(getattr(torch.optim.Optimizer, name).__wrapped__, "__dynamo_disable")
    ours = kept.__module__ == uncompiled.__name__
    assert ours == (name != "zero_grad"), name
"""


def python(program, *args):
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_and_its_resumption_do_not_import_the_compiler(tmp_path):
    assert python(RUN, str(tmp_path / "run")).splitlines()[-1] == "compiler:"


def test_compiled_code_still_leaves_an_optimizer_out():
    python(COMPILED)
