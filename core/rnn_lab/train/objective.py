"""What is back-propagated where that is not the loss itself: docs/objectives.md.

    objective = CE_1 + mtp_weight sum_k mtp_decay^(k-2) CE_k  [smoothed]  - entropy_weight mean H

over all positions, or over those that Collider keeps. `loss` is always CE_1 over all positions, unsmoothed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.fused.cross_entropy import CROSS_ENTROPY, IGNORED
from rnn_lab.layer import State
from rnn_lab.lm import LM
from rnn_lab.sections import ObjectiveSection
from rnn_lab.token_filter import TokenFilter, linear, unfiltered
from rnn_lab.train.heads import Heads

SPAN = 1e-8
"""What keeps compat's normalisation from dividing by zero."""


@dataclass(frozen=True)
class Parts:
    """One pass.

    Attributes:
        objective: what to back-propagate.
        loss: next-byte cross-entropy over all positions.
        states: of the trunk's layers, then of the heads' blocks.
        figures: what `Objective.columns` names, in that order.

    """

    objective: Tensor
    loss: Tensor
    states: list[State]
    figures: list[Tensor]


class Objective:
    """Computes what `[objective]` describes.

    Args:
        cfg: the section.
        seed: of the run: which positions the random scorer keeps.
        reference: the model of the scorer `excess`.

    """

    def __init__(self, cfg: ObjectiveSection, seed: int = 0, reference: LM | None = None) -> None:
        self.cfg, self.seed, self.reference = cfg, seed, reference
        weights = [cfg.mtp_decay**i for i in range(cfg.horizons - 1)]
        scale = cfg.mtp_weight / (sum(weights) if cfg.mtp_normalize and weights else 1.0)
        self.weights = [scale * w for w in weights]
        self.filters = cfg.use_collider and cfg.collider_sparsity > 0
        self.columns = ("objective", *(f"mtp_k{k}" for k in range(2, cfg.horizons + 1)))
        self.columns += ("mtp_total",) if self.weights else ()
        self.columns += ("entropy",) if cfg.entropy_weight else ()
        self.columns += ("collider_sparsity", "collider_kept_ce", "collider_filtered_ce") if self.filters else ()

    @property
    def ahead(self) -> int:
        """Bytes that a window holds behind its inputs."""
        return self.cfg.horizons

    def kept_per_sequence(self, T: int) -> int:
        """Positions of a sequence that are kept in mode topk: round((1 - s) T), at least one."""
        return max(1, round((1 - self.cfg.collider_sparsity) * T))

    def __call__(
        self, model: LM, window: Tensor, states: list[State] | None, reset_BT: Tensor | None, *,
        filtering: bool = False, step: Tensor | None = None, first_row: int = 0,
    ) -> Parts:  # fmt: skip
        """The forward pass; what it sets up for backward holds until the next.

        Args:
            model: the language model, its heads attached.
            window: bytes `[B, T + ahead]`.
            states: as returned in `Parts`; zeros when None.
            reset_BT: see LM.forward.
            filtering: whether Collider filters yet.
            step: number of the optimizer step, a scalar on the device, for the random scorer.
            first_row: of the batch of the step, for the same.

        """
        B, T = window.shape[0], window.shape[1] - self.ahead
        if not (filtering and self.filters):
            return self._parts(model, window, T, states, reset_BT, None, step, first_row)
        held = TokenFilter((B, T), model.backends, self.cfg.collider_recurrent)
        with held.during():
            return self._parts(model, window, T, states, reset_BT, held, step, first_row)

    def _parts(
        self, model: LM, window: Tensor, T: int, states: list[State] | None, reset_BT: Tensor | None,
        held: TokenFilter | None, step: Tensor | None, first_row: int,
    ) -> Parts:  # fmt: skip
        depth = model.cfg.depth
        own = None if states is None else states[:depth]
        stream_BTD, x_BTD, new = model.trunk(window[:, :T], own, reset_BT)
        logits_BTV = linear(x_BTD, model.embedding.weight)
        targets_BT = window[:, 1 : T + 1].long()
        nll_BT = None
        if held is not None:
            nll_BT = per_position(logits_BTV.detach(), targets_BT)
            self.choose(held, nll_BT, window[:, : T + 1], reset_BT, step, first_row)
        first = self._ce(model, logits_BTV, targets_BT, held)
        loss = first.detach() if nll_BT is None else nll_BT.mean()
        objective, entropy = self._regularised(first, logits_BTV, held)
        ahead: list[Tensor] = []
        if self.weights:
            heads = model.heads if isinstance(model.heads, Heads) else Heads(model, self.cfg)
            later = None if states is None else states[depth:]
            for k, logits, state in heads(model, stream_BTD, x_BTD, window, later, reset_BT, logits_BTV):
                ce = self._ce(model, logits, window[:, k : T + k].long(), held)
                ahead.append(ce)
                new = new if state is None else [*new, state]
            total = torch.stack([w * ce for w, ce in zip(self.weights, ahead, strict=True)]).sum()
            objective = objective + total
            ahead.append(total)
        figures = [objective, *ahead, *([] if entropy is None else [entropy]), *self._told(held, nll_BT, loss)]
        return Parts(objective, loss, new, [figure.detach() for figure in figures])

    def _ce(self, model: LM, logits_BTV: Tensor, targets_BT: Tensor, held: TokenFilter | None) -> Tensor:
        """Mean cross-entropy over all positions, or the kept ones."""
        if held is not None and held.mask_BT is not None:
            targets_BT = torch.where(held.mask_BT, targets_BT, IGNORED)
        mean: Tensor = CROSS_ENTROPY(model.backends, logits_BTV, targets_BT)
        return mean

    def _regularised(self, ce: Tensor, logits_BTV: Tensor, held: TokenFilter | None) -> tuple[Tensor, Tensor | None]:
        """(1 - eps) CE + eps mean_v(-log p_v) - w H of the main head, and H."""
        cfg = self.cfg
        if not cfg.label_smoothing and not cfg.entropy_weight:
            return ce, None
        wide = torch.promote_types(logits_BTV.dtype, torch.float32)
        log_p = logits_BTV.to(wide).log_softmax(-1)
        objective, entropy = ce, None
        if cfg.label_smoothing:
            spread = over_kept(-log_p.mean(-1), held)
            objective = (1 - cfg.label_smoothing) * objective + cfg.label_smoothing * spread
        if cfg.entropy_weight:
            entropy = over_kept(-(log_p.exp() * log_p).sum(-1), held)
            objective = objective - cfg.entropy_weight * entropy
        return objective, entropy

    @torch.no_grad()
    def choose(
        self, held: TokenFilter, nll_BT: Tensor, window: Tensor, reset_BT: Tensor | None, step: Tensor | None,
        first_row: int,
    ) -> None:  # fmt: skip
        """Set which positions `held` keeps, by the losses `nll_BT` of windows of T + 1 bytes; see __call__."""
        cfg, T = self.cfg, nll_BT.shape[1]
        if cfg.collider_mode == "compat":
            low, high = nll_BT.amin(1, keepdim=True), nll_BT.amax(1, keepdim=True)
            scores_BT = (nll_BT - low) / (high - low + SPAN)
            edge_B1 = scores_BT.quantile(cfg.collider_sparsity, 1, keepdim=True).clamp(min=cfg.collider_threshold)
            held.keep_where(scores_BT >= edge_B1)
            return
        if cfg.collider_scorer == "random":
            scores_BT = random_scores(nll_BT, self.seed, step, first_row)
        elif cfg.collider_scorer == "excess":
            assert self.reference is not None
            with unfiltered():
                logits_BTV, _ = self.reference(window[:, :-1], None, reset_BT)
            scores_BT = nll_BT - per_position(logits_BTV, window[:, 1:].long())
        else:
            scores_BT = nll_BT
        held.keep(scores_BT.topk(self.kept_per_sequence(T), 1).indices.sort(1).values)

    def _told(self, held: TokenFilter | None, nll_BT: Tensor | None, loss: Tensor) -> list[Tensor]:
        """Realised sparsity, and the loss of what is kept and of what is filtered."""
        if not self.filters:
            return []
        if held is None or held.mask_BT is None or nll_BT is None:
            return [torch.zeros_like(loss), loss, torch.full_like(loss, torch.nan)]
        kept = held.mask_BT.to(nll_BT.dtype)
        gone = 1 - kept
        return [gone.mean(), (nll_BT * kept).sum() / kept.sum(), (nll_BT * gone).sum() / gone.sum()]


