"""Which rule a configuration gives to each parameter, decided from shapes alone: before anything is allocated."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from rnn_lab.config import OptimizerSection
from rnn_lab.errors import ConfigError
from rnn_lab.optim.projector import saves
from rnn_lab.optim.quantise import MIN_NUMEL, Blockwise
from rnn_lab.optim.routing import Piece, Route, routes

Kind = Literal["muon", "muon8bit", "galore_muon", "galore_adamw"]
KINDS: tuple[Kind, ...] = ("muon", "muon8bit", "galore_muon", "galore_adamw")


@dataclass(frozen=True)
class Decision:
    """What happens to one parameter.

    Attributes:
        route: its route.
        ranks: of each piece of its route: the rank that it is projected to, or None for the whole matrix.
        rule: for people.
        reason: why.

    """

    route: Route
    ranks: tuple[int | None, ...]
    rule: str
    reason: str

    @property
    def is_aux(self) -> bool:
        """Whether plain AdamW has it."""
        return not self.ranks


def settled(kind: Kind, cfg: OptimizerSection) -> OptimizerSection:
    """The section with everything filled in that its name decides.

    Raises:
        ConfigError: settings that contradict the name.

    """
    if kind == "muon8bit" and cfg.bits == 32:
        raise ConfigError("optimizer.bits = 32 contradicts optimizer.name = muon8bit: name muon, or leave bits out")
    if kind == "galore_adamw" and cfg.bits == 8:
        raise ConfigError("optimizer.bits = 8 is of Muon's momentum, and galore_adamw has none: name galore_muon")
    if kind != "galore_muon" and cfg.galore_debias != "none":
        raise ConfigError(f"optimizer.galore_debias = {cfg.galore_debias} is a form of galore_muon, not of {kind}")
    if cfg.galore_debias != "none" and (cfg.galore_adaptive or cfg.bits == 8):
        raise ConfigError("optimizer.galore_debias = gum has fp32 momentum and fixed periods: no bits = 8, no adaptive")
    if cfg.galore_layerwise and not kind.startswith("galore"):
        raise ConfigError(f"optimizer.galore_layerwise is of galore_muon and galore_adamw, not of {kind}")
    if cfg.galore_layerwise and cfg.aux_8bit and cfg.aux_library != "own":
        raise ConfigError("optimizer.galore_layerwise updates parameters one by one: it needs aux_library = own")
    if cfg.stochastic_rounding and cfg.quant != "linear":
        raise ConfigError("optimizer.stochastic_rounding is between equal steps: it needs quant = linear")
    bits = cfg.bits or (8 if kind == "muon8bit" else 32)
    scale = cfg.galore_scale or (0.25 if kind == "galore_adamw" else 1.0)
    dtype = cfg.galore_proj_dtype or ("bf16" if bits == 8 else "fp32")
    return cfg.model_copy(update={"bits": bits, "galore_scale": scale, "galore_proj_dtype": dtype})


def codec_of(cfg: OptimizerSection) -> Blockwise | None:
    """Codec of the momentum of a settled section."""
    return Blockwise(cfg.block_size, cfg.quant, cfg.stochastic_rounding) if cfg.bits == 8 else None


def decisions(model: nn.Module, kind: Kind, cfg: OptimizerSection) -> dict[str, Decision]:
    """A decision for every parameter that takes gradients, by name.

    Args:
        model: on any device, meta included.
        kind: registered name of the optimizer.
        cfg: a settled section.

    """
    found = {}
    for name, route in routes(model, cfg.muon_heads).items():
        if not route.pieces:
            found[name] = _aux(route, cfg, route.reason)
        elif kind in ("muon", "muon8bit"):
            found[name] = _by_muon(route, (None,) * len(route.pieces), cfg, route.reason)
        else:
            found[name] = _projected(route, kind, cfg)
    return found


def rank_of(piece: Piece, cfg: OptimizerSection) -> tuple[int | None, str]:
    """The rank that a matrix is projected to, or None and why not."""
    _, m, n = piece.shape
    rank = max(1, m // 4) if cfg.galore_rank is None else min(cfg.galore_rank, m)
    if not cfg.galore_force and m < cfg.galore_min_dim:
        return None, f"not projected: a side of {m} is below galore_min_dim {cfg.galore_min_dim}"
    if not cfg.galore_force and not saves(rank, m, n):
        return None, f"not projected: rank {rank} saves nothing of {m} x {n}"
    return rank, f"rank {rank}"


def unsaved_share(model: nn.Module, cfg: OptimizerSection) -> float | None:
    """Share of the matrices' values whose projection at `galore_rank` saves nothing; None without GaLore."""
    kind = next((each for each in KINDS if each == cfg.name), None)
    if kind is None or not kind.startswith("galore"):
        return None
    total = unsaved = 0
    for route in routes(model, cfg.muon_heads).values():
        for piece in route.pieces:
            count, m, n = piece.shape
            rank = max(1, m // 4) if cfg.galore_rank is None else min(cfg.galore_rank, m)
            total += count * m * n
            unsaved += 0 if saves(rank, m, n) else count * m * n
    return unsaved / total if total else None


def wider_rank(model: nn.Module, cfg: OptimizerSection) -> int | None:
    """Twice the largest rank in use, or as much as saves in every projected matrix; None where that is no larger."""
    kind = next((each for each in KINDS if each == cfg.name), None)
    if kind is None or not kind.startswith("galore"):
        return None
    pieces = [piece for route in routes(model, cfg.muon_heads).values() for piece in route.pieces]
    used = [(rank, *piece.shape[1:]) for piece in pieces if (rank := rank_of(piece, cfg)[0]) is not None]
    now = max((rank for rank, _, _ in used), default=0)
    wider = min((min(2 * now, (m * n - 1) // (m + n)) for _, m, n in used), default=0)
    return wider if wider > now else None


def _projected(route: Route, kind: Kind, cfg: OptimizerSection) -> Decision:
    ranked = [rank_of(piece, cfg) for piece in route.pieces]
    reason = ", ".join(dict.fromkeys((route.reason, *(why for _, why in ranked))))
    if kind == "galore_adamw":
        # AdamW is one rule for a whole parameter: it is projected if all that is stacked in it is.
        if any(rank is None for rank, _ in ranked):
            return replace(_aux(route, cfg, reason), rule="AdamW")
        return Decision(route, tuple(rank for rank, _ in ranked), "GaLore-AdamW", reason)
    return _by_muon(route, tuple(rank for rank, _ in ranked), cfg, reason)


def _by_muon(route: Route, ranks: tuple[int | None, ...], cfg: OptimizerSection, reason: str) -> Decision:
    """Muon, in 8 bits where the momentum of a matrix is not too small for it, projected where it has a rank."""
    kept = [(rank or piece.shape[1]) * piece.shape[2] for piece, rank in zip(route.pieces, ranks, strict=True)]
    little = cfg.bits == 8 and min(kept) < MIN_NUMEL
    if little:
        some = "some " if max(kept) >= MIN_NUMEL else ""
        reason += f", {some}momentum in fp32: fewer than {MIN_NUMEL} values"
    rule = "8-bit Muon" if cfg.bits == 8 and max(kept) >= MIN_NUMEL else "Muon"
    projected = any(rank is not None for rank in ranks)
    return Decision(route, ranks, f"GaLore-{rule}" if projected else rule, reason)


def _aux(route: Route, cfg: OptimizerSection, reason: str) -> Decision:
    eight = cfg.aux_8bit and route.numel >= MIN_NUMEL
    return Decision(route, (), "8-bit AdamW" if eight else "AdamW", reason)
