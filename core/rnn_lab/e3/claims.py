"""What was claimed of the suite's features, and what its runs say of each claim: a verdict by rule.

Verdicts: `verified`, `refuted`, `inconclusive` where the interval holds the claim's edge, `not run` where nothing was
measured that could tell: the feature was off in what ran, the model was another than the baseline's or smaller than the
claims are about. Bytes of state are exact; their verdicts need no interval. A reduction is verified where it rounds to
the claim's whole per cent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

from rnn_lab.comparison.efficiency import CLAIM, Gain, judge
from rnn_lab.diagnostics.training import noise
from rnn_lab.e3.measure import Paired, Row
from rnn_lab.e3.suite import ABLATIONS, BASELINE, CONFIGS
from rnn_lab.errors import ConfigError

VERDICTS = ("verified", "refuted", "inconclusive", "not run")
BETTER_LOSS = 0.15
ROUNDING = 0.005
BUSY, WAIT = 0.90, 0.10
"""Utilisation that reading ahead is claimed to reach, and the share of a step that waiting may take."""
FASTER_BACKWARD, JUDGED_AT = 0.35, 0.30
WIDE = 1024
MINUTES = 25.0
SEEDS = 3
"""Paired seeds that a verdict on a loss or on data takes at least."""
SMALL = 10_000_000
"""Parameters below which a run shows that the machinery works, and not what a feature is worth."""
MARGIN = 0.01
"""Nats per byte that a configuration may lose and count as equally good."""


@dataclass(frozen=True)
class Claim:
    """One claim against one baseline."""

    id: str
    claim: str
    of: str
    baseline: str
    formula: str
    measured: str
    interval: str
    verdict: str
    reason: str


def claims(
    rows: Mapping[str, Row], backward: Mapping[str, Any] | None, minutes: float | None, lost: bool = False
) -> list[Claim]:
    """Every claim of the documents.

    Args:
        rows: by label.
        backward: what `rnn-lab bench backward` measured.
        minutes: that the runs of the five took, added up.
        lost: whether some attempts of them are missing in that.

    """
    return [
        *_data_efficiency(rows),
        *_state("C2", "8-bit Muon needs 86 % less optimizer state", 0.86,
                ("8bit_Muon_only", "8bit_Muon"), ("8 bits",), rows),
        *_state("C3", "GaLore 2 needs 50 to 65 % less optimizer state", 0.50,
                ("GaLore2_only", "GaLore2"), ("GaLore",), rows),
        *_state("C4", "everything together needs about 95 % less", 0.95,
                ("E3_Full",), ("MTP", "Collider", "8 bits", "GaLore"), rows),
        _loader(rows),
        _faster(backward),
        _all_ran(rows, minutes, lost),
    ]  # fmt: skip


def lacking(row: Row, features: Sequence[str]) -> str | None:
    """Which of the features, by their names in `Row.features`, the configuration ran without, or None."""
    told = {name: row.features.get(name, "-") for name in features}
    off = [f"{name}: {value}" if value != "-" else name for name, value in told.items() if value[:3] in ("-", "off")]
    return f"{row.label} ran without {', '.join(off)}" if off else None


def small(row: Row) -> str | None:
    """Why a run of this size gives no verdict, or None."""
    if row.params is None or row.params >= SMALL:
        return None
    return f"{row.params:,} parameters: the claim is about models of {SMALL:,} and more"


def percent(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.1f} %".replace(".0 %", " %").replace("-", "−")


def bounds(found: Paired | None, digits: int = 3) -> str:
    """One-sided 95 % bounds."""
    if found is None or found.lower is None or found.upper is None:
        return "none"
    return f"{found.lower:.{digits}f} to {found.upper:.{digits}f}, one-sided 95 % each"


def better(found: Paired | None) -> bool | None:
    """Whether the loss is no more than the margin above the baseline's; None where seeds are too few to tell."""
    return None if found is None or found.upper is None else found.upper <= MARGIN


def _data_efficiency(rows: Mapping[str, Row]) -> list[Claim]:
    row = rows.get("MTP_Only")
    head = ("C1", "multi-token prediction needs 15 to 20 % less data", "MTP_Only", BASELINE)
    formula = f"E_data = steps of the baseline / steps to its last loss; at least {CLAIM}"
    loss = ("C1 (loss)", "multi-token prediction has 15 to 20 % better loss", "MTP_Only", BASELINE)
    of_loss = "1 − loss / loss of the baseline; at least 15 %"
    if (missing := _missing(row, rows, "MTP")) is not None or row is None:
        return [
            Claim(*head, formula, "", "", "not run", str(missing)),
            Claim(*loss, of_loss, "", "", "not run", str(missing)),
        ]
    found = [_gain(head, formula, row), _better_loss(loss, of_loss, row, rows[BASELINE])]
    why = small(row)
    return [c if why is None or c.verdict == "not run" else replace(c, verdict="not run", reason=why) for c in found]


