"""Figures of a run besides its losses: cheap ones for every line, and now and then those that wait for the device."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rnn_lab.config import RunConfig
from rnn_lab.lm import LM
from rnn_lab.optim.routed import RoutedOptimizer
from rnn_lab.optim.state_bytes import measured
from rnn_lab.parallel.sharing import Sharing
from rnn_lab.train.step import Outcome

CLIP_WINDOW = 100
SAMPLE = 16384
"""Values of each parameter that the size of an update is estimated from, evenly spaced; all of smaller ones."""


class Figures:
    """What one run tells of itself besides its losses.

    Args:
        cfg: the resolved configuration.
        model, optimizer: on their device.
        sharing: whose parameters; None: the model's, whole.

    """

    def __init__(
        self, cfg: RunConfig, model: LM, optimizer: torch.optim.Optimizer, sharing: Sharing | None = None
    ) -> None:
        self.cfg, self.optimizer, self.sharing = cfg, optimizer, sharing or Sharing(model)
        self.device = model.embedding.weight.device
        self._clipped: deque[bool] = deque(maxlen=CLIP_WINDOW)
        self._before: list[Tensor] | None = None
        self._aux = isinstance(optimizer, RoutedOptimizer) and len(optimizer.param_groups) > 1

    def seen(self, lines: Iterable[dict[str, Any]]) -> None:
        """Lines of metrics.jsonl that lie before the next step."""
        self._clipped.clear()
        for line in lines:
            self._count(line["grad_norm"])

    def _count(self, norm: float | None) -> None:
        self._clipped.append(norm is None or not norm <= self.cfg.train.clip)

    def of_step(self, outcome: Outcome, elapsed: float) -> dict[str, float]:
        """Columns of every line, from what the host knows anyway; `elapsed` seconds of the run went by."""
        found = {"step_ms": 1e3 * outcome.seconds, "elapsed_s": elapsed}
        if self.cfg.train.clip:
            self._count(outcome.grad_norm)
            found["clip_fraction"] = sum(self._clipped) / len(self._clipped)
        if self.cfg.schedule.type != "none":
            found["lr_factor"] = outcome.factor
        if self._aux:
            # Both rates have the same warm-up and schedule.
            found["lr_aux"] = outcome.lr * self.cfg.optimizer.aux_lr / self.cfg.optimizer.lr
        return found

    @torch.no_grad()
    def before(self) -> None:
        """Remember the parameters that the next step starts from; nothing may be queued."""
        self._before = [_sampled(p) for p in self.sharing.parameters]

    @torch.no_grad()
    def now(self) -> dict[str, float]:
        """Columns of the lines that wait for the device; nothing may be queued after the step."""
        parameters: list[Tensor] = list(self.sharing.parameters)
        norms = torch.stack(torch._foreach_norm(parameters)).double()
        found = {"param_norm": self.sharing.over_shards(norms.square().sum()).sqrt().item()}
        if self._before is not None:
            sizes = [float(p.numel()) for p in parameters]
            means = torch.stack([
                (_sampled(p) - old).double().square().sum() / max(1, old.numel())
                for p, old in zip(parameters, self._before, strict=True)
            ])  # fmt: skip
            total = means.cpu() @ torch.tensor(sizes).double()
            both = self.sharing.over_shards(torch.stack([total, total.new_tensor(sum(sizes))]).to(self.device))
            found["update_rms"] = (both[0] / both[1]).sqrt().item()
            self._before = None
        found["opt_state_bytes"] = sum(measured(self.optimizer).values())
        if self.device.type == "cuda":
            found["memory_reserved_bytes"] = torch.cuda.memory_reserved(self.device)
        if isinstance(self.optimizer, RoutedOptimizer):
            found |= self.optimizer.diagnostics(self.sharing.over_owners)
        return found


def _sampled(p: Tensor) -> Tensor:
    """A copy of evenly spaced values."""
    return p.detach().reshape(-1)[:: max(1, p.numel() // SAMPLE)].clone()


def finite(figures: dict[str, Any]) -> dict[str, Any]:
    """The same with null for what is no number, as JSON has it."""
    bad = (float("inf"), float("-inf"))
    return {key: None if isinstance(v, float) and (v != v or v in bad) else v for key, v in figures.items()}