def per_position(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy of every position in nats `[B, T]`, fp32 (fp64 for fp64 logits)."""
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)
    flat = F.cross_entropy(logits_BTV.to(wide).flatten(0, 1), targets_BT.flatten(), reduction="none")
    return flat.view(targets_BT.shape)


def over_kept(values_BT: Tensor, held: TokenFilter | None) -> Tensor:
    """Mean over all positions, or the kept ones."""
    if held is None or held.mask_BT is None:
        return values_BT.mean()
    kept = held.mask_BT.to(values_BT.dtype)
    return (values_BT * kept).sum() / kept.sum().clamp(min=1)


def random_scores(like_BT: Tensor, seed: int, step: Tensor | None, first_row: int) -> Tensor:
    """Uniform scores `[B, T]` that follow from seed, step, row and position: no generator, so any resume repeats them.

    Rounds of a 64-bit mixing function (splitmix64's) of the four; one of the seed alone, so that seed 43 at step 2 is
    not seed 42 at step 3.
    """
    B, T = like_BT.shape
    device = like_BT.device
    row = torch.arange(first_row, first_row + B, device=device)[:, None] * (1 << 20)
    x = row + torch.arange(T, device=device)
    k = torch.zeros((), dtype=torch.int64, device=device) if step is None else step.long()
    x = _mixed(x + _mixed(k + _mixed(torch.full_like(k, seed % (1 << 62)))))
    return _shifted(x, 11).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's finaliser, in wrapping int64."""
    x = (x ^ (_shifted(x, 30))) * -4658895280553007687
    x = (x ^ (_shifted(x, 27))) * -7723592293110705685
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right of a signed number."""
    return (x >> by) & ((1 << (64 - by)) - 1)
