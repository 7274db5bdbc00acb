"""The backends from mamba-ssm and flash-linear-attention: when they are refused, and how their arguments map.

Neither library runs without a GPU, so fakes with their signatures stand in, and the device is made up.
"""

import importlib.abc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rnn_lab.discovery.libraries import load
from rnn_lab.errors import KernelUnavailable
from rnn_lab.kernels import certificates
from rnn_lab.kernels.dispatch import REFERENCE, Backend
from rnn_lab.kernels.linear import gated_delta_rule, ssd
from rnn_lab.registry import registry
from rnn_lab.tensors import relative_error
from rnn_lab_baselines import _adapters
from torch import Tensor
from torch.nn import functional as F

B, T, H, N, V = 2, 70, 2, 4, 6
Calls = list[dict[str, Any]]


class Watcher(importlib.abc.MetaPathFinder):
    """Sees every import of the libraries and lets none find them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.tried = error, list[str]()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("mamba_ssm", "fla"):
            self.tried.append(name)
            raise self.error or ModuleNotFoundError(f"No module named {name!r}")


@pytest.fixture(scope="module", autouse=True)
def _offered() -> None:
    """A model's file adds its library to the operation's backends."""
    for name in ("mamba2", "gdn"):
        registry().models[name].load()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Watcher]:
    """Neither library is there, and nothing that was found out about them is remembered."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mamba_ssm", "fla")]:
        monkeypatch.delitem(sys.modules, name)
    watcher = Watcher()
    monkeypatch.setattr(sys, "meta_path", [watcher, *sys.meta_path])
    monkeypatch.setattr(certificates, "_known", {})
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    forget()
    yield watcher
    forget()


def forget() -> None:
    """What was found out about the libraries."""
    _adapters._import.cache_clear()
    load.cache_clear()


@pytest.fixture
def on_cuda(absent: Watcher, monkeypatch: pytest.MonkeyPatch) -> Watcher:
    """As `absent`, and every tensor seems to be on a GPU."""
    monkeypatch.setattr(_adapters, "_device", lambda x: "cuda")
    return absent


def provide(monkeypatch: pytest.MonkeyPatch, path: str, **content: Any) -> None:
    """A fake module under `path`."""
    parts = path.split(".")
    for i in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:i]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in content.items():
        setattr(module, name, value)


def scan(calls: Calls) -> Any:
    """mamba-ssm's chunked scan, group by group and step by step."""

    def mamba_chunk_scan_combined(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: None = None,
        z: None = None,
        dt_bias: None = None,
        initial_states: Tensor | None = None,
        seq_idx: None = None,
        cu_seqlens: None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False,
        return_varlen_states: bool = False,
    ) -> Any:
        calls.append({"x": x, "dt": dt, "chunk_size": chunk_size})
        assert B.shape == C.shape == (*x.shape[:2], 1, B.shape[-1])
        assert initial_states.shape == (x.shape[0], *x.shape[2:], B.shape[-1])
        assert not dt_softplus
        h, ys = initial_states, []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t] * A)[..., None, None] * h
            h = h + torch.einsum("bh,bhp,bs->bhps", dt[:, t], x[:, t].float(), B[:, t, 0].float())
            ys.append(torch.einsum("bhps,bs->bhp", h, C[:, t, 0].float()))
        y = torch.stack(ys, 1).to(x.dtype)
        return (y, h) if return_final_states else y

    return mamba_chunk_scan_combined


def chunked(calls: Calls) -> Any:
    """fla's chunked gated delta rule, step by step; it scales queries by default."""

    def chunk_gated_delta_rule(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        scale: float | None = None,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **kwargs: Any,
    ) -> Any:
        calls.append({"q": q, "k": k, "v": v, "g": g, "beta": beta})
        assert not kwargs
        assert not use_qk_l2norm_in_kernel
        S, reads = initial_state, []
        for t in range(q.shape[1]):
            S = torch.exp(g[:, t])[..., None, None] * S
            error = v[:, t] - torch.einsum("bhnv,bhn->bhv", S, k[:, t].float())
            S = S + torch.einsum("bh,bhn,bhv->bhnv", beta[:, t].float(), k[:, t].float(), error)
            reads.append(torch.einsum("bhnv,bhn->bhv", S, q[:, t].float()))
        o = torch.stack(reads, 1) * (k.shape[-1] ** -0.5 if scale is None else scale)
        return o.to(v.dtype), S if output_final_state else None

    return chunk_gated_delta_rule


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ssd_args(dtype: torch.dtype = torch.bfloat16, time: int = T) -> tuple[Tensor, ...]:
    x, dt = draw(B, time, H, V, seed=1, dtype=dtype), F.softplus(draw(B, time, H, seed=2))
    rest = [draw(B, time, N, seed=s, dtype=dtype) for s in (4, 5)]
    return x, dt, -draw(H, seed=3).exp(), *rest, draw(B, H, V, N, seed=6)


