"""trials.json: every trial of a search as a row, for those who read it without the storage.

outcome     meaning                                               counts against --trials
ok          trained to the end of the budget; has a value         yes
pruned      stopped early by the pruner                           yes
diverged    a loss or gradient was not finite                     yes
oom         out of memory                                         yes
timeout     took longer than --timeout                            yes
failed      ended with an error                                   yes
infeasible  no shape on target; never trained                     no
running, waiting                                                  running ones, while they run
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rnn_lab.errors import RunError
from rnn_lab.system.atomic import write_text_atomic

TRIALS = "trials.json"
SPENT = ("ok", "pruned", "diverged", "oom", "timeout", "failed")
_STATES = {"RUNNING": "running", "WAITING": "waiting"}


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: of the study.
        outcome: see the table above.
        value: the metric, nats per byte; None unless `ok`.
        params: parameters, counted.
        deviation: (params - target) / target.
        point: what the sampler proposed, by configuration key.
        config: what was trained: `model` and `optimizer` tables.
        run: name of its folder below runs/.
        default: the configuration without a search.
        reported: mean training loss since the report before, by step, nats per byte.
        reason: why it ended as it did.
        host: machine that trained it.
    """

    number: int
    outcome: str
    value: float | None = None
    params: int | None = None
    deviation: float | None = None
    point: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = None
    default: bool = False
    reported: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    host: str | None = None

    @property
    def last_reported(self) -> float | None:
        """The loss at which a pruned trial stopped."""
        return self.reported[max(self.reported, key=int)] if self.reported else None


def outcome_of(trial: Any) -> str | None:
    """How a finished trial ended by its worker; None where others failed it, be it after the worker's last word."""
    outcome: str | None = trial.user_attrs.get("outcome")
    return None if trial.state.name == "FAIL" and outcome not in ("failed", "timeout") else outcome


def rows_of(study: Any) -> list[TrialRow]:
    """The trials of a study by number; one whose worker died gives way to the trial that took it up."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        outcome = outcome_of(trial) if trial.state.is_finished() else _STATES[trial.state.name]
        if outcome is None:
            continue
        rows.append(
            TrialRow(
                number=trial.number,
                outcome=outcome,
                value=trial.value if outcome == "ok" else None,
                params=attrs.get("params"),
                deviation=attrs.get("deviation"),
                point=trial.params,
                config=attrs.get("config", {}),
                run=attrs.get("run"),
                default=bool(attrs.get("default")),
                reported={str(step): value for step, value in sorted(trial.intermediate_values.items())},
                reason=attrs.get("reason"),
                host=attrs.get("host"),
            )
        )
    return rows


def best_of(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The trial with the smallest value; the earlier one of equals."""
    return min((row for row in rows if row.value is not None), key=lambda row: (row.value, row.number), default=None)


def default_of(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The trial of the configuration without a search."""
    return next((row for row in rows if row.default and row.outcome in SPENT), None)


def write_trials(folder: Path, search: Mapping[str, Any], rows: Sequence[TrialRow]) -> None:
    """Write trials.json, complete or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    table = {"search": dict(search), "trials": [asdict(row) for row in rows]}
    write_text_atomic(folder / TRIALS, json.dumps(table, indent=1, allow_nan=False) + "\n")


def read_trials(folder: Path) -> tuple[dict[str, Any], list[TrialRow]]:
    """What `write_trials` wrote: the search's identity and its rows.

    Raises:
        RunError: there is none, or it was edited into something else.
    """
    path = folder / TRIALS
    if not path.is_file():
        raise RunError(f"{folder} holds no {TRIALS}: give the --out folder of a search")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = [TrialRow(**row) for row in table["trials"]]
        search = dict(table["search"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: not the trials of a search ({error}): run the search again to write it anew"
        ) from error
    wrong = next((row for row in rows if (row.value is None) != (row.outcome != "ok")), None)
    if wrong is not None:
        raise RunError(
            f"{path}: trial {wrong.number} is {wrong.outcome} with value {wrong.value}: run the search again"
        )
    return search, rows
