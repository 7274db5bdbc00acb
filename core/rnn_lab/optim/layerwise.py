"""Updates within backward: each parameter as soon as its gradient is there, which is freed at once.

So no more than a few gradients exist at a time. Nothing can look at all of them before the first is applied: no clip by
the global norm, no accumulation over micro-batches, and a step that turns out not to be finite is applied in part.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rnn_lab.optim.batch import Signals
from rnn_lab.optim.galore import GaLoreBatch
from rnn_lab.optim.gum import GumBatch
from rnn_lab.optim.library import LibraryAdam
from rnn_lab.optim.muon import MuonBatch
from rnn_lab.optim.routed import RoutedOptimizer, Rule


class LayerwiseRouted(RoutedOptimizer):
    """A RoutedOptimizer each of whose rules has one parameter; between `begin` and `end` backward updates them.

    Outside of that gradients stay, and `step` updates as ever.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._of: dict[int, list[tuple[int, Rule]]] = {}
        for i, rule in self.rules:
            for p in _owners(rule):
                self._of.setdefault(id(p), []).append((i, rule))
        for group in self.param_groups:
            for p in group["params"]:
                p.register_post_accumulate_grad_hook(self._ready)
        self._armed, self._sound = False, True
        self._squares: list[Tensor] = []
        self._never = torch.zeros((), dtype=torch.bool, device=self._one.device)

    def begin(self) -> None:
        """The next backward updates."""
        self._armed, self._sound, self._squares = True, True, []
        self._going = self._advance(self._never)

    def judge(self, loss: Tensor) -> None:
        """Update nothing if the loss that backward starts from is not finite; waits for the device."""
        self._sound = self._sound and bool(torch.isfinite(loss))

    def end(self) -> tuple[Tensor, bool]:
        """Norm of all gradients together, and whether every update was made."""
        self._armed = False
        self._finish()
        for group, lr in zip(self.param_groups, self._lrs.tolist(), strict=True):
            group["scheduled_lr"] = lr
        norm = torch.stack(self._squares).sum().sqrt() if self._squares else self._zero.double()
        return norm, self._sound

    @torch.no_grad()
    def _ready(self, p: Tensor) -> None:
        """The gradient of p is complete, and everything that needs p's value has run."""
        if not self._armed or p.grad is None:
            return
        square = p.grad.double().square().sum()
        self._squares.append(square)
        self._sound = self._sound and bool(torch.isfinite(square))
        if self._sound:
            for i, rule in self._of[id(p)]:
                now = Signals(self._one.double(), self._never, self._going, self._lrs[i] * self._going)
                self._apply(i, rule, now)
        p.grad = None


def _owners(rule: Rule) -> list[nn.Parameter]:
    """The parameters that a rule updates, each once."""
    if isinstance(rule, MuonBatch | GaLoreBatch | GumBatch):
        found = [member.parameter for member in rule.members]
    elif isinstance(rule, LibraryAdam):
        raise TypeError("a library's step is one for all parameters")
    else:
        found = rule.parameters if hasattr(rule, "parameters") else [rule.parameter]
    return list({id(p): p for p in found}.values())
