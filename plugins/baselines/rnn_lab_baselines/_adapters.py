"""Backends from mamba-ssm and flash-linear-attention, used where they are installed and work.

Nothing needs them: without the library, without CUDA, or for arguments that it does not take, the predicate says
why and another backend runs. A library is imported at the first call that could use it, and has to hold a certificate
(rnn_lab.kernels.certificates) before that call: one that raises or computes something else is refused. mamba-ssm's
scan is Triton only, so it is loaded without the CUDA extension of Mamba-1 that its package asks for.

On an H100 (docs/performance.md) mamba-ssm's scan is right and slower than ours. fla's delta rule has not run as a
backend: with the releases of Triton that were measured it refuses its backward pass there.
"""

from functools import cache
from typing import Any

import torch
from rnn_lab.discovery.libraries import MissingLibrary, load, refuses_tile
from rnn_lab.kernels.dispatch import Backend
from torch import Tensor

SSD_MODULE, SSD_FUNCTION = "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"
DELTA_MODULE, DELTA_FUNCTION = "fla.ops.gated_delta_rule", "chunk_gated_delta_rule"
LARGEST_KEY = 256
"""Key size that fla's kernels hold in one block."""


@cache
def _import(module: str) -> Any:
    """The module, or why it cannot be imported."""
    try:
        return load(module)
    except MissingLibrary as error:
        return str(error)


def _device(x: Tensor) -> str:
    return x.device.type


def _refuses(module: str, function: str, x: Tensor, reset_BT: Tensor | None) -> str | None:
    """Why `function` of `module` cannot take input x, cheapest reason first."""
    if _device(x) != "cuda":
        return f"tensors are on {_device(x)}, not on cuda"
    if x.dtype not in (torch.bfloat16, torch.float16):
        return f"inputs are {x.dtype}, not bfloat16 or float16"
    if reset_BT is not None:
        return "it has no document resets inside a batch"
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace it"
    found = _import(module)
    if isinstance(found, str):
        return found
    return None if callable(getattr(found, function, None)) else f"{module} has no {function}"


def refuses_ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, reset_BT: Tensor | None = None
) -> str | None:
    """Why mamba-ssm's chunked scan cannot run this call of `ssd`, or None."""
    return _refuses(SSD_MODULE, SSD_FUNCTION, x, reset_BT)


def run_ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ssd` by mamba-ssm: one group, steps already positive, no skip, no gate."""
    scan = getattr(_import(SSD_MODULE), SSD_FUNCTION)
    B, C = B.unsqueeze(2), C.unsqueeze(2)
    y, h = scan(x, dt, A, B, C, chunk_size=256, initial_states=h, return_final_states=True)
    return y.float(), h.float()


def refuses_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    S: Tensor,
    reset_BT: Tensor | None = None,
    decay_first: bool = True,
) -> str | None:
    """Why fla's chunked form cannot run this call of `gated_delta_rule`, or None."""
    if not decay_first:
        return "it decays the state before the retrieval"
    if k.shape[-1] > LARGEST_KEY:
        return f"keys have size {k.shape[-1]}, more than {LARGEST_KEY}"
    if reason := _refuses(DELTA_MODULE, DELTA_FUNCTION, v, reset_BT):
        return reason
    if refuses_tile():
        return "fla refuses its backward pass on Hopper with Triton 3.4 to 3.7, which miscompile it for key tiles of 64"
    return None


def run_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    S: Tensor,
    reset_BT: Tensor | None = None,
    decay_first: bool = True,
) -> tuple[Tensor, Tensor]:
    """`gated_delta_rule` by fla: queries are scaled already, everything but the decay in the dtype of the values."""
    chunked = getattr(_import(DELTA_MODULE), DELTA_FUNCTION)
    low = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": v, "beta": beta.to(v.dtype)}
    o, S = chunked(**low, g=g, scale=1.0, initial_state=S, output_final_state=True)
    return o.float(), S.float()


MAMBA_SSM = Backend("mamba-ssm", run_ssd, refuses_ssd)
FLA = Backend("fla", run_delta, refuses_delta)
