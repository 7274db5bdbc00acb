"""The optimizer's kernels compile for the GPUs that matter, without spills and with 16-byte accesses."""

import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

COUNTERS = {"counters": "*fp64", "settings": "*fp64", "coefficients": "*fp32", "skip": "*fp32", "G": "i32"}
TABLES = {
    "tensors": "*i64", "chunks": "*i32", "coefficients": "*fp32", "scale": "*fp32", "skip": "*fp32", "G": "i32",
}  # fmt: skip


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["_advance", "_update"])
def test_compiles(tmp_path, capability, name):
    from rnn_lab.kernels.updates import schedule_free_triton as kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"GROUPS": 2} if name == "_advance" else {n: getattr(kernels, n) for n in ("CHUNK", "BLOCK", "COLUMNS")}
    signature = COUNTERS if name == "_advance" else TABLES
    source = ASTSource(
        getattr(kernels, name), signature={**signature, **dict.fromkeys(constants, "constexpr")}, constexprs=constants
    )
    warps = 1 if name == "_advance" else 4
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    (tmp_path / "cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run(
        [tool, "--dump-resource-usage", tmp_path / "cubin"], capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"(?:STACK|LOCAL):(\d+)", report)) == {"0"}
    assert int(re.search(r"REG:(\d+)", report)[1]) <= 128
    if name == "_update":
        blocks = kernels.CHUNK // kernels.BLOCK
        per_block = kernels.BLOCK // (32 * warps * 4)
        assert compiled.asm["ptx"].count("ld.global.v4.b32") == 4 * blocks * per_block
        assert compiled.asm["ptx"].count("st.global.v4.b32") == 3 * blocks * per_block
