"""The learning rate over a run as a factor of `optimizer.lr`, set before the step that it is for.

Update k from 0, of `total`, warm-up w, k0 = floor(stable_ratio total):

    k < w            (k + 1) / w
    constant         1
    wsd, k < k0      1
    wsd              m + (1 - m) (1 + cos(pi p)) / 2,   p = min(1, (k - k0) / (total - k0)),   m = min_lr_ratio
    cosine           the same with k0 = w

A budget in minutes has no total: there progress is the spent share of the training clock, and k / total stands for it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from rnn_lab.config import RunConfig, TrainSection
from rnn_lab.errors import ConfigError
from rnn_lab.sections import ScheduleSection
from rnn_lab.train.budget import Budget
from rnn_lab.train.optimizers import GatedOptimizer

LEAST = 0.01
"""Share of the rate that a warm-up by the clock begins with, which shows no time at its first step."""


class Schedule:
    """Factors of one run.

    Args:
        cfg: the section.
        train: its budget.

    Raises:
        ConfigError: the warm-up does not end within the budget.

    """

    def __init__(self, cfg: ScheduleSection, train: TrainSection) -> None:
        self.cfg, self.budget = cfg, Budget.of(train)
        self.total = total_steps(self.budget)
        self.timed = train.minutes is not None
        warmup = warmup_steps(cfg, self.total)
        if self.total is not None and warmup is not None and warmup >= self.total:
            raise ConfigError(
                f"schedule.warmup = {warmup} does not end within the budget of {self.total} steps: "
                "lower it, or give a share such as 0.1"
            )

    def factor(self, k: int, seconds: float) -> float:
        """Factor of update k from 0, when `seconds` of the training clock are spent."""
        if self.timed:
            assert self.budget.seconds is not None
            by_time = self._by_share(k, seconds / self.budget.seconds)
            # Whichever budget ends first ends the run.
            return by_time if self.total is None else min(by_time, self._by_steps(k, self.total))
        assert self.total is not None
        return self._by_steps(k, self.total)

    def _by_steps(self, k: int, total: int) -> float:
        warmup = warmup_steps(self.cfg, total)
        assert warmup is not None
        if k < warmup:
            return (k + 1) / warmup
        first = math.floor(self.cfg.stable_ratio * total) if self.cfg.type == "wsd" else warmup
        return self._decayed(k, max(first, warmup), total)

    def _by_share(self, k: int, share: float) -> float:
        warmup = self.cfg.warmup
        if warmup >= 1 and k < warmup:
            return (k + 1) / warmup
        if 0 < warmup < 1 and share < warmup:
            return max(LEAST, share / warmup)
        risen = warmup if warmup < 1 else 0.0
        return self._decayed(share, max(self.cfg.stable_ratio, risen) if self.cfg.type == "wsd" else risen, 1.0)

    def _decayed(self, at: float, first: float, end: float) -> float:
        if self.cfg.type == "constant" or at < first:
            return 1.0
        p = min(1.0, (at - first) / (end - first)) if end > first else 1.0
        least = self.cfg.min_lr_ratio
        return least + (1 - least) * (1 + math.cos(math.pi * p)) / 2


def total_steps(budget: Budget) -> int | None:
    """Steps that a budget of steps or bytes allows; None for one of minutes alone."""
    found = [] if budget.steps is None else [budget.steps]
    if budget.tokens is not None:
        found.append(budget.tokens // budget.tokens_per_step)
    return min(found, default=None)


def warmup_steps(cfg: ScheduleSection, total: int | None) -> int | None:
    """Updates that the rate rises over; None for a share of minutes."""
    if cfg.warmup >= 1 or cfg.warmup == 0:
        return int(cfg.warmup)
    return None if total is None else max(1, round(cfg.warmup * total))


def filter_start(cfg: RunConfig) -> int:
    """Steps before Collider filters: those that are asked for, or those of the warm-up.

    Raises:
        ConfigError: the warm-up is a share of minutes, which is no number of steps.

    """
    if cfg.objective.collider_start_step is not None:
        return cfg.objective.collider_start_step
    if cfg.schedule.type == "none":
        return cfg.optimizer.warmup_steps
    steps = warmup_steps(cfg.schedule, total_steps(Budget.of(cfg.train)))
    if steps is None:
        raise ConfigError(
            f"schedule.warmup = {cfg.schedule.warmup} is a share of minutes: give objective.collider_start_step"
        )
    return steps


def check_schedule(cfg: RunConfig) -> None:
    """Refuse what cannot work before anything is built.

    Raises:
        ConfigError: two warm-ups, or one that does not end.

    """
    if cfg.schedule.type == "none":
        return
    Schedule(cfg.schedule, cfg.train)
    if cfg.optimizer.warmup_steps:
        raise ConfigError(
            f"schedule.type = {cfg.schedule.type} has a warm-up of its own: give schedule.warmup instead of "
            f"optimizer.warmup_steps = {cfg.optimizer.warmup_steps}"
        )


AVERAGES = (
    "schedule.type: this optimizer averages its weights instead of following a schedule. Use schedule.type = none with "
    "optimizer.warmup_steps, or another optimizer such as adamw"
)


def check_follows(cfg: RunConfig, factory: Any) -> None:
    """Refuse a schedule where an optimizer's factory says that it averages weights, before anything is made.

    Raises:
        ConfigError: it does; see `rnn_lab.train.optimizers.averaging`.

    """
    if cfg.schedule.type != "none" and getattr(factory, "averaging", False):
        raise ConfigError(AVERAGES)


def accept_schedule(optimizer: torch.optim.Optimizer, factor: Tensor) -> bool:
    """Let an optimizer follow the factor in `factor`, a scalar on its device.

    Returns:
        Whether it reads `factor` itself, by `lr_factor`; the rates of others are set by `set_factor`.

    Raises:
        ConfigError: it averages its weights, which stands in for a schedule, or keeps its rate from us.

    """
    if hasattr(optimizer, "eval"):
        raise ConfigError(AVERAGES)
    return follow(optimizer, factor)


def follow(optimizer: torch.optim.Optimizer, factor: Tensor) -> bool:
    """As `accept_schedule`, of any optimizer: one that averages its weights can be slowed down for a while.

    Raises:
        ConfigError: it keeps its rate from us.

    """
    if hasattr(optimizer, "lr_factor"):
        optimizer.lr_factor = factor
        return True
    if isinstance(optimizer, GatedOptimizer):
        raise ConfigError(
            f"schedule.type: {type(optimizer).__name__} has no lr_factor, which a schedule and a roll-back need"
        )
    return False


def set_factor(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rates of an optimizer that knows no schedules; its peaks stay in its groups as `peak_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor
