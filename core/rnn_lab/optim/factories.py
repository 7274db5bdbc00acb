"""The registered optimizers `muon`, `muon8bit`, `galore_muon` and `galore_adamw`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rnn_lab.config import OptimizerSection
from rnn_lab.errors import ConfigError
from rnn_lab.optim.adamw import AdamRule, adam
from rnn_lab.optim.batch import Member, batches, placed
from rnn_lab.optim.galore import GaLoreBatch, Subspaces
from rnn_lab.optim.gum import GumBatch
from rnn_lab.optim.layerwise import LayerwiseRouted
from rnn_lab.optim.library import LibraryAdam
from rnn_lab.optim.muon import MuonBatch, MuonRule
from rnn_lab.optim.plan import Decision, Kind, codec_of, decisions, settled
from rnn_lab.optim.routed import Assigned, GatedRouted, RoutedOptimizer, Rule, gated


@dataclass(frozen=True)
class Factory:
    """A registered optimizer: called with (model, OptimizerSection).

    A parameter on the meta device is another process's: it keeps its place in the groups and has no state here.

    Attributes:
        kind: its name.

    """

    kind: Kind

    def __call__(self, model: nn.Module, cfg: OptimizerSection) -> RoutedOptimizer:
        """The optimizer over a model on its device.

        Raises:
            ConfigError: settings that contradict each other, a library that is missing, a model without matrices.

        """
        cfg = settled(self.kind, cfg)
        decided = decisions(model, self.kind, cfg)
        parameters = dict(model.named_parameters())
        matrices = [(parameters[name], each) for name, each in decided.items() if not each.is_aux]
        if self.kind != "galore_adamw" and not matrices:
            raise ConfigError(f"optimizer {self.kind}: this model has no matrices to orthogonalise: use adamw")
        rest = [(parameters[name], each) for name, each in decided.items() if each.is_aux]
        rules: list[Rule] = [*self._matrix_rules(matrices, cfg, {name: i for i, name in enumerate(decided)})]
        first = {"params": [p for p, _ in matrices], "lr": cfg.lr, "weight_decay": cfg.weight_decay, "rules": rules}
        groups = [first, *_rest_groups(rest, cfg, self.kind)]
        groups = [group | {"warmup_steps": cfg.warmup_steps} for group in groups if group["params"]]
        assigned = [Assigned(each.route, parameters[name], each.rule, each.reason) for name, each in decided.items()]
        everything: list[Rule] = [rule for group in groups for rule in group["rules"]]
        settings: dict[str, Any] = {"bits": cfg.bits}
        if cfg.galore_layerwise:
            settings["galore_layerwise"] = True  # probes are drawn for each parameter by itself
        if cfg.bits == 8:
            settings |= {"block_size": cfg.block_size, "quant": cfg.quant}
        if self.kind.startswith("galore"):
            settings |= {"galore_rank": cfg.galore_rank, "galore_debias": cfg.galore_debias}
        if cfg.galore_layerwise:
            return LayerwiseRouted(groups, assigned, settings)
        return (GatedRouted if gated(everything) else RoutedOptimizer)(groups, assigned, settings)

    def defaults(self, asked: OptimizerSection) -> dict[str, Any]:
        """Values of `[optimizer]` that this optimizer has where no configuration layer sets them."""
        if self.kind == "galore_adamw":
            return {"lr": 0.01, "weight_decay": 0.0}
        return {"lr": 0.02 if asked.muon_scale == "original" else 0.003, "weight_decay": 0.01}

    def _matrix_rules(
        self, matrices: Sequence[tuple[nn.Parameter, Decision]], cfg: OptimizerSection, order: dict[str, int]
    ) -> list[MuonBatch | GaLoreBatch | GumBatch]:
        by_rank: dict[int | None, list[Member]] = {}
        index: dict[int, int] = {}
        for parameter, each in matrices:
            index[id(parameter)] = order[each.route.name]
            for slot, (piece, rank) in enumerate(zip(each.route.pieces, each.ranks, strict=True)):
                by_rank.setdefault(rank, []).append(Member(parameter, piece, slot))
        muon = MuonRule(cfg.muon_momentum, cfg.ns_steps, cfg.orthogonalizer, cfg.muon_scale, codec_of(cfg))
        rule = AdamRule(cfg.betas, cfg.eps) if self.kind == "galore_adamw" else muon
        found: list[MuonBatch | GaLoreBatch | GumBatch] = []
        for rank, members in by_rank.items():
            for every in _one_by_one(members) if cfg.galore_layerwise else batches(members):
                some, drawn = placed(every)
                if not some:
                    continue
                if rank is None:
                    found.append(MuonBatch(some, muon))
                elif cfg.galore_debias == "gum":
                    found += [
                        GumBatch(one, rank, _subspaces(cfg), muon, cfg.galore_gum_share, index[id(one.parameter)])
                        for one in some
                    ]
                else:
                    found.append(GaLoreBatch(some, rank, _subspaces(cfg), rule, drawn))
        return found


def _one_by_one(members: Sequence[Member]) -> list[list[Member]]:
    """Members of one parameter and shape together: what can be updated when its gradient is there."""
    found: dict[object, list[Member]] = {}
    for member in members:
        found.setdefault((id(member.parameter), member.piece.shape, member.piece.rows), []).append(member)
    return list(found.values())


def _subspaces(cfg: OptimizerSection) -> Subspaces:
    assert cfg.galore_scale is not None
    return Subspaces(
        cfg.galore_update_freq, cfg.galore_on_refresh, cfg.galore_scale, cfg.galore_adaptive,
        torch.bfloat16 if cfg.galore_proj_dtype == "bf16" else None,
    )  # fmt: skip


def _rest_groups(
    rest: Sequence[tuple[nn.Parameter, Decision]], cfg: OptimizerSection, kind: Kind
) -> list[dict[str, Any]]:
    """AdamW's groups: one per rate and weight decay."""
    by_group: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, _ in rest:
        decay = cfg.weight_decay if cfg.decay == "all" or parameter.dim() >= 2 else 0.0
        by_group.setdefault((cfg.aux_lr, decay), []).append(parameter)
    rule = AdamRule(cfg.betas, cfg.eps)
    found = []
    for (lr, decay), parameters in by_group.items():
        rules: list[Any]
        here = [p for p in parameters if not p.is_meta]
        if cfg.aux_8bit and cfg.aux_library == "bitsandbytes":
            rules = [LibraryAdam(here, rule, decay)] if here else []
        else:
            alone = [[p] for p in here] if cfg.galore_layerwise else [here]
            rules = [each for some in alone for each in adam(some, rule, cfg.aux_8bit)]
        found.append({"params": parameters, "lr": lr, "weight_decay": decay, "rules": rules})
    return found


muon = Factory("muon")
muon8bit = Factory("muon8bit")
galore_muon = Factory("galore_muon")
galore_adamw = Factory("galore_adamw")
