"""Rules about how training goes: losses, gradient norms, entropy, warm-up."""

from math import log

from rnn_lab.diagnostics.rule import Finding, Rule, Window, nothing

UNIFORM = log(256)
"""Nats per byte of a model that knows nothing."""
RISE, CEILING = 1.0, 5.0
FLOOR, SPIKE, JUMP = 0.5, 10.0, 5.0
COLLAPSED, BLURRED = 0.05, 5.5
LONG_WARMUP = 0.2
SLOW_START = 100
"""Steps after warm-up in which a model may still know next to nothing."""


def _lower_rate(window: Window) -> str:
    return f"optimizer.lr = {window.facts.cfg.optimizer.lr / 2:g}"


def _calm(window: Window) -> str:
    """The cures of a step that is not finite."""
    cfg = window.facts.cfg
    warmup = f"schedule.warmup = {2 * cfg.schedule.warmup:g}"
    if cfg.schedule.type == "none":
        warmup = f"optimizer.warmup_steps = {2 * cfg.optimizer.warmup_steps or 100}"
    return f"{_lower_rate(window)}; {warmup}; objective.entropy_weight = 0.01 to 0.05"


def _diverging(window: Window) -> str | None:
    if not window.settled() or window.smooth is None or window.lowest is None:
        return None
    if window.smooth > UNIFORM and window.settled(SLOW_START):
        return f"the loss is {window.smooth:.3f}, above ln 256 = {UNIFORM:.3f}, what knowing nothing costs"
    if window.smooth > window.lowest + RISE:
        return f"the loss is {window.smooth:.3f}, {window.smooth - window.lowest:.2f} above its lowest average"
    return None


def _norm(window: Window) -> float | None:
    return window.median("grad_norm", 100) if window.settled(100) else None


def _shifted(window: Window) -> str:
    objective = window.facts.cfg.objective
    shifts = [name for name, used in (("Collider", objective.use_collider), ("MTP", objective.use_mtp)) if used]
    return f" ({' and '.join(shifts)} shift its scale)" if shifts else ""


def _high(window: Window) -> str | None:
    norm = _norm(window)
    if norm is None or norm <= CEILING:
        return None
    return f"the median gradient norm of 100 steps is {norm:.3g}, above {CEILING:g}{_shifted(window)}"


def _low(window: Window) -> str | None:
    norm = _norm(window)
    if norm is None or norm >= FLOOR:
        return None
    return f"the median gradient norm of 100 steps is {norm:.3g}, below {FLOOR:g}{_shifted(window)}"


def _spike(window: Window) -> str | None:
    norm = window.line.get("grad_norm")
    if norm is None or not window.settled():
        return None
    usual = window.running_median("grad_norm", 100)
    if norm > SPIKE:
        return f"the gradient norm is {norm:.3g}, above {SPIKE:g}"
    if usual and len(window.lines) > 20 and norm > JUMP * usual:
        return f"the gradient norm is {norm:.3g}, {norm / usual:.1f} times the median of 100 steps"
    return None


def _clipped(window: Window) -> str | None:
    clip = window.facts.cfg.train.clip
    if not clip or not window.settled(200):
        return None
    norms = window.column("grad_norm", 200)
    share = sum(norm > clip for norm in norms) / len(norms) if norms else 0.0
    return f"{share:.0%} of 200 steps were clipped to {clip:g}" if share > 0.5 else None


def _entropy(window: Window) -> str | None:
    if not window.settled():
        return None
    found = window.mean("entropy", 20)
    if found is None:
        found = window.line.get("val_entropy")
    if found is None or COLLAPSED <= found <= BLURRED or (found > BLURRED and not window.settled(SLOW_START)):
        return None
    how = "as good as certain everywhere" if found < COLLAPSED else "near that of 256 equal bytes, ln 256 = 5.545"
    return f"the mean entropy of the predictions is {found:.3g} nats, {how}"


def _more_entropy(window: Window) -> str:
    weight = window.facts.cfg.objective.entropy_weight
    low = (window.mean("entropy", 20) or 0.0) < COLLAPSED
    return f"objective.entropy_weight = {(weight * 2 or 0.01) if low else weight / 2:g}"


