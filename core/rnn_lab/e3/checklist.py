"""The documents' checklist, each item decided by a rule: pass, fail or not run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rnn_lab.e3.claims import MARGIN, Claim, better, percent
from rnn_lab.e3.measure import CALM, Row, times
from rnn_lab.e3.suite import BASELINE

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
    five = [row for row in rows.values() if row.label != BASELINE]
    return [
        _claimed("Data Efficiency", "C1 is verified", [c for c in claims if c.id == "C1"]),
        _claimed("Memory Reduction", "C2 to C4 are verified against Muon, the suite's own baseline",
                 [c for c in claims if c.id in ("C2", "C3", "C4") and c.baseline.startswith("Muon")]),
        _claimed("GPU Utilization", "C5 is verified", [c for c in claims if c.id == "C5"]),
        _stable(list(rows.values())),
        _kept("Quality Maintained", QUALITY, five),
        _fast(five),
        _kept("No Regressions", f"{FULL}: the same", [row for row in five if row.label == FULL]),
    ]  # fmt: skip


def _claimed(name: str, rule: str, claims: Sequence[Claim]) -> Item:
    verdicts = [claim.verdict for claim in claims]
    state = "pass" if verdicts and set(verdicts) == {"verified"} else "fail"
    if not verdicts or set(verdicts) == {"not run"}:
        state = "not run"
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


def _kept(name: str, rule: str, rows: Sequence[Row]) -> Item:
    told = [(row, row.delta) for row in rows if row.delta is not None]
    decided = [(row, delta) for row, delta in told if better(delta) is not None]
    found = "; ".join(f"{row.label} {delta.value:+.4f}".replace("-", "−") for row, delta in told)
    if not decided:
        return Item(name, rule, "not run", f"{found}: one seed does not tell" if found else "no runs to compare")
    return Item(name, rule, _state(all(better(delta) for _, delta in decided), True), found)


def _fast(rows: Sequence[Row]) -> Item:
    rule = f"bytes per second at least {SPEED} of the baseline's"
    told = [(row, row.speed_ratio) for row in rows if row.speed_ratio is not None]
    found = "; ".join(f"{row.label} {ratio.value:.2f}" for row, ratio in told)
    return Item("Throughput", rule, _state(all(ratio.value >= SPEED for _, ratio in told), bool(told)), found)


def _state(passed: bool, known: bool) -> str:
    return "not run" if not known else "pass" if passed else "fail"


def failed(items: Iterable[Item]) -> list[str]:
    """Names of the items that failed."""
    return [item.name for item in items if item.state == "fail"]
