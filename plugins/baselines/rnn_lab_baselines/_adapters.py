"""Backends from mamba-ssm and flash-linear-attention, used where they are installed and work.

Nothing needs them: without the library, without CUDA, or for arguments that it does not take, the predicate says
why and another backend runs. A library is imported at the first call that could use it, and that call is first run
in small, gradients included, against the reference: a library that raises or computes something else is refused.

Not measured: neither library has run under rnn-lab on a GPU. `rnn-lab check mamba2` and `rnn-lab check gdn` do it.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from rnn_lab.kernels import gated_delta_rule, ssd
from rnn_lab.kernels.dispatch import Backend
from torch import Tensor

SSD_MODULE, SSD_FUNCTION = "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"
DELTA_MODULE, DELTA_FUNCTION = "fla.ops.gated_delta_rule", "chunk_gated_delta_rule"
LARGEST_KEY = 256
"""Key size that fla's kernels hold in one block."""
PROBE = (slice(0, 1), slice(0, 65))
"""Part of a batch that the small run takes: one sequence, a step more than a chunk of 64."""
PROBE_LIMIT = 0.05
"""Relative error that no rounding to 16 bits explains."""

_probed: dict[object, str | None] = {}


@cache
def _import(module: str) -> Any:
    """The module, or why it cannot be imported: a broken library raises whatever it likes."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        return f"{module.partition('.')[0]} cannot be imported: {type(error).__name__}: {error}"


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


def _differs(run: Callable[..., Any], reference: Callable[..., Any], args: tuple[Tensor, ...]) -> str | None:
    """Why `run` is not to be trusted with arguments of this kind; found out once per kind."""
    key = (run, *((t.shape, t.dtype, t.device) for t in args))
    if key not in _probed:
        try:
            worst = max(map(_error, _results(run, args), _results(reference, args)))
            _probed[key] = None if worst <= PROBE_LIMIT else f"a small run is off by r = {worst:.2g}"
        except Exception as error:
            _probed[key] = f"a small run raises {type(error).__name__}: {error}"
    return _probed[key]


def _results(function: Callable[..., Any], args: tuple[Tensor, ...]) -> list[Tensor]:
    """Output, last state and all gradients."""
    with torch.enable_grad(), torch.autocast(args[0].device.type, enabled=False):
        leaves = [t.detach().clone().requires_grad_() for t in args]
        y, h = function(*leaves)
        return [y, h, *torch.autograd.grad(y.square().sum() + h.square().sum(), leaves)]


def _error(got: Tensor, wanted: Tensor) -> float:
    """RMS(got - wanted) / RMS(wanted); infinite for what is not finite."""
    scale = wanted.double().square().mean().sqrt().clamp(min=1e-30)
    r = ((got.double() - wanted.double()).square().mean().sqrt() / scale).item()
    return r if r == r else float("inf")


def refuses_ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, reset_BT: Tensor | None = None
) -> str | None:
    """Why mamba-ssm's chunked scan cannot run this call of `ssd`, or None."""
    if reason := _refuses(SSD_MODULE, SSD_FUNCTION, x, reset_BT):
        return reason
    return _differs(run_ssd, ssd.reference, (x[PROBE], dt[PROBE], A, B[PROBE], C[PROBE], h[:1]))


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
    part = (q[PROBE], k[PROBE], v[PROBE], g[PROBE], beta[PROBE], S[:1])
    return _differs(run_delta, gated_delta_rule.reference, part)


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


MAMBA_SSM = Backend("mamba-ssm", run_ssd, refuses_ssd, certified=False)
FLA = Backend("fla", run_delta, refuses_delta)