def delta_args(dtype: torch.dtype = torch.bfloat16, time: int = T, keys: int = N) -> tuple[Tensor, ...]:
    q, k = (F.normalize(draw(B, time, H, keys, seed=s), dim=-1) for s in (1, 2))
    g, beta = -F.softplus(draw(B, time, H, seed=4)), torch.sigmoid(draw(B, time, H, seed=5))
    return q, k, draw(B, time, H, V, seed=3, dtype=dtype), g, beta, draw(B, H, keys, V, seed=6)


CASES = {
    "mamba-ssm": (_adapters.MAMBA_SSM, ssd_args, ssd.reference, _adapters.SSD_MODULE, _adapters.SSD_FUNCTION, scan),
    "fla": (
        _adapters.FLA,
        delta_args,
        gated_delta_rule.reference,
        _adapters.DELTA_MODULE,
        _adapters.DELTA_FUNCTION,
        chunked,
    ),
}
LIBRARY = {"mamba-ssm": "mamba_ssm", "fla": "fla"}
both = pytest.mark.parametrize("name", CASES)


def offer(monkeypatch: pytest.MonkeyPatch, name: str) -> Calls:
    """Install the fake of a library; its calls."""
    calls: Calls = []
    _, _, _, module, function, fake = CASES[name]
    provide(monkeypatch, module, **{function: fake(calls)})
    return calls


@pytest.mark.parametrize(
    ("model", "op", "backend"), [("mamba2", "ssd", "mamba-ssm"), ("gdn", "gated_delta_rule", "fla")]
)
def test_on_a_cpu_the_reference_runs_and_nothing_is_imported(
    absent: Watcher, monkeypatch: pytest.MonkeyPatch, model: str, op: str, backend: str
) -> None:
    cls = registry().models[model].load()
    layer = cls(cls.Config(dim=64))
    layer(torch.zeros(1, 2, 64))
    choice = layer.backends[op]
    assert choice.backend == REFERENCE
    assert (backend, "tensors are on cpu, not on cuda") in choice.refused
    assert absent.tried == []
    monkeypatch.setenv("RNN_LAB_KERNELS", backend)
    with pytest.raises(KernelUnavailable, match=f"{backend}: tensors are on cpu"):
        layer(torch.zeros(1, 2, 64))


@both
def test_an_absent_library_is_refused(on_cuda: Watcher, name: str) -> None:
    backend, args, *_ = CASES[name]
    reason = str(backend.refuses(*args()))
    assert reason.startswith(LIBRARY[name]) and "cannot be imported: ModuleNotFoundError" in reason
    backend.refuses(*args())
    assert len(on_cuda.tried) == 1, "a failed import is tried once"


@both
@pytest.mark.parametrize("error", [RuntimeError("0 active drivers"), OSError("no libcuda.so"), ImportError("ABI")])
def test_a_broken_library_is_refused(on_cuda: Watcher, name: str, error: Exception) -> None:
    on_cuda.error = error
    backend, args, *_ = CASES[name]
    assert str(backend.refuses(*args())).endswith(f"cannot be imported: {type(error).__name__}: {error}")


