"""What the suite's report says, as plain data: e3.json is this, and both pages are renderings of it."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rnn_lab.comparison.compare import Group
from rnn_lab.comparison.efficiency import exponent
from rnn_lab.comparison.records import RunRecord, Series, read_series
from rnn_lab.e3 import backward
from rnn_lab.e3.checklist import Item, checklist
from rnn_lab.e3.claims import SMALL, Claim, claims
from rnn_lab.e3.measure import Row, counts, mean_of, rows, windows
from rnn_lab.e3.suite import ABLATIONS, BASELINE, CONFIGS, SUITE
from rnn_lab.errors import ConfigError, RunError
from rnn_lab.lab.outcome import tail
from rnn_lab.report import details
from rnn_lab.report.contestants import Contestant
from rnn_lab.report.curves import curves
from rnn_lab.report.facts import Curve, settled

TAIL = 20
"""Lines of a log that a failure is shown with."""


@dataclass(frozen=True)
class Failure:
    """A run that counts for nothing: its state and reason, and the end of what it printed."""

    name: str
    state: str
    reason: str
    log: tuple[str, ...]


@dataclass(frozen=True)
class Diagnostic:
    """A diagnostic that fired, over all runs of a configuration."""

    label: str
    id: str
    severity: str
    count: int
    first_step: int
    message: str
    suggestion: str


@dataclass(frozen=True)
class Memory:
    """One part of a configuration's memory: bytes as predicted and as measured; None where nothing tells."""

    label: str
    part: str
    predicted: int | None
    measured: int | None