def _long_warmup(window: Window) -> str | None:
    facts = window.facts
    share, warmup = None, facts.cfg.schedule.warmup
    if facts.warmup_steps and facts.total_steps:
        share = facts.warmup_steps / facts.total_steps
    elif facts.warmup_steps is None:
        share = warmup
    if share is None or share <= LONG_WARMUP:
        return None
    where = "the run ends within its warm-up" if share >= 1 else f"warm-up takes {share:.0%} of the run"
    return f"{where}: {facts.warmup_steps or f'{warmup:.0%} of the minutes'} of {facts.total_steps or 'all'} steps"


def _still_warming(window: Window) -> str | None:
    steps = window.facts.warmup_steps
    if not steps or window.facts.total_steps is not None or window.step >= steps:
        return None
    return f"the run ended at step {window.step}, within its warm-up of {steps} steps"


def _warmup(window: Window) -> str | None:
    """At the start from what is planned, at the end from what came of it."""
    return _still_warming(window) if window.at == "end" else _long_warmup(window)


def _shorter(window: Window) -> str:
    steps = window.facts.total_steps or window.step
    key = "optimizer.warmup_steps" if window.facts.cfg.schedule.type == "none" else "schedule.warmup"
    return f"{key} = {max(1, steps // 10)}" if steps else f"{key} = 0.1"


NAN = Rule(
    "D-NAN", "error", "objective or gradient norm not finite; the step is not applied", nothing, _calm, ("event",)
)
DIVERGE = Rule(
    "D-DIVERGE", "error", f"after warm-up, loss above its lowest moving average + {RISE:g}, or above ln 256",
    _diverging, _lower_rate,
)  # fmt: skip
GNORM_HI = Rule(
    "D-GNORM-HI", "warning", f"median gradient norm of 100 steps after warm-up above {CEILING:g}", _high, _lower_rate,
    every=10, for_muon="info",
)  # fmt: skip
GNORM_LO = Rule(
    "D-GNORM-LO", "warning", f"median gradient norm of 100 steps after warm-up below {FLOOR:g}", _low,
    "train.clip = 0; look for vanishing gradients", every=10, for_muon="info",
)  # fmt: skip
GSPIKE = Rule(
    "D-GSPIKE", "warning", f"gradient norm above {SPIKE:g}, or above {JUMP:g} times its running median", _spike,
    'train.on_nonfinite = "rollback"; look at the batch', for_muon="info",
)  # fmt: skip
CLIP = Rule(
    "D-CLIP", "warning", "more than half of 200 steps clipped", _clipped,
    lambda window: f"train.clip = {2 * window.facts.cfg.train.clip:g}, or {_lower_rate(window)}", every=10,
    for_muon="info",
)  # fmt: skip
ENTROPY = Rule(
    "D-ENTROPY", "error", f"mean predictive entropy below {COLLAPSED} or above {BLURRED} nats after warm-up", _entropy,
    _more_entropy,
)  # fmt: skip
WARMUP = Rule(
    "D-WARMUP", "warning", "warm-up takes more than a fifth of the run, or all of it", _warmup, _shorter,
    ("start", "end"),
)  # fmt: skip
NOISE = Rule(
    "D-NOISE", "warning", "the smallest effect that a comparison can detect is larger than the claimed one", nothing,
    "train.steps or the number of seeds: more", ("comparison",),
)  # fmt: skip


def noise(detectable: float, claimed: float, seeds: int, step: int = 0) -> Finding | None:
    """D-NOISE for a comparison of runs, or None.

    Args:
        detectable: the smallest effect that it can detect, 2.8 sd / sqrt(n).
        claimed: the effect that is claimed, in the same unit: of ratios, in logarithms.
        seeds: pairs of runs.
        step: where the runs were compared.

    """
    if detectable <= abs(claimed):
        return None
    needed = -(-seeds * (detectable / abs(claimed)) ** 2 // 1) if claimed else None
    more = "train.steps: more" if needed is None else f"seeds = {needed:.0f}, or more steps"
    told = f"{seeds} seeds detect {detectable:.3g} at least, and {abs(claimed):.3g} is claimed"
    return Finding(NOISE.id, NOISE.severity, step, told, more)