@both
def test_a_library_without_the_function_is_refused(
    on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    backend, args, _, module, function, _ = CASES[name]
    provide(monkeypatch, module)
    assert backend.refuses(*args()) == f"{module} has no {function}"


@both
def test_calls_that_a_library_does_not_take(on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    offer(monkeypatch, name)
    backend, args, *_ = CASES[name]
    assert "torch.float32" in str(backend.refuses(*args(torch.float32)))
    assert "resets" in str(backend.refuses(*args(), torch.zeros(B, T, dtype=torch.bool)))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert "torch.compile" in str(backend.refuses(*args()))
    assert on_cuda.tried == []


def test_fla_says_where_it_does_not_run_backward(on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "fla")
    here = {"IS_NVIDIA_HOPPER": True, "TRITON_ABOVE_3_4_0": True, "TRITON_ABOVE_3_7_1": False}
    chunk_o = ModuleType("chunk_o")
    monkeypatch.setitem(sys.modules, "fla.ops.common.chunk_o", chunk_o)
    for name, value in here.items():
        setattr(chunk_o, name, value)
    assert "on Hopper with Triton 3.4 to 3.7" in str(_adapters.FLA.refuses(*delta_args()))
    chunk_o.TRITON_ABOVE_3_7_1 = True  # type: ignore[attr-defined]
    assert _adapters.FLA.refuses(*delta_args()) is None


def test_keys_that_fla_does_not_take(on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "fla")
    assert _adapters.FLA.refuses(*delta_args(time=3, keys=256)) is None
    assert "size 257" in str(_adapters.FLA.refuses(*delta_args(time=3, keys=257)))


@both
@pytest.mark.parametrize("time", [1, T])
def test_arguments_map(on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch, name: str, time: int) -> None:
    calls = offer(monkeypatch, name)
    backend, args, reference, *_ = CASES[name]
    assert backend.refuses(*args(time=time)) is None and not calls
    got, wanted = backend.run(*args(time=time)), reference(*args(time=time))
    assert all(t.dtype == torch.float32 for t in got)
    assert all(relative_error(ours, theirs) < 5e-3 for ours, theirs in zip(got, wanted, strict=True))
    wide = [backend.run(*args(torch.float32, time)), reference(*args(torch.float32, time))]
    assert all(relative_error(ours, theirs) < 1e-5 for ours, theirs in zip(*wide, strict=True))


def test_fla_gets_16_bit_keys_and_a_32_bit_decay(on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = offer(monkeypatch, "fla")
    _adapters.run_delta(*delta_args())
    dtypes = {key: tensor.dtype for key, tensor in calls[-1].items()}
    assert dtypes == dict.fromkeys(("q", "k", "v", "beta"), torch.bfloat16) | {"g": torch.float32}


OPS = {"mamba-ssm": ssd.SSD, "fla": gated_delta_rule.GATED_DELTA_RULE}


def refusal(name: str) -> str:
    """Why a call of the operation does not run by the library."""
    return dict(OPS[name].select(*CASES[name][1]())[1].refused).get(name, "")


@both
def test_a_library_that_computes_something_else_is_refused(
    on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, _, _, module, function, fake = CASES[name]
    right, calls = fake([]), []

    def wrong(*given: Any, **named: Any) -> Any:
        calls.append(given)
        y, h = right(*given, **named)
        return 1.1 * y, h

    provide(monkeypatch, module, **{function: wrong})
    assert refusal(name).startswith("its small run differs from the reference: r = 0.")
    seen = len(calls)
    refusal(name)
    assert len(calls) == seen > 0, "found out once"


@both
def test_a_library_that_raises_is_refused(on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise RuntimeError("no kernel image")

    _, _, _, module, function, _ = CASES[name]
    provide(monkeypatch, module, **{function: fails})
    assert refusal(name) == "its small run raises RuntimeError: no kernel image"


@both
def test_a_library_that_found_no_memory_once_is_tried_again(
    on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    _, _, _, module, function, _ = CASES[name]
    provide(monkeypatch, module, **{function: fails})
    assert refusal(name) == "its small run found no memory"
    offer(monkeypatch, name)
    forget()
    assert refusal(name) == ""


@both
def test_dispatch_takes_a_library_that_works(on_cuda: Watcher, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    op, backend = OPS[name], name
    offered: Backend[Any] = CASES[backend][0]
    assert [b.name for b in op.backends if b == offered] == [backend]
    offer(monkeypatch, backend)
    monkeypatch.delenv("RNN_LAB_KERNELS", raising=False)
    run, choice = op.select(*CASES[backend][1]())
    assert (run, choice.backend) == (offered.run, backend)
