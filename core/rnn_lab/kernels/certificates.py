"""A kernel runs only where it was seen to agree with its plain reference: on this GPU, with these versions.

The first call of a backend for a class of arguments is run in small beside the reference in fp64: results, every
gradient and the carried state. What was found is kept in the process and on disk, under a key of operation, backend,
kernel sources, GPU, driver, versions, and dtypes, shapes and layout of the small run, so that the next one reads it
instead.
"""

import hashlib
import json
import platform
import re
import sys
from collections.abc import Callable, Hashable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from rnn_lab.kernels.cuda_jit import nvrtc_version
from rnn_lab.kernels.layout import LINE, laid_out_as
from rnn_lab.kernels.triton_support import trying
from rnn_lab.system.atomic import write_bytes_atomic
from rnn_lab.system.paths import cache_dir
from rnn_lab.tensors import is_out_of_memory, relative_error

if TYPE_CHECKING:
    from rnn_lab.kernels.dispatch import Backend, Op

LIMITS = {
    torch.float64: (1e-10, 1e-9),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (5e-3, 1e-2),
    torch.float16: (5e-3, 1e-2),
}
"""Largest relative error of results and of gradients, by the narrowest dtype among the arguments, given or named."""
_known: dict[Hashable, str | None] = {}
"""What this process found: asked at every call, so under what is cheap to make."""
_alike: dict[Hashable, str | None] = {}
"""The same under what calls have in common, for when nothing can be run in small: wrong in one is wrong in all."""
_wrong: dict[str, str] = {}
"""Backends that were refused for any call, by operation and name: all that a compiler's tracing can ask."""


def distrust(op: "Op[Any]", backend: "Backend[Any]", args: tuple[Any, ...]) -> str | None:
    """Why `backend` is not to be trusted with calls like this one, or None where it is certified.

    Under torch.compile nothing can be measured: a backend that was wrong in any call is refused, another one taken.
    Inside a CUDA graph's capture only what is known counts. A small run that finds no memory tells nothing of the
    kernel: the call is refused, and the next one measures again.
    """
    name = f"{op.name}/{backend.name}"
    if torch.compiler.is_compiling():
        return _wrong.get(name)
    tensors = _tensors(args)
    if any(t.is_meta for t in tensors):
        return None
    device = tensors[0].device.type
    asked = (op.name, backend, device, _described(args, _rows))
    if asked in _known:
        return _known[asked]
    common = (op.name, backend, device, _described(args, _class))
    if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return _alike.get(common, "not certified yet, and a CUDA graph is being captured")
    try:
        found = _found(op, backend, device, args)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return "its small run found no memory"
    _known[asked] = found
    _alike[common] = _alike.get(common) or found
    if found is not None:
        _wrong[name] = found
    return found


def _found(op: "Op[Any]", backend: "Backend[Any]", device: str, args: tuple[Any, ...]) -> str | None:
    """What the certificate for calls like this one says, which is made where there is none."""
    assert op.probe is not None
    with torch.random.fork_rng(), torch.autocast(device, enabled=False), catch_warnings():
        simplefilter("ignore")
        torch.manual_seed(0)
        made = op.probe(*args)
    calls = made if isinstance(made, list) else [made]
    key = _key(op.name, backend, device, _described(calls, _whole))
    path = certificate_dir() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    row = _read(path, key)
    if row is None:
        row = {"key": json.loads(key)} | _measure(op, backend, calls)
        _write(path, row)
    distrust: str | None = row["distrust"]
    return distrust


def certificate_dir() -> Path:
    """Where certificates are kept."""
    return cache_dir() / "certificates"


def certificates() -> list[dict[str, Any]]:
    """Every certificate on disk that was given for this machine's device and versions."""
    here = json.loads(json.dumps(machine("cuda" if torch.cuda.is_available() else "cpu")))
    found = []
    for path in sorted(certificate_dir().glob("*.json")):
        try:
            row = json.loads(path.read_text())
            if row["key"]["machine"] == here:
                found.append(row)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


@cache
def machine(device_type: str) -> dict[str, Any]:
    """What a kernel's result may depend on besides its source."""
    where: dict[str, Any] = {"torch": torch.__version__, "triton": _version("triton"), "device": platform.machine()}
    if device_type == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        where |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver(),
            "nvrtc": nvrtc_version(),
        }
    return where


def _version(package: str) -> str | None:
    """Of an installed package, which need not be imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """Version of the GPU's driver; None where the system does not tell."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found and found.group()


@cache
def sources(module: str) -> str:
    """Digest of the sources in the folder of the backend's module, and of all kernels of the core."""
    digest = hashlib.sha256()
    core, own = Path(__file__).parent, getattr(sys.modules.get(module), "__file__", None)
    files = {*core.rglob("*.py"), *core.rglob("*.cu*")}
    if own:
        files |= {*Path(own).parent.glob("*.py"), *Path(own).parent.glob("*.cu*")}
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _tensors(args: tuple[Any, ...]) -> "list[Tensor]":
    """Every tensor among the arguments, however deep."""
    found = (_tensors(tuple(a)) if isinstance(a, tuple | list) else [a] for a in args)
    return [t for part in found for t in part if isinstance(t, Tensor)]


