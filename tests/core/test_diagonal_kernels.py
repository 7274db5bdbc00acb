"""What the element-wise kernels are compiled for."""

import pytest

pytest.importorskip("triton")
from rnn_lab.kernels.diagonal.engine_triton import kernels
from rnn_lab.kernels.diagonal.source import Program
from rnn_lab.kernels.expression import add, mul, var


def test_no_kernel_is_compiled_for_the_multiple_that_a_length_is():
    linear = Program(2, 0, add(mul(var("x0"), var("h")), var("x1")), var("s"))
    found = kernels(linear.text)
    for tuned in (found.forward, found.backward, found.ends, found.adjoint_ends):
        free = {p.name for p in tuned.kernel.params if p.do_not_specialize_on_alignment}
        assert free == {"T", "LENGTH", "TILES"}