@dataclass(frozen=True)
class E3Report:
    """Everything; see the parts. `last` and `along` are the steps that losses are means of.

    `slope` is b of loss ~ bytes^-b over the last half of the baseline, a mean over its runs.
    """

    title: str
    about: Mapping[str, str]
    environment: Mapping[str, str]
    last: int
    along: int
    slope: float | None
    rows: tuple[Row, ...]
    memory: tuple[Memory, ...]
    claims: tuple[Claim, ...]
    items: tuple[Item, ...]
    diagnostics: tuple[Diagnostic, ...]
    failures: tuple[Failure, ...]
    curves: tuple[Curve, ...]
    backward: Mapping[str, Any] | None
    limits: tuple[str, ...]
    commands: tuple[str, ...]

    def to_json(self) -> str:
        """e3.json."""
        return json.dumps(asdict(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def facts(folder: Path) -> E3Report:
    """Every figure of the report on the suite in `folder`, computed from its runs.

    Raises:
        RunError: the folder holds no suite.

    """
    series = read_series(folder, keep_damaged=True)
    if not series.meta or not (folder / SUITE).is_dir():
        raise RunError(f"{folder} holds no E3 suite: `rnn-lab bench e3 --out DIR` makes one")
    by_label = _by_label(series)
    sound = [run for runs in by_label.values() for run in runs if counts(run)]
    last, along = windows(sound)
    found = rows(by_label, BASELINE)
    by_name = {row.label: row for row in found}
    measured = backward.read(folder)
    judged = claims(by_name, measured, _minutes(series), _lost(series))
    field = [Contestant(Group(label, tuple(r for r in runs if counts(r)))) for label, runs in by_label.items()]
    field = [one for one in field if one.runs]
    return settled(
        E3Report(
            title="The E3 suite",
            about=_about(series, sound),
            environment={"dates": details.dates(field), **details.setup(field).environment} if field else {},
            last=last,
            along=along,
            slope=_slope([run for run in by_label.get(BASELINE, []) if counts(run)], along),
            rows=tuple(found),
            memory=tuple(part for row in found for part in memory(row)),
            claims=tuple(judged),
            items=tuple(checklist(by_name, judged)),
            diagnostics=tuple(diagnostics(by_label)),
            failures=tuple(_failure(folder, run) for runs in by_label.values() for run in runs if not counts(run)),
            curves=tuple(one for one in curves(field, along) if one.axis in ("steps", "seconds")),
            backward=measured,
            limits=tuple(_limits(found, sound, last)),
            commands=_commands(series, folder),
        )
    )


def _by_label(series: Series) -> dict[str, list[RunRecord]]:
    """Runs by configuration: the five and the ablations in the documents' order, then others; seeds ascending."""
    found: dict[str, list[RunRecord]] = {}
    known = [*CONFIGS.values(), *ABLATIONS.values()]
    places = {label: place for place, label in enumerate(known)}
    for run in sorted(series.runs, key=lambda run: (places.get(run.label, len(known)), run.seed or 0)):
        found.setdefault(run.label, []).append(run)
    return found


def _slope(runs: Sequence[RunRecord], window: int) -> float | None:
    """See E3Report."""
    try:
        found = mean_of([exponent(run.series("loss"), run.series("tokens"), window) for run in runs])
    except ConfigError:
        return None
    return None if found is None else found.value


def memory(row: Row) -> list[Memory]:
    """Predicted and measured bytes, part by part; what is left of the peak are activations and everything else."""
    state = row.state
    if not state:
        return []
    foreseen, found = state.get("predicted_by_category") or {}, state["by_category"]
    weights, gradients = state.get("weight_bytes"), state.get("gradient_bytes")
    parts = [Memory(row.label, "weights", 4 * ((row.params or 0) + row.heads_params), weights)]
    parts.append(Memory(row.label, "gradients", 4 * ((row.params or 0) + row.heads_params), gradients))
    parts += [Memory(row.label, f"state: {key}", foreseen.get(key), found.get(key)) for key in {**foreseen, **found}]
    parts.append(Memory(row.label, "state", state.get("predicted_bytes"), state["bytes"]))
    if row.peak is not None and weights and gradients:
        rest = round(row.peak.value) - weights - gradients - state["bytes"]
        parts.append(Memory(row.label, "activations and all else", None, rest))
        parts.append(Memory(row.label, "peak", None, round(row.peak.value)))
    return parts


def diagnostics(by_label: Mapping[str, Sequence[RunRecord]]) -> list[Diagnostic]:
    """What the runs' own diagnostics say: result.json's list, or `diag/<id>` in metrics.jsonl of a run without one."""
    found = []
    for label, runs in by_label.items():
        merged: dict[str, list[Mapping[str, Any]]] = {}
        for run in runs:
            for one in _told(run):
                merged.setdefault(str(one["id"]), []).append(one)
        for name, many in merged.items():
            steps = [int(one.get("first_step") or 0) for one in many]
            last = many[-1]
            texts = [str(last.get(key) or "") for key in ("severity", "message", "suggestion")]
            total = sum(int(one.get("count") or 1) for one in many)
            found.append(Diagnostic(label, name, texts[0], total, min(steps), texts[1], texts[2]))
    return found


def _told(run: RunRecord) -> list[Mapping[str, Any]]:
    given = run.result.get("diagnostics")
    if isinstance(given, list):
        return [one for one in given if isinstance(one, Mapping) and "id" in one]
    if run.problem is not None:
        return []
    seen: dict[str, dict[str, Any]] = {}
    for line in run.lines:
        for key, value in line.items():
            if key.startswith("diag/") and value:
                one = seen.setdefault(key[5:], {"id": key[5:], "first_step": line["step"]})
                one["count"] = value
    return list(seen.values())


def _failure(folder: Path, run: RunRecord) -> Failure:
    attempts = run.job.get("attempts") or []
    reason = run.problem or run.edited or run.result.get("error") or run.job.get("reason") or run.status
    printed = tail(folder / "logs" / f"{run.name}.{len(attempts)}.log").splitlines() if attempts else []
    code = f"exit code {attempts[-1].get('exit_code')}: " if attempts else ""
    return Failure(run.name, run.status, code + " ".join(str(reason).split()), tuple(printed[-TAIL:]))


def _minutes(series: Series) -> float | None:
    """Minutes that all runs of the five took, one after the other."""
    spent = sum(float(attempt.get("seconds") or 0) for attempt in _attempts(series))
    return spent / 60 if spent else None


def _lost(series: Series) -> bool:
    """Whether an attempt ended unseen, so that nobody knows how long it took."""
    return any(attempt.get("seconds") is None for attempt in _attempts(series))


def _attempts(series: Series) -> Iterator[Mapping[str, Any]]:
    """Of every run of the five."""
    return (one for run in series.runs if run.label in CONFIGS.values() for one in run.job.get("attempts") or ())


def _about(series: Series, sound: Sequence[RunRecord]) -> dict[str, str]:
    """What was run: model, sizes, data, protocol."""
    written = {"begun": str(series.meta.get("created")).replace("T", " ").replace("+00:00", " UTC")}
    base = next((run for run in sound if run.label == BASELINE), next(iter(sound), None))
    if base is None:
        return {**written, "runs": "none ended well"}
    state, train, data = base.result.get("optimizer_state") or {}, base.config["train"], base.result.get("data") or {}
    mark = str(data.get("fingerprint"))[:12]
    model = ", ".join(f"{key} {value}" for key, value in base.config["model"].items() if key != "target")
    matrices = state.get("matrix_params")
    params = f"N = {base.params or 0:,}"
    if matrices is not None:
        params += f", in matrices N_m = {matrices:,}, in the rest N_a = {(base.params or 0) - matrices:,}"
    budget = f"{train['minutes']} minutes" if train.get("minutes") else f"{train.get('steps', 1000):,} steps"
    return {
        **written,
        "model": model,
        "parameters": params,
        "protocol": f"{budget} of {train['batch_size']} x {train['seq_len']} bytes, seeds {_seeds(series)}",
        "data": f"{Path(str(data.get('path'))).name}, {data.get('bytes', 0):,} bytes, fingerprint {mark}",
    }


def _seeds(series: Series) -> str:
    return ", ".join(str(seed) for seed in series.meta.get("seeds") or ())


def _limits(found: Sequence[Row], sound: Sequence[RunRecord], last: int) -> list[str]:
    """What a reader must not conclude, by rule."""
    texts = ["One model family, one size and one corpus: signs and sizes may differ elsewhere."]
    if any((run.params or 0) < SMALL for run in sound):
        texts.append("Models of this size show that the machinery works, not what a feature is worth.")
    if len({run.seed for run in sound}) < 3:
        texts.append("Fewer than three seeds: intervals are wide or missing, and verdicts on losses are weak.")
    if not any(run.env.get("gpu") for run in sound):
        texts.append(
            "No GPU: neither its utilisation nor the speed of Collider's backward can be judged, and peak memory is "
            "that of the process."
        )
    if any(run.config.get("train", {}).get("minutes") for run in sound):
        texts.append(
            "The budget is time, and the warm-up a share of it: a slower configuration is done with it after fewer "
            "steps, so its learning rate is higher at equal steps. Δ, E_data and what follows mix this with features."
        )
    if last < 100:
        texts.append(f"Runs of fewer than 100 steps have no Last100: losses are means of their last {last} steps.")
    smallest = [(row.label, row.delta.detectable) for row in found if row.delta and row.delta.detectable is not None]
    if smallest:
        shown = ", ".join(f"{label} {value:.4f}" for label, value in smallest)
        texts.append(
            f"Smallest differences in loss that these seeds show four times in five (2.8 sd / √n), nats: {shown}."
        )
    texts.append("Data are read at random offsets of a file in the page cache: slow storage was not tried.")
    texts.append(
        "E_flop counts neither what Collider saves in backward nor what checkpointing computes again; E_time has both."
    )
    texts.append(
        "MTP_Only differs from the baseline in one feature; 8bit_Muon, GaLore2 and E3_Full in several, which ablations "
        "part."
    )
    return texts


def _commands(series: Series, folder: Path) -> tuple[str, ...]:
    """What makes the suite again, what trains one configuration again, what renders this page again."""
    words = [str(word) for word in series.meta.get("command") or ()]
    again = shlex.join(["rnn-lab", *words[1:]]) if words else "rnn-lab bench e3"
    first = {run.label: run for run in reversed(series.runs)}
    runs = [_command(first[label]) for label in CONFIGS.values() if label in first]
    return (again, *filter(None, runs), "rnn-lab bench report DIR")


def _command(run: RunRecord) -> str | None:
    """What trains a run again, in a folder of its own; None where it has not begun."""
    attempts = run.job.get("attempts") or []
    words = [str(word) for word in attempts[-1].get("command") or ()] if attempts else []
    if "--out" not in words:
        return None
    at = words.index("--out")
    root = str(Path(words[at + 1]).parents[1])
    return shlex.join(word.replace(root, "DIR") for word in (*words[:at], *words[at + 2 :]))
