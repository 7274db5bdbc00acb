"""Launches of the kernels that source.py prints as Triton."""

import hashlib
import importlib.util
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from rnn_lab.kernels.diagonal.engine import Call
from rnn_lab.kernels.diagonal.source import TILE, parse, source
from rnn_lab.kernels.functions_triton import carry
from rnn_lab.kernels.triton_support import Tuned
from rnn_lab.system.atomic import write_bytes_atomic
from rnn_lab.system.paths import cache_dir

WIDE = 2**17
"""Channels of all sequences from which on a GPU is full whatever a program's share: tuned apart."""
KEY = ("C", "EVEN", "RESET", "MARKS", "EXACT", "PAIRS", "WIDE")


class Kernels:
    """The compiled kernels of one program."""

    def __init__(self, module: ModuleType) -> None:
        few = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in ((64, 1), (32, 1))]
        for name in ("forward", "backward", "ends", "adjoint_ends"):
            kernel = getattr(module, name, None)
            setattr(self, name, kernel and Tuned(kernel, few, KEY))

    forward: Any
    backward: Any
    ends: Any
    adjoint_ends: Any


@lru_cache(maxsize=256)
def kernels(text: str) -> Kernels:
    """Kernels of a program; their source is kept as a file, which Triton reads and people may."""
    code = source(parse(text)).encode()
    name = f"diagonal_{hashlib.sha256(code).hexdigest()[:16]}"
    path = cache_dir() / "generated" / f"{name}.py"
    if not path.exists() or path.read_bytes() != code:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Kernels(module)


def forward(call: Call, h: Tensor, y: Tensor, last: Tensor, marks: Tensor | None) -> None:
    """Fill outputs `[B, T, C]`, the state after each part `[B, parts, C]` and, where asked for, marks."""
    found, grid = kernels(call.program), _grid(call)
    rest, flags = _rest(call, call.xs, marks is not None)
    start = h
    if call.parts > 1:
        end, product = torch.empty_like(last), torch.empty_like(last)
        found.ends[grid](end, product, *rest, **flags)
        start = _starts(h, end, product, backward=False)
    found.forward[grid](start, y, last, last if marks is None else marks, *rest, **flags)


def backward(
    call: Call, marks: Tensor, dy: Tensor, dlast: Tensor, dstart: Tensor, dxs: list[Tensor], dws: list[Tensor]
) -> None:
    """Fill the gradients by the state before each part `[B, parts, C]`, streams, and weights `[B, parts, C]`."""
    found, grid = kernels(call.program), _grid(call)
    rest, flags = _rest(call, [*call.xs, dy], True)
    dend = dlast
    if call.parts > 1:
        end, product = torch.empty_like(dstart), torch.empty_like(dstart)
        found.adjoint_ends[grid](marks, dy, end, product, *rest, **flags)
        dend = _starts(dlast, end, product, backward=True)
    found.backward[grid](marks, dy, dend, dstart, *dxs, *dws, *rest, **flags)


def _rest(call: Call, read: list[Tensor], marks: bool) -> tuple[list[Any], dict[str, Any]]:
    """Arguments that all kernels share; `read` are the streams and, in backward, dy."""
    xs, (B, T, C) = call.xs, call.shape
    length = -(-call.tiles // call.parts) * TILE
    flags = {"C": C, "EVEN": T % TILE == 0, "RESET": call.reset is not None, "MARKS": marks}
    flags |= {"EXACT": any(x.dtype == torch.float32 for x in xs), **{f"x{i}_t": x.stride(1) for i, x in enumerate(xs)}}
    flags |= {"PAIRS": all(_paired(x) for x in read), "WIDE": B * C >= WIDE}
    reset = xs[0] if call.reset is None else call.reset
    return [reset, *xs, *call.ws, *(x.stride(0) for x in xs), T, length, call.tiles], flags


def _paired(x: Tensor) -> bool:
    """Whether a program may read the bf16 numbers of a stream `[B, T, C]` as words of two."""
    even = x.data_ptr() % 4 == 0 and all(n % 2 == 0 for n in (x.shape[2], *x.stride()[:2]))
    return x.dtype == torch.bfloat16 and even


def _grid(call: Call) -> Any:
    B, _, C = call.shape
    return lambda meta: (-(-C // meta["BLOCK"]), B, call.parts)


def _starts(first: Tensor, end: Tensor, product: Tensor, backward: bool) -> Tensor:
    """What each part starts from."""
    B, parts, C = end.shape
    starts, last = torch.empty_like(end), torch.empty_like(first)
    carry[(-(-C // 128), B)](first, end, product, starts, last, parts, C, backward, 128)
    return starts