def _described(arg: Any, of: Callable[[Tensor], Hashable]) -> Hashable:
    """An argument's tensors by `of`; what is no tensor by its fingerprint."""
    if isinstance(arg, Tensor):
        return of(arg)
    if isinstance(arg, tuple | list):
        return tuple([_described(a, of) for a in arg])
    return getattr(arg, "fingerprint", None) or repr(arg)


def _whole(x: Tensor) -> Hashable:
    """Dtype, shape and layout."""
    return str(x.dtype), tuple(x.shape), x.stride(), x.storage_offset() % LINE


def _rows(x: Tensor) -> Hashable:
    """The same but for batch and time, where a tensor has more axes: a cache that grows is no other call."""
    lead = 2 if x.dim() > 2 else 0
    return x.dtype, x.dim(), x.shape[lead:], x.stride()[lead // 2 :], x.storage_offset() % LINE


def _class(x: Tensor) -> Hashable:
    """What calls for the same layer have in common: dtype, and every axis but the first two."""
    return x.dtype, x.dim(), x.shape[2:]


def _key(name: str, backend: "Backend[Any]", device: str, kind: Hashable) -> str:
    """The same with everything else that a result depends on, as JSON."""
    return json.dumps({
        "op": name, "backend": backend.name, "sources": sources(backend.run.__module__),
        "machine": machine(device), "class": kind,
    }, sort_keys=True)  # fmt: skip


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """A stored certificate; None where there is none, or none that can be read."""
    try:
        row = json.loads(path.read_text())
        return row if row["key"] == json.loads(key) and "distrust" in row else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, row: dict[str, Any]) -> None:
    """Keep it; a folder that cannot be written costs the next process a small run, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, json.dumps(row, indent=1).encode())
    except OSError:
        pass


def _measure(op: "Op[Any]", backend: "Backend[Any]", calls: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Errors of small calls in every configuration that tuning may choose, and what they mean."""
    forward = gradient = 0.0
    with torch.random.fork_rng(), torch.autocast(_tensors(calls[0])[0].device.type, enabled=False), catch_warnings():
        simplefilter("ignore")  # a warning is no fault of the kernel, though it may raise where the user asks for that
        try:
            for small in calls:
                want, want_gradients = evaluate(op.reference, small, torch.float64)
                index, count = 0, 1
                while index < count:
                    with trying(index) as trial:
                        got, got_gradients = evaluate(backend.run, small)
                        # A kernel may keep nothing where nothing is learnt: another program.
                        unlearnt = inferred(backend.run, small)
                    count = trial.count
                    forward = max(forward, *map(relative_error, [*got, *unlearnt], [*want, *want]))
                    gradient = max(gradient, *map(relative_error, got_gradients, want_gradients), 0.0)
                    index += 1
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return {"distrust": f"its small run raises {type(error).__name__}: {error}"[:500]}
    limits = limits_of(calls[0])
    row: dict[str, Any] = {"forward": forward, "gradient": gradient, "limits": list(limits), "distrust": None}
    if not (forward <= limits[0] and gradient <= limits[1]):
        row["distrust"] = (
            f"its small run differs from the reference: r = {forward:.2g} forward, {gradient:.2g} in gradients, "
            f"allowed are {limits[0]:g} and {limits[1]:g}"
        )
    return row


def limits_of(args: tuple[Any, ...]) -> tuple[float, float]:
    """Largest relative errors that are allowed for these arguments."""
    dtypes = [t.dtype for t in _tensors(args) if t.is_floating_point()]
    dtypes += [a for a in args if isinstance(a, torch.dtype)]
    return LIMITS[min(dtypes, key=lambda d: d.itemsize)]


def copies(args: tuple[Any, ...], dtype: torch.dtype | None = None) -> tuple[tuple[Any, ...], list[Tensor]]:
    """A call's arguments with tensors of its own, laid out alike, and the floating ones of them, which take gradients.

    `dtype` casts those.
    """
    leaves: list[Tensor] = []

    def copied(arg: Any) -> Any:
        if isinstance(arg, tuple | list):
            parts = [copied(a) for a in arg]
            return type(arg)(*parts) if hasattr(arg, "_fields") else tuple(parts)
        if not isinstance(arg, Tensor):
            return arg
        if not arg.is_floating_point():
            return arg.clone()
        leaves.append(laid_out_as(arg.detach(), dtype or arg.dtype).requires_grad_())
        return leaves[-1]

    return tuple(copied(arg) for arg in args), leaves


def evaluate(
    run: Callable[..., Any], args: tuple[Any, ...], dtype: torch.dtype | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Results of a call, and the gradient of a fixed random projection of them by every floating argument.

    `dtype` casts the floating arguments first; a gradient that does not exist is zero.
    """
    own, leaves = copies(args, dtype)
    with torch.enable_grad():
        results = _listed(run(*own))
        generator = torch.Generator(results[0].device).manual_seed(1)
        total = torch.zeros((), dtype=torch.float64, device=results[0].device)
        for result in results:
            weight = torch.randn(result.shape, generator=generator, device=result.device)
            total = total + (result.double() * weight).mean()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return [r.detach() for r in results], filled


def inferred(run: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """Results of a call that keeps nothing for a backward pass."""
    with torch.no_grad():
        return _listed(run(*copies(args)[0]))


def _listed(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)
