"""Checks of what a model claims: shapes, parameters, FLOPs and bytes of state."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rnn_lab.lm import LM, LMConfig, counted_params, lm_flops_per_token, lm_n_params
from rnn_lab.testing.contract import check, expect
from rnn_lab.testing.measure import nan_filled
from rnn_lab.testing.subject import BATCH, LM_DEPTH, PAST, TIME, Subject

_UNCOUNTED = ("aten::mv", "aten::dot", "aten::vdot", "aten::addmv", "aten::addr", "aten::outer", "aten::ger")
"""Products that torch's FLOP counter does not know."""


@check("shapes", "outputs and states have the declared shapes and dtypes, the batch first")
def shapes(subject: Subject, cfg: Any) -> None:
    """`[B, T, D]` out, exactly the declared state tensors; in fp32 and fp64, for T = 1 and for step too."""
    for dtype in (torch.float32, torch.float64):
        layer = subject.layer(cfg, dtype=dtype)
        _expect_tensors("init_state", layer.init_state(BATCH), _declared(subject, cfg, 0), dtype)
        given = subject.state(cfg, dtype=dtype)
        for time, start, past in ((TIME, None, 0), (TIME, given, PAST), (1, given, PAST)):
            with nan_filled():
                y_BTD, state = layer(subject.x(cfg, time, dtype=dtype), start)
            _expect_tensors("output", {"y": y_BTD}, {"y": (BATCH, time, cfg.dim)}, dtype)
            _expect_tensors("state", state, _declared(subject, cfg, past + time), dtype)
        y_BD, state = layer.step(subject.x(cfg, dtype=dtype)[:, 0], given)
        _expect_tensors("output of step", {"y": y_BD}, {"y": (BATCH, cfg.dim)}, dtype)
        _expect_tensors("state of step", state, _declared(subject, cfg, PAST + 1), dtype)


def _declared(subject: Subject, cfg: Any, seq_len: int) -> dict[str, tuple[int, ...]]:
    return {key: (BATCH, *shape) for key, shape in subject.model.state_shapes(cfg, seq_len).items()}


def _expect_tensors(
    what: str, tensors: dict[str, torch.Tensor], declared: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    found = {key: tuple(t.shape) for key, t in tensors.items()}
    expect(found == declared, f"{what} has shapes {found}, declared are {declared}")
    dtypes = {key: t.dtype for key, t in tensors.items() if t.dtype != dtype}
    expect(not dtypes, f"{what} of an input in {dtype} has dtypes {dtypes}")
    bad = [key for key, t in tensors.items() if not t.isfinite().all()]
    expect(not bad, f"{what}: {bad} is not finite")


@check("count", "the closed form equals the counted parameters, component by component")
def count(subject: Subject, cfg: Any) -> None:
    """`n_params` against the instantiated layer, and the language model's form against the language model."""
    with torch.device("meta"):
        layer = subject.model(cfg)
    counted: dict[str, int] = {}
    for name, parameter in layer.named_parameters():
        part = name.partition(".")[0]
        counted[part] = counted.get(part, 0) + parameter.numel()
    _expect_counts("layer", subject.model.n_params(cfg), counted)
    for norm in ("rms", "layer"):
        lm_cfg = LMConfig(depth=LM_DEPTH, norm=norm)
        with torch.device("meta"):
            lm = LM(subject.model, cfg, lm_cfg)
        claimed = lm_n_params(subject.model, cfg, lm_cfg)
        _expect_counts(f"language model ({norm} norm)", claimed, counted_params(lm))
        total = sum(p.numel() for p in lm.parameters())
        expect(sum(claimed.values()) == total, f"the components sum to {sum(claimed.values())}, not {total}")


def _expect_counts(what: str, claimed: dict[str, int], counted: dict[str, int]) -> None:
    wrong = [
        f"{key}: closed form {claimed.get(key, 0)}, counted {counted.get(key, 0)}"
        for key in sorted(claimed.keys() | counted.keys())
        if claimed.get(key, 0) != counted.get(key, 0)
    ]
    expect(not wrong, f"{what}: {'; '.join(wrong)}")


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """FLOPs by the formulas of torch's counter, and the products that it has none for.

    torch's own FlopCounterMode books them by module as well, which takes several times as long as the pass itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.products: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=result)
        name = func.name().partition(".")[0]
        if name in _UNCOUNTED:
            self.products[name] = self.products.get(name, 0) + 1
        return result


@check("flops", "flops_per_token equals the FLOPs counted while the reference runs", needs=("shapes", "prepare"))
def flops(subject: Subject, cfg: Any) -> str | None:
    """Forward, without resets, for the layer and for the language model.

    Products that the counter does not know may happen once per pass, never once per step: then they would be
    missing from the figure.
    """
    layer, lm = subject.layer(cfg), subject.lm(cfg)
    uncounted: list[dict[str, int]] = []
    for time in (TIME, TIME + 2):
        tokens = BATCH * time
        counted, calls = _measure(layer, subject.x(cfg, time))
        _expect_flops("layer", subject.model.flops_per_token(cfg, time), counted / tokens)
        uncounted.append(calls)
        bytes_BT = torch.zeros(BATCH, time, dtype=torch.uint8, device=subject.device)
        counted, _ = _measure(lm, bytes_BT)
        claimed = lm_flops_per_token(subject.model, cfg, subject.lm_config(), time)
        _expect_flops("language model", claimed, counted / tokens)
    expect(uncounted[0] == uncounted[1], f"products in every step that no counter sees: {uncounted[1]}")
    return f"not counted, once per pass: {uncounted[0]}" if uncounted[0] else None


def _measure(module: nn.Module, given: Tensor) -> tuple[int, dict[str, int]]:
    with torch.no_grad(), _Counter() as counter:
        module(given)
    return counter.flops, counter.products


def _expect_flops(what: str, claimed: int, counted: float) -> None:
    expect(claimed == counted, f"{what}: flops_per_token says {claimed}, counted {counted:g}")


@check("state-bytes", "state_bytes equals the bytes of the returned state", needs=("shapes",))
def state_bytes(subject: Subject, cfg: Any) -> None:
    """Per sequence, at two lengths."""
    layer = subject.layer(cfg)
    for time in (1, TIME):
        _, state = layer(subject.x(cfg, time))
        returned = sum(t.numel() * t.element_size() for t in state.values()) / BATCH
        claimed = subject.model.state_bytes(cfg, time)
        expect(claimed == returned, f"state_bytes at T = {time} says {claimed}, returned {returned:g}")
