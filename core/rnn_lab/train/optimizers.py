"""Optimizers of the core: factories that take (model, OptimizerSection) and return a torch optimizer.

An optimizer that averages its weights, as schedule-free ones do, has `train()` and `eval()`; the loop calls them
where they exist.
"""

from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from rnn_lab.config import OptimizerSection


def schedule_free_adamw(model: nn.Module, cfg: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW whose evaluation weights are a running average instead of a learning-rate schedule (arXiv 2405.15682)."""
    optimizer: torch.optim.Optimizer = AdamWScheduleFree(
        _groups(model, cfg), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, warmup_steps=cfg.warmup_steps
    )
    return optimizer


def adamw(model: nn.Module, cfg: OptimizerSection) -> torch.optim.Optimizer:
    """torch's AdamW at a constant rate after a linear warm-up."""
    return WarmupAdamW(_groups(model, cfg), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, warmup_steps=cfg.warmup_steps)


class WarmupAdamW(torch.optim.AdamW):
    """AdamW whose rate rises linearly over the first `warmup_steps` steps; the step count lives in its state."""

    def __init__(self, params: Any, *, lr: float, warmup_steps: int, **kwargs: Any) -> None:
        super().__init__(params, lr=lr, **kwargs)
        for group in self.param_groups:
            group.update(peak_lr=lr, warmup_steps=warmup_steps, steps_taken=0)

    def step(self, closure: Any = None) -> Any:
        """One update at the rate of this step."""
        for group in self.param_groups:
            group["steps_taken"] += 1
            group["lr"] = group["peak_lr"] * min(1.0, group["steps_taken"] / max(1, group["warmup_steps"]))
        return super().step(closure)


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """Rate of the last step: a schedule-free optimizer keeps it apart from its peak."""
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