def _gain(head: tuple[str, str, str, str], formula: str, row: Row) -> Claim:
    found = row.e_data
    if found is None:
        return Claim(*head, formula, "", "", "not run", row.no_efficiency or "no runs of the same bytes")
    measured = f"E_data {found.value:.3f}" + ("" if row.e_time is None else f", E_time {row.e_time.value:.3f}")
    try:
        judged: Gain = judge(found.values)
    except ConfigError:
        return Claim(*head, formula, measured, "none", "inconclusive", "one seed shows no spread")
    if (few := _few(found)) is not None:
        return Claim(*head, formula, measured, bounds(found), "inconclusive", few)
    said = filter(None, (f"{judged.n} paired seeds", judged.rider, _noisy(found, log(CLAIM))))
    return Claim(*head, formula, measured, bounds(found), judged.verdict, "; ".join(said))


def _few(found: Paired) -> str | None:
    """Why seeds are too few for a verdict, or None."""
    n = len(found.values)
    return None if n >= SEEDS else f"{n} paired seeds: a verdict takes {SEEDS}"


def _noisy(found: Paired, claimed: float) -> str:
    """D-NOISE where seeds cannot show an effect as small as the claimed one; nothing otherwise."""
    told = None if found.detectable is None else noise(found.detectable, claimed, len(found.values))
    return "" if told is None else f"{told.id}: {told.message}: {told.suggestion}"


def _better_loss(head: tuple[str, str, str, str], formula: str, row: Row, base: Row) -> Claim:
    found, of = row.delta, base.last
    if found is None or of is None:
        return Claim(*head, formula, "", "", "not run", "no runs of the same bytes")
    measured = f"{percent(-found.value / of.value)} ({found.value:+.4f} nats)"
    if found.lower is None or found.upper is None:
        return Claim(*head, formula, measured, "none", "inconclusive", "one seed shows no spread")
    low, high = -found.upper / of.value, -found.lower / of.value
    verdict = "verified" if low >= BETTER_LOSS else "refuted" if high < BETTER_LOSS else "inconclusive"
    few = _few(found)
    interval = f"{percent(low)} to {percent(high)}, one-sided 95 % each"
    if few is not None:
        return Claim(*head, formula, measured, interval, "inconclusive", few)
    return Claim(*head, formula, measured, interval, verdict, _noisy(found, BETTER_LOSS * of.value))


def _state(
    name: str, text: str, claimed: float, labels: tuple[str, ...], features: tuple[str, ...], rows: Mapping[str, Row]
) -> list[Claim]:
    """The claim against Muon, the suite's own baseline, and against AdamW, both with fp32 state."""
    measured = [rows[label] for label in labels if label in rows and rows[label].state.get("bytes")]
    row = next((one for one in measured if lacking(one, features) is None), None)
    found = []
    for key, baseline in (("muon", "Muon, fp32"), ("adamw", "AdamW, fp32")):
        formula = f"1 − bytes / bytes of {baseline} state, same parameters; rounded, at least {percent(claimed)}"
        if row is None:
            why = _unmeasured(labels, features, rows)
            found.append(Claim(name, text, labels[-1], baseline, formula, "", "", "not run", why))
            continue
        references = row.state["reference_bytes"]
        saved = 1 - row.state["bytes"] / references[key]
        verdict = "verified" if saved >= claimed - ROUNDING else "refuted"
        told = [small(row), _quality(row)]
        if key == "adamw":
            told.append(f"Muon in fp32 alone saves {percent(1 - references['muon'] / references['adamw'])}")
        verdict, reason = verdict if small(row) is None else "not run", "; ".join(filter(None, told))
        found.append(Claim(name, text, row.label, baseline, formula, percent(saved), "exact", verdict, reason))
    return found


def _unmeasured(labels: tuple[str, ...], features: tuple[str, ...], rows: Mapping[str, Row]) -> str:
    told = [lacking(rows[label], features) if rows[label].ok else f"{label}: {rows[label].status}"
            for label in labels if label in rows]  # fmt: skip
    return "; ".join(filter(None, told)) or f"{labels[-1]} was not run"


def _quality(row: Row) -> str:
    """What the saving costs in loss."""
    if row.delta is None:
        return ""
    kept = better(row.delta)
    said = (
        "one seed does not tell whether quality is kept"
        if kept is None
        else "quality kept"
        if kept
        else "quality not shown to be kept"
    )
    others = "" if row.label in ABLATIONS.values() else "; other features are on too"
    return f"loss {row.delta.value:+.4f} nats: {said}{others}".replace("-", "−")


