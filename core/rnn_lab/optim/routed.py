"""One torch optimizer over everything: matrices by Muon or GaLore, the rest by AdamW, each parameter by its route.

Its counters are on the device, so that a step can be left out by a flag. Where every rule can be left out so, the
optimizer is a `GatedRouted`, whose step a CUDA graph may replay; when to refresh GaLore's subspaces, the host decides.
State is allocated at construction: what memory it takes is known before the first step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch
from torch import Tensor, nn

from rnn_lab.optim.adamw import Adam8bit, AdamBatch
from rnn_lab.optim.batch import Signals
from rnn_lab.optim.galore import GaLoreBatch
from rnn_lab.optim.gum import GumBatch
from rnn_lab.optim.library import LibraryAdam
from rnn_lab.optim.muon import MuonBatch
from rnn_lab.optim.routing import Route, routing_table

Rule = MuonBatch | GaLoreBatch | GumBatch | AdamBatch | Adam8bit | LibraryAdam
Told = dict[str, list[float]]
FIGURES = {
    "quant/rel_err": "quant/rel_err_median", "galore/energy": "galore/energy",
    "galore/energy_stale": "galore/energy_stale", "galore/subspace_overlap": "galore/subspace_overlap",
}  # fmt: skip
"""Columns of what is known per matrix: the median over them."""


@dataclass(frozen=True)
class Assigned:
    """A parameter with its route and what was decided for it.

    Attributes:
        route: its route.
        parameter: itself.
        rule: name of the rule, for people.
        reason: why.

    """

    route: Route
    parameter: nn.Parameter
    rule: str
    reason: str


class RoutedOptimizer(torch.optim.Optimizer):
    """Rules by group of parameters.

    Args:
        groups: parameter groups: `params`, `lr`, `weight_decay`, `warmup_steps`, and `rules`: what updates them.
        assigned: every parameter's route.
        settings: what the state's form depends on; a state saved under others is refused.

    """

    def __init__(self, groups: list[dict[str, Any]], assigned: Sequence[Assigned], settings: dict[str, Any]) -> None:
        self.rules: list[tuple[int, Rule]] = [(i, rule) for i, group in enumerate(groups) for rule in group["rules"]]
        plain = [{key: value for key, value in group.items() if key != "rules"} for group in groups]
        super().__init__(plain, {})
        self.assigned, self.settings = tuple(assigned), settings
        device = next(p.device for group in self.param_groups for p in group["params"] if not p.is_meta)
        self.lr_factor: Tensor | None = None
        """Factor of a schedule, a scalar on the device that every rate, after its warm-up, is multiplied by."""
        self._taken = torch.zeros((), dtype=torch.float64, device=device)
        self._lrs = torch.zeros(len(groups), dtype=torch.float64, device=device)
        self._one, self._zero = torch.ones((), device=device), torch.zeros((), device=device)
        self._done = 0
        for group in self.param_groups:
            group.update(steps_taken=0, scheduled_lr=0.0)
        self._show_state()

    def routing(self) -> list[tuple[str, str, int, str, str]]:
        """Rows of (name, shape, parameters, rule, reason)."""
        return routing_table((each.route, each.rule, each.reason) for each in self.assigned)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update from the gradients in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update(self._one, self._zero)
        for group, lr in zip(self.param_groups, self._lrs.tolist(), strict=True):
            group["scheduled_lr"] = lr
        return loss

    @torch.no_grad()
    def _update(self, scale: Tensor, skip: Tensor) -> None:
        """One update from the gradients times `scale`; nothing changes where `skip` is not 0."""
        skipped = skip > 0
        going = self._advance(skipped)
        for i, rule in self.rules:
            self._apply(i, rule, Signals(scale.double(), skipped, going, self._lrs[i] * going))
        self._finish()

    def _advance(self, skipped: Tensor) -> Tensor:
        """Count a step and set its rates, unless it is skipped; 1, or 0 where it is."""
        going = (~skipped).double()
        self._done += 1
        self._taken += going
        for i, group in enumerate(self.param_groups):
            ramp = (self._taken / max(1, group["warmup_steps"])).clamp(max=1.0)
            rate = group["lr"] * ramp if self.lr_factor is None else group["lr"] * ramp * self.lr_factor
            self._lrs[i].copy_(torch.where(skipped, self._lrs[i], rate))
        return going

    def _apply(self, i: int, rule: Rule, now: Signals) -> None:
        """The update of one rule of group i."""
        decay = self.param_groups[i]["weight_decay"]
        if isinstance(rule, MuonBatch):
            rule.step(now, decay)
        elif isinstance(rule, GaLoreBatch | GumBatch | LibraryAdam):
            rule.step(now, decay, self._done)
        else:
            rule.step(now, decay, self._taken)

    def _finish(self) -> None:
        if any(isinstance(rule, GumBatch) for _, rule in self.rules):
            self._show_state()  # a period may have begun, whose momentum has another shape

    def states(self) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
        """(parameter, name, tensor) of everything that is stored between steps."""
        for _, rule in self.rules:
            if isinstance(rule, MuonBatch | GaLoreBatch):
                yield from rule.states(rule.tensors)
            elif isinstance(rule, GumBatch):
                yield from rule.stored()
            else:
                yield from rule.states()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: tensors of their own, counters fetched from the device."""
        taken, lrs = round(self._taken.item()), self._lrs.tolist()
        self._done = taken
        order: dict[int, int] = {}
        groups = []
        for group, lr in zip(self.param_groups, lrs, strict=True):
            group.update(steps_taken=taken, scheduled_lr=lr)
            order |= {id(p): len(order) + i for i, p in enumerate(group["params"])}
            packed = {key: value for key, value in group.items() if key != "params"}
            groups.append({**packed, "params": [order[id(p)] for p in group["params"]], "settings": self.settings})
        state: dict[int, dict[str, Tensor]] = {}
        for p, name, tensor in self.states():
            state.setdefault(order[id(p)], {})[name] = tensor.detach().clone()
        if waiting := [[order[id(p)], slot, k] for p, slot, k in self._waiting()]:
            groups[0]["waiting"] = waiting
        return {"state": state, "param_groups": groups}

    def _waiting(self) -> Iterator[tuple[nn.Parameter, int, int]]:
        """(parameter, slot, matrix of the piece) of subspaces whose refresh waits for a gradient."""
        for _, rule in self.rules:
            if isinstance(rule, GaLoreBatch | GumBatch):
                for member, span in rule:
                    matrices = range(*span.indices(rule.shape[0]))
                    yield from ((member.parameter, member.slot, k - span.start) for k in matrices if k in rule.waiting)

    def _wait(self, waiting: set[tuple[int, int, int]]) -> None:
        """Inverse of `_waiting`, by (id of parameter, slot, matrix)."""
        for _, rule in self.rules:
            if isinstance(rule, GaLoreBatch | GumBatch):
                rule.waiting = [
                    k
                    for member, span in rule
                    for k in range(*span.indices(rule.shape[0]))
                    if (id(member.parameter), member.slot, k - span.start) in waiting
                ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, in the dtypes it was saved in: codes stay int8, scales fp32.

        Raises:
            ValueError: it is of other parameters, shapes, block size or rank; nothing was loaded then.

        """
        groups = state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("the optimizer's state is of other parameter groups")
        for key, value in self.settings.items():
            saved = groups[0].get("settings", {}).get(key)
            if saved != value:
                raise ValueError(
                    f"the optimizer's state was saved with {key} = {saved}, and this optimizer has {value}: set "
                    f"optimizer.{key} back, or start anew"
                )
        gum = [rule for _, rule in self.rules if isinstance(rule, GumBatch)]
        before = [(rule.full, rule.value) for rule in gum]
        for rule in gum:
            rule.begin(int(groups[0]["steps_taken"]))
        try:
            pairs = self._saved(state_dict)
        except ValueError:
            for rule, (full, value) in zip(gum, before, strict=True):
                rule.full, rule.value = full, value
            raise
        with torch.no_grad():
            for tensor, saved in pairs:
                tensor.copy_(saved)
        for group, saved_group in zip(self.param_groups, groups, strict=True):
            group.update({k: v for k, v in saved_group.items() if k not in ("params", "settings", "waiting")})
        order = [p for group in self.param_groups for p in group["params"]]
        self._wait({(id(order[int(i)]), slot, k) for i, slot, k in groups[0].get("waiting", [])})
        self._done = int(groups[0]["steps_taken"])
        self._taken.fill_(self._done)
        self._lrs.copy_(torch.tensor([g["scheduled_lr"] for g in groups], dtype=torch.float64))
        self._show_state()

    def _saved(self, state_dict: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Every tensor of the state beside its saved one."""
        order = [p for group in self.param_groups for p in group["params"]]
        saved_state = {id(order[int(index)]): entries for index, entries in state_dict["state"].items()}
        pairs = []
        for p, name, tensor in self.states():
            saved = saved_state.get(id(p), {}).get(name)
            if saved is None or saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                found = "nothing" if saved is None else f"{saved.dtype} {tuple(saved.shape)}"
                raise ValueError(
                    f"the optimizer's state holds {found} where {name} of a parameter {tuple(p.shape)} is "
                    f"{tensor.dtype} {tuple(tensor.shape)}: it was saved with another block size, rank or rule"
                )
            pairs.append((tensor, saved))
        return pairs

    def diagnostics(self, everywhere: Callable[[Told], list[Told]] = lambda told: [told]) -> dict[str, float]:
        """Figures for a log now and then; they wait for the device.

        `quant/rel_err_median` and `_max`: what 8-bit momentum loses, over matrices. `galore/energy`, `energy_stale`
        (the old subspace on the new gradient), `subspace_overlap` and `refresh_ms`: of the last refreshes.

        Args:
            everywhere: what each of the processes tells that share the parameters out, this one what is given.

        """
        told: Told = {}
        for rule in (rule for _, rule in self.rules if isinstance(rule, MuonBatch | GaLoreBatch)):
            of_rule = {} if (errors := rule.momentum.errors()) is None else {"quant/rel_err": errors}
            if isinstance(rule, GaLoreBatch):
                of_rule |= {f"galore/{name}": values for name, values in rule.figures().items()}
                told.setdefault("seconds", []).append(rule.watch.seconds)
            for name, values in of_rule.items():
                told.setdefault(name, []).extend(values.tolist())
        ranks = everywhere(told)
        every = {name: [v for rank in ranks for v in rank.get(name, [])] for name in FIGURES}
        found = {FIGURES[name]: median_low(values) for name, values in every.items() if values}
        if every["quant/rel_err"]:
            found["quant/rel_err_max"] = max(every["quant/rel_err"])
        if any("seconds" in rank for rank in ranks):
            found["galore/refresh_ms"] = 1e3 * max(sum(rank.get("seconds", [])) for rank in ranks)
        return found

    def _show_state(self) -> None:
        """Let `optimizer.state` show what is stored, as torch's optimizers do."""
        self.state.clear()
        for p, name, tensor in self.states():
            self.state[p][name] = tensor


class GatedRouted(RoutedOptimizer):
    """A RoutedOptimizer all of whose rules can be left out by a flag on the device; see GatedOptimizer."""

    @property
    def lr_now(self) -> Tensor:
        """Rate of the matrices in the last step, a scalar on the device."""
        return self._lrs[0]

    def gated_step(self, scale: Tensor, skip: Tensor) -> None:
        """See GatedOptimizer."""
        self._update(scale, skip)

    def bind(self) -> None:
        """Nothing: every launch carries its addresses."""


def gated(rules: Sequence[Rule]) -> bool:
    """Whether all of them can be left out by a flag."""
    return all(isinstance(rule, MuonBatch | AdamBatch | Adam8bit) for rule in rules)
