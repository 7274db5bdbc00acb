"""Looks at a run while it trains: asks the rules, tells a person now and then, counts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rnn_lab.diagnostics.rule import Facts, Finding, Moment, Rule, Severity, Window
from rnn_lab.errors import ConfigError, Diagnosed

TELL_EVERY = 100
"""Steps between two notes of one rule."""


@dataclass
class Tally:
    """How often a rule held, and the last time that it did."""

    count: int
    first_step: int
    finding: Finding


class Watch:
    """The rules of one run.

    Args:
        rules: to ask.
        facts: of the run.
        note: hears of what is found.
        strict: whether an error ends the run.
        saved: what `state` gave in an earlier session.

    """

    def __init__(
        self, rules: Sequence[Rule], facts: Facts, note: Callable[[str], None], *, strict: bool = False,
        saved: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.rules, self.note, self.strict = {rule.id: rule for rule in rules}, note, strict
        self.window = Window(facts)
        self.tallies: dict[str, Tally] = {}
        self._told: dict[str, int] = {}
        self._worst: Finding | None = None
        for row in (saved or {}).get("found", []):
            finding = Finding(*(row[key] for key in ("id", "severity", "last_step", "message", "suggestion")))
            self.tallies[row["id"]] = Tally(row["count"], row["first_step"], finding)
        if saved:
            self.window.lowest = saved["lowest"]

    def look(self, at: Moment) -> None:
        """Ask the rules of the session's `start` or `end`.

        Raises:
            Diagnosed: see `enforce`.

        """
        self.window.at = at
        for rule in list(self.rules.values()):
            if at in rule.at:
                self._ask(rule)
        self.enforce()

    def step(self, line: dict[str, Any]) -> None:
        """Ask about a new line of metrics; it gets a key `diag/<id>` with the count of each rule that holds."""
        self.window.at = "step"
        self.window.add(line)
        found = [
            rule.id
            for rule in list(self.rules.values())
            if "step" in rule.at and line["step"] % rule.every == 0 and self._ask(rule)
        ]
        line |= {f"diag/{name}": self.tallies[name].count for name in found}

    def event(self, name: str, step: int, message: str, severity: Severity | None = None) -> dict[str, int]:
        """Something that a rule is about has happened; what its line of metrics has to say of it."""
        rule = self.rules.get(name)
        if rule is None:
            return {}
        weight = severity or rule.weight(self.window.facts)
        self._count(Finding(name, weight, step, message, self._advice(rule)))
        return {f"diag/{name}": self.tallies[name].count}

    def enforce(self) -> None:
        """End the run after an error, where the run is strict.

        Raises:
            Diagnosed: an error was found.

        """
        worst, self._worst = self._worst, None
        if self.strict and worst is not None:
            raise Diagnosed(f"{worst} The run stops here because diagnostics.strict is on.")

    def report(self) -> list[dict[str, Any]]:
        """What was found, for result.json: the gravest first, then by first step."""
        order = ("error", "warning", "info")
        rows = [
            {
                "id": name, "severity": tally.finding.severity, "count": tally.count, "first_step": tally.first_step,
                "last_step": tally.finding.step, "message": tally.finding.message,
                "suggestion": tally.finding.suggestion,
            }
            for name, tally in self.tallies.items()
        ]  # fmt: skip
        return sorted(rows, key=lambda row: (order.index(row["severity"]), row["first_step"], row["id"]))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"found": self.report(), "lowest": self.window.lowest}

    def rewind(self, lines: Iterable[dict[str, Any]]) -> None:
        """Go on from these lines, oldest first; what was counted and the lowest loss stay."""
        lowest = self.window.lowest
        self.window = Window(self.window.facts, lines)
        if lowest is not None:
            self.window.lowest = min(lowest, self.window.lowest or lowest)

    def _ask(self, rule: Rule) -> bool:
        try:
            message = rule.check(self.window)
        except Exception as error:  # a rule of a plugin must not take the run down
            del self.rules[rule.id]
            self.note(f"{rule.id} cannot be looked at and is left out: {type(error).__name__}: {error}")
            return False
        if message is not None:
            weight = rule.weight(self.window.facts)
            self._count(Finding(rule.id, weight, self.window.step, message, self._advice(rule)))
        return message is not None

    def _advice(self, rule: Rule) -> str:
        try:
            return rule.advice(self.window)
        except Exception:  # as in _ask
            return ""

    def _count(self, finding: Finding) -> None:
        known = self.tallies.get(finding.id)
        count, first = (1, finding.step) if known is None else (known.count + 1, known.first_step)
        self.tallies[finding.id] = Tally(count, first, finding)
        if finding.severity == "error":
            self._worst = finding
        told = self._told.get(finding.id)
        if told is None or finding.step - told >= TELL_EVERY or finding.step < told:
            self._told[finding.id] = finding.step
            self.note(str(finding))


def rules_of(found: Any, ignore: Iterable[str] = ()) -> list[Rule]:
    """Every registered rule that is not ignored.

    Args:
        found: the registry.
        ignore: ids to leave out.

    Raises:
        ConfigError: an id that is to be left out is not known.
        PluginError: a rule cannot be loaded.

    """
    left_out = set(ignore)
    unknown = sorted(left_out - set(found.diagnostics))
    if unknown:
        raise ConfigError(
            f"diagnostics.ignore: {unknown[0]!r} is no diagnostic. Known: {', '.join(found.diagnostics)}."
        )
    return [found.load("diagnostics", name) for name in found.diagnostics if name not in left_out]