def _loader(rows: Mapping[str, Row]) -> Claim:
    head = ("C5", "the GPU is above 90 % busy with the async loader, about 70 % without")
    formula = f"data wait below {percent(WAIT)} and NVML mean at least {percent(BUSY)} with it, and not without"
    base = rows.get(BASELINE)
    labels = [label for label in ("Async_only", "8bit_Muon", "GaLore2", "E3_Full") if label in rows]
    done = [rows[label] for label in labels if _missing(rows[label], rows, "reading ahead") is None]
    if not done or base is None or lacking(base, ("reading ahead",)) is None:
        return Claim(*head, "Async_only", BASELINE, formula, "", "", "not run", "no run with and without it")
    row = done[0]
    waits = [
        f"{percent(one.waited.value)} waiting {how}" for one, how in ((row, "with"), (base, "without")) if one.waited
    ]
    if row.busy is None or base.busy is None:
        reason = "no utilisation was sampled: it needs a GPU and nvidia-ml-py"
        return Claim(*head, row.label, BASELINE, formula, ", ".join(waits), "", "not run", reason)

    def passes(one: Row) -> bool:
        return bool(one.busy and one.waited and one.busy.value >= 100 * BUSY and one.waited.value < WAIT)

    measured = f"NVML {row.busy.value:.0f} % with, {base.busy.value:.0f} % without; {', '.join(waits)}"
    verdict = "verified" if passes(row) and not passes(base) else "refuted"
    reason = "busy without it too: random windows of a file in the page cache are no bottleneck" if passes(base) else ""
    return Claim(*head, row.label, BASELINE, formula, measured, "", verdict, reason)


def _faster(backward: Mapping[str, Any] | None) -> Claim:
    head = ("C6", "Collider's backward takes 35 % less time", "backward.json", "dense backward")
    where = f"at s = {FASTER_BACKWARD}, on a GPU, dim at least {WIDE}"
    formula = f"1 − filtered / dense backward time {where}; at least {percent(JUDGED_AT)}"
    if backward is None:
        return Claim(*head, formula, "", "", "not run", "backward is measured on a GPU")
    if backward.get("edited"):
        return Claim(*head, formula, "", "", "not run", str(backward["edited"]))
    found = backward["backward_reduction"]
    measured = f"{percent(found['value'])} at dim {backward['dim']}, {backward['gpu'] or backward['device']}"
    interval = f"{percent(found['low'])} to {percent(found['high'])}"
    why = None
    if backward["gpu"] is None:
        why = "the claim is about a GPU"
    elif backward["dim"] < WIDE:
        why = f"the claim is about widths from {WIDE} on"
    elif abs(backward["sparsity"] - FASTER_BACKWARD) > ROUNDING:
        why = f"the claim is about s = {FASTER_BACKWARD}"
    if why is not None:
        return Claim(*head, formula, measured, interval, "not run", why)
    verdict = "verified" if found["low"] >= JUDGED_AT else "refuted" if found["high"] < JUDGED_AT else "inconclusive"
    step = backward["step_reduction"]["value"]
    return Claim(*head, formula, measured, interval, verdict, f"forward and backward together: {percent(step)}")


def _all_ran(rows: Mapping[str, Row], minutes: float | None, lost: bool) -> Claim:
    head = ("C7", "all configurations validated, in about 25 minutes", "the five", "")
    formula = f"every run of the five ends well, within {MINUTES:.0f} minutes in all"
    five = [rows[label] for label in CONFIGS.values() if label in rows]
    ok, total = sum(row.ok for row in five), sum(row.total for row in five)
    measured = f"{ok} of {total} runs" + ("" if minutes is None else f", {'at least ' * lost}{minutes:.1f} minutes")
    if len(five) < len(CONFIGS):
        missing = ", ".join(label for label in CONFIGS.values() if label not in rows)
        return Claim(*head, formula, measured, "", "not run", f"not asked for: {missing}")
    if (why := next(filter(None, map(small, five)), None)) is not None:
        return Claim(*head, formula, measured, "", "not run", why)
    in_time = minutes is not None and minutes <= MINUTES
    reason = "" if ok == total else "; ".join(f"{row.label}: {row.status}" for row in five if row.ok < row.total)
    if ok == total and not in_time:
        reason = "all ran, in more time: the budget and the number of seeds decide that"
    if ok == total and in_time and lost:
        return Claim(*head, formula, measured, "", "inconclusive", "how long killed attempts took is not known")
    return Claim(*head, formula, measured, "", "verified" if ok == total and in_time else "refuted", reason)


def _missing(row: Row | None, rows: Mapping[str, Row], feature: str) -> str | None:
    """Why a configuration does not show against the baseline what a feature does, or None."""
    base = rows.get(BASELINE)
    if row is None:
        return "it was not run"
    if base is None or not base.ok:
        return f"the baseline has no run that ended well ({'not run' if base is None else base.status})"
    if not row.ok:
        return f"no run ended well: {row.status}"
    return lacking(row, (feature,)) or other_model(row, base)


def other_model(row: Row, base: Row) -> str | None:
    """Why nothing of the configuration is to be compared with the baseline, or None."""
    return None if row.model == base.model else f"{row.label} ran {row.model}, the baseline {base.model}"
