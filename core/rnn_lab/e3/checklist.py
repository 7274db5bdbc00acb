"""The documents' checklist, each item decided by a rule: pass, fail or not run.

What one configuration shows to be wrong is a fail. Where none does, and evidence of some lacks, nothing is decided.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rnn_lab.e3.claims import MARGIN, Claim, better, percent
from rnn_lab.e3.measure import CALM, Paired, Row, times
from rnn_lab.e3.suite import BASELINE, CONFIGS

CALM_SHARE = 0.95
SPEED = 0.95
FULL = "E3_Full"
QUALITY = f"loss at equal steps at most {MARGIN} nats above the baseline's, one-sided 95 %"
STABLE = (
    "no run diverges, crashes, skips a step or goes back; "
    f"{CALM_SHARE:.0%} of its steps after warm-up have gradient norms of {CALM[0]} to {CALM[1]}"
)
CRASHED = ("diverged", "failed", "oom", "timeout", "killed")
"""Ends of a run that is not stable."""


@dataclass(frozen=True)
class Item:
    """One item: `state` is pass, fail or not run."""

    name: str
    rule: str
    state: str
    found: str


def checklist(rows: Mapping[str, Row], claims: Sequence[Claim]) -> list[Item]:
    """Every item of the documents, in their order."""
    others = {label: rows.get(label) for label in (*CONFIGS.values(), *rows) if label != BASELINE}
    return [
        _claimed("Data Efficiency", "C1 is verified", [c for c in claims if c.id == "C1"]),
        _claimed("Memory Reduction", "C2 to C4 are verified against Muon, the suite's own baseline",
                 [c for c in claims if c.id in ("C2", "C3", "C4") and c.baseline.startswith("Muon")]),
        _claimed("GPU Utilization", "C5 is verified", [c for c in claims if c.id == "C5"]),
        _stable(list(rows.values())),
        _decided("Quality Maintained", QUALITY, others, _KEPT),
        _decided("Throughput", f"bytes per second at least {SPEED} of the baseline's, one-sided 95 %", others, _FAST),
        _decided("No Regressions", f"{FULL}: the same", {FULL: rows.get(FULL)}, _KEPT),
    ]  # fmt: skip


def _claimed(name: str, rule: str, claims: Sequence[Claim]) -> Item:
    verdicts = {claim.verdict for claim in claims}
    state = "fail" if "refuted" in verdicts else "pass" if verdicts == {"verified"} else "not run"
    return Item(
        name, rule, state, "; ".join(f"{c.id} {c.verdict}{f' ({c.measured})' if c.measured else ''}" for c in claims)
    )


def _stable(rows: Sequence[Row]) -> Item:
    told = [(row, row.calm) for row in rows if row.calm is not None]
    wrong = [f"{row.label} {trouble}" for row in rows for trouble in _troubles(row)]
    found = [f"{row.label} {percent(calm)}" for row, calm in told] + wrong
    passed = bool(told) and not wrong and all(calm >= CALM_SHARE for _, calm in told)
    return Item("Training Stability", STABLE, _state(passed, bool(found)), "; ".join(found))


def _troubles(row: Row) -> list[str]:
    """What of a configuration's runs was not stable, whatever their gradient norms."""
    found = [end for end in CRASHED if end in row.status.replace(",", "").split()]
    if row.skipped:
        found.append(f"{row.skipped} step{'' if row.skipped == 1 else 's'} not finite")
    return [*found, *([times(row.rollbacks)] if row.rollbacks else [])]


@dataclass(frozen=True)
class _Figure:
    """What an item looks at: how it is told, whether it passes or decides nothing, and what is said of the latter."""

    of: Callable[[Row], Paired | None]
    passes: Callable[[Paired], bool | None]
    form: str
    undecided: str = ""


def fast(ratio: Paired) -> bool | None:
    """Whether the speed is no less than the limit; None where seeds are too few, or too far apart, to tell."""
    if ratio.lower is None or ratio.upper is None:
        return None
    return True if ratio.lower >= SPEED else False if ratio.upper < SPEED else None


_KEPT = _Figure(lambda row: row.delta, better, "{:+.4f}", "one seed does not tell")
_FAST = _Figure(lambda row: row.speed_ratio, fast, "{:.2f}", "one seed does not tell, nor bounds on both sides")


def _decided(name: str, rule: str, rows: Mapping[str, Row | None], figure: _Figure) -> Item:
    """An item that every configuration has to pass; what has no figure, or one that decides nothing, is named."""
    told, verdicts = [], []
    for label, row in rows.items():
        found = None if row is None else figure.of(row)
        verdicts.append(None if found is None else figure.passes(found))
        if row is None or found is None:
            told.append(
                f"{label} " + ("not asked for" if row is None else row.status if not row.ok else "not compared")
            )
        else:
            told.append(f"{label} {figure.form.format(found.value)}".replace("-", "−"))
    if figure.undecided and None in verdicts and any(row and figure.of(row) for row in rows.values()):
        told.append(figure.undecided)
    state = "fail" if False in verdicts else "not run" if None in verdicts else "pass"
    return Item(name, rule, state, "; ".join(told))


def _state(passed: bool, known: bool) -> str:
    return "not run" if not known else "pass" if passed else "fail"
