"""Optimizers of the core: factories that take (model, OptimizerSection) and return a torch optimizer.

An optimizer that averages its weights, as schedule-free ones do, has `train()` and `eval()`; the loop calls them
where they exist. One whose step needs no host is a `GatedOptimizer`; a step of any other cannot be part of a CUDA
graph.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from rnn_lab.config import OptimizerSection
from rnn_lab.train.uncompiled import spare_the_compiler

spare_the_compiler()

_OF_THIS_MACHINE = ("foreach", "fused", "capturable")
"""Keys of a parameter group that say how an update runs, not what it does."""


@runtime_checkable
class GatedOptimizer(Protocol):
    """An optimizer with every counter on the device, so that a CUDA graph can replay its step.

    To follow a schedule it has `lr_factor`, None or a scalar on the device that its rate is multiplied by.
    """

    @property
    def lr_now(self) -> Tensor:
        """Rate of the last step, a scalar on the device."""

    def gated_step(self, scale: Tensor, skip: Tensor) -> None:
        """One update from the gradients times `scale`; none, counters included, where `skip` is not 0."""

    def bind(self) -> None:
        """After a capture, before its first replay: see to it that the step meets the captured gradients."""


F = TypeVar("F", bound=Callable[..., Any])


def elementwise(factory: F) -> F:
    """Mark a factory whose optimizer treats each value alone, so that it may be given a part of every tensor.

    Under `parallel.mode = "fsdp"` it is called with a module that holds the parts, in the model's order.
    """
    factory.elementwise = True  # type: ignore[attr-defined]
    return factory


def averaging(factory: F) -> F:
    """Mark a factory whose optimizer averages its weights, so that a schedule is refused before anything starts."""
    factory.averaging = True  # type: ignore[attr-defined]
    return factory


@averaging
@elementwise
def schedule_free_adamw(model: nn.Module, cfg: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW whose evaluation weights are a running average instead of a learning-rate schedule (arXiv 2405.15682)."""
    from rnn_lab.train.schedule_free import FusedScheduleFree, refuses_fused

    kind = AdamWScheduleFree if refuses_fused(model.parameters()) else FusedScheduleFree
    optimizer: torch.optim.Optimizer = kind(
        _groups(model, cfg), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, warmup_steps=cfg.warmup_steps
    )
    return optimizer


@elementwise
def adamw(model: nn.Module, cfg: OptimizerSection) -> torch.optim.Optimizer:
    """torch's AdamW at a constant rate after a linear warm-up; its fused kernel on CUDA."""
    kind = FusedAdamW if all(p.is_cuda for p in model.parameters()) else WarmupAdamW
    return kind(_groups(model, cfg), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, warmup_steps=cfg.warmup_steps)


class WarmupAdamW(torch.optim.AdamW):
    """AdamW whose rate rises linearly over the first `warmup_steps` steps; the step count lives in its state."""

    def __init__(self, params: Any, *, lr: float, warmup_steps: int, **kwargs: Any) -> None:
        super().__init__(params, lr=lr, **kwargs)
        for group in self.param_groups:
            group.update(peak_lr=lr, warmup_steps=warmup_steps, steps_taken=0)
        self.lr_factor: Tensor | None = None
        """Factor of a schedule, a scalar on the device; None: no schedule."""

    def step(self, closure: Any = None) -> Any:
        """One update at the rate of this step."""
        for group in self.param_groups:
            group["steps_taken"] += 1
            group["lr"] = group["peak_lr"] * min(1.0, group["steps_taken"] / max(1, group["warmup_steps"]))
            if self.lr_factor is not None:
                group["lr"] *= self.lr_factor.item()
        return super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, by the implementation chosen here."""
        own = {name: self.param_groups[0][name] for name in _OF_THIS_MACHINE}
        groups = [{**group, **own} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})


class FusedAdamW(WarmupAdamW):
    """The same by torch's fused kernel, with steps taken and rate on the device."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, fused=True, capturable=True, **kwargs)
        # torch warns about a capturable optimizer that runs outside a capture, as ours does before its own.
        self._warned_capturable_if_run_uncaptured = True
        device = self.param_groups[0]["params"][0].device
        self._taken = torch.zeros((), dtype=torch.float64, device=device)
        self._lr = torch.zeros((), dtype=torch.float64, device=device)
        self._one, self._zero = torch.ones((), device=device), torch.zeros((), device=device)

    @property
    def lr_now(self) -> Tensor:
        """See GatedOptimizer."""
        return self._lr

    def step(self, closure: Any = None) -> Any:
        """One update at the rate of this step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.gated_step(self._one, self._zero)
        return loss

    def gated_step(self, scale: Tensor, skip: Tensor) -> None:
        """See GatedOptimizer."""
        first = self.param_groups[0]
        self._taken += 1 - skip
        ramp = (self._taken / max(1, first["warmup_steps"])).clamp(max=1.0)
        rate = first["peak_lr"] * ramp if self.lr_factor is None else first["peak_lr"] * ramp * self.lr_factor
        torch.where(skip > 0, self._lr, rate, out=self._lr)
        self.grad_scale, self.found_inf = 1 / scale, skip
        kept = first["lr"]
        for group in self.param_groups:
            group["lr"] = self._lr.float()
        torch.optim.AdamW.step(self)
        for group in self.param_groups:
            group["lr"] = kept

    def bind(self) -> None:
        """Nothing: torch's kernel takes addresses from its launch."""

    def state_dict(self) -> dict[str, Any]:
        """As WarmupAdamW's, the counters fetched from the device."""
        taken, lr = round(self._taken.item()), self._lr.item()
        for group in self.param_groups:
            group.update(steps_taken=taken, lr=lr if taken else group["peak_lr"])
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state of this class or of WarmupAdamW."""
        super().load_state_dict(state_dict)
        self._taken.fill_(self.param_groups[0]["steps_taken"])
        self._lr.fill_(self.param_groups[0]["lr"])


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """Rate of the last step, kept on the host: a schedule-free optimizer has it apart from its peak."""
    group = optimizer.param_groups[0]
    return float(group.get("scheduled_lr") or group["lr"])


def set_mode(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Switch an averaging optimizer's weights to `train` or `eval`; nothing for others."""
    switch = getattr(optimizer, mode, None)
    if switch is not None:
        switch()


def _groups(model: nn.Module, cfg: OptimizerSection) -> list[dict[str, Any]]:
    """All parameters with weight decay, or only those of two and more axes."""
    parameters = list(model.parameters())
    if cfg.decay == "all":
        return [{"params": parameters, "weight_decay": cfg.weight_decay}]
    matrices = [p for p in parameters if p.dim() >= 2]
    others = [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
