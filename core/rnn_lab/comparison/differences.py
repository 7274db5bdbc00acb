"""Everything that two runs differ in, by how much it stands in the way of a comparison.

equality     what compare refuses: sizes, data, batches, precision, clocks, kernels, runs that did not end
training     changes what is learned: optimizer, clipping, budget, seed
model        what is being compared
environment  may change the speed and the last digits: machine, versions, graph, backends
record       says when and how it was run
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rnn_lab.comparison.pairing import unpaired_because
from rnn_lab.comparison.records import RunRecord

AXES = ("steps", "tokens", "flops", "seconds")
TOPICS = {
    "params": "parameter counts beyond the tolerance",
    "data": "other data",
    "batch": "another batch size or sequence length",
    "dtype": "another precision of matrix products",
    "clock": "seconds of another clock or machine",
    "kernels": "a native kernel against a fallback",
    "unfinished": "a run that did not reach its end",
    "budget": "validated after another amount of training",
    "pairing": "steps that did not see the same bytes",
}
SEVERITIES = ("equality", "training", "model", "environment", "record")
TOLERANCE = 0.005
ENDED = ("ok",)
FAILED = ("diverged", "oom", "failed", "timeout", "pending", "damaged")
_BUDGETS = ("train.steps", "train.tokens", "train.minutes")
_TRAINING = ("train", "optimizer", "objective", "schedule", "eval")
_RECORD = ("checkpoint", "log", "diagnostics", "data.path", "data.val_path", "date", "git", "command")
_ENVIRONMENT = ("train.device", "train.graph", "train.dtype", "loader.workers", "loader.prefetch")


@dataclass(frozen=True)
class Difference:
    """One thing that two runs differ in.

    Attributes:
        severity: see the module docstring.
        key: `section.key` of config.toml, a key of env.json, or what was measured.
        a, b: the two values; None where a run has none.
        topic: for severity equality: the word that `compare --allow` takes.
        axes: for severity equality: the axes on which it breaks the comparison.
    """

    severity: str
    key: str
    a: Any
    b: Any
    topic: str | None = None
    axes: tuple[str, ...] = AXES

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def differences(a: RunRecord, b: RunRecord, tolerance: float = TOLERANCE) -> list[Difference]:
    """All of them, the gravest first."""
    found = [*obstacles(a, b, tolerance), *_in_config(a, b), *_in_environment(a, b), *_in_backends(a, b)]
    return sorted(found, key=lambda one: SEVERITIES.index(one.severity))


def obstacles(a: RunRecord, b: RunRecord, tolerance: float = TOLERANCE) -> list[Difference]:
    """What makes a comparison of two runs unequal; what a run without a result never recorded is not held against it.

    Args:
        a: one run.
        b: the other.
        tolerance: sizes agree where some size lies within this share of both.
    """
    found = [*_unfinished(a, b), *_settings(a, b)]
    if a.result and b.result:
        found += [*_measured(a, b, tolerance), *_speed(a, b)]
    if not any(one.topic in ("data", "batch") for one in found) and (reason := unpaired_because(a, b)):
        found.append(Difference("equality", f"pairing ({reason})", a.chain, b.chain, "pairing"))
    return found


def validated_otherwise(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    """What makes a comparison of two validation losses unequal, besides all that makes runs unequal."""
    for key, topic in (("data.val_path", "data"), ("eval.tokens", "data"), *((key, "budget") for key in _BUDGETS)):
        section, _, name = key.partition(".")
        one, other = (run.config.get(section, {}).get(name) for run in (a, b))
        if one != other:
            yield Difference("equality", key, one, other, topic)


def _unfinished(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    if any(run.status not in ENDED and not run.external for run in (a, b)):
        yield Difference("equality", "status", a.status, b.status, "unfinished")


def _settings(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    # A longer sequence gives later positions more to go by, which no axis makes up for.
    for key, axes in (("seq_len", AXES), ("batch_size", ("steps",)), ("carry_state", AXES)):
        one, other = (run.config.get("train", {}).get(key) for run in (a, b))
        if one != other:
            yield Difference("equality", f"train.{key}", one, other, "batch", axes)


def _measured(a: RunRecord, b: RunRecord, tolerance: float) -> Iterator[Difference]:
    if a.params is None or b.params is None or abs(a.params - b.params) > tolerance * (a.params + b.params):
        yield Difference("equality", "params", a.params, b.params, "params")
    data = [run.result.get("data") or {} for run in (a, b)]
    for key in ("fingerprint", "bytes"):
        one, other = (table.get(key, "unknown") for table in data)
        if one != other or one == "unknown":  # what nobody recorded is not the same
            yield Difference("equality", f"data.{key}", one, other, "data")
            break
    if a.result.get("dtype") != b.result.get("dtype"):
        yield Difference("equality", "dtype", a.result.get("dtype"), b.result.get("dtype"), "dtype")


def _speed(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    for key, value in (
        ("clock", lambda run: run.clock.get("budget")),
        ("device", lambda run: str(run.result.get("device")).partition(":")[0]),
        ("gpu", lambda run: run.env.get("gpu")),
        ("torch_threads", lambda run: None if run.env.get("gpu") else run.env.get("torch_threads")),
    ):
        one, other = value(a), value(b)
        if one != other:
            yield Difference("equality", key, one, other, "clock", ("seconds",))
    if _on_other_cpus(a, b):
        yield Difference("equality", "cpu", a.env["cpu"], b.env["cpu"], "clock", ("seconds",))
    if kernels_of(a) != kernels_of(b):
        yield Difference("equality", "kernels", kernels_of(a), kernels_of(b), "kernels", ("seconds",))


def _on_other_cpus(a: RunRecord, b: RunRecord) -> bool:
    """Whether both ran on a CPU, and on another; one that was not recorded may be the same."""
    one, other = (None if run.env.get("gpu") else run.env.get("cpu") for run in (a, b))
    return one is not None and other is not None and one != other


def kernels_of(run: RunRecord) -> str:
    """`fallback` where an operation of a layer ran by its reference although it has kernels, else `native`.

    On a CPU there are no kernels to fall back from.
    """
    if str(run.result.get("device")) == "cpu":
        return "cpu"
    fallback = any(
        row["backend"] == "reference" and row.get("refused") and row.get("layers") != ["lm"] for row in run.backends
    )
    return "fallback" if fallback else "native"


def _in_config(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    told = {"train.batch_size", "train.seq_len", "train.carry_state"}
    for key, one, other in _unequal(a.config, b.config):
        if key in told:
            continue
        section = key.partition(".")[0]
        severity = "model" if section == "model" else "training" if section in _TRAINING else "record"
        yield Difference("environment" if key in _ENVIRONMENT else severity, key, one, other)


def _in_environment(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    told = {"gpu", "torch_threads", *(["cpu"] if _on_other_cpus(a, b) else [])}
    for key, one, other in _unequal(a.env, b.env):
        if key not in told:
            yield Difference("record" if key in _RECORD else "environment", key, one, other)
    for key, one, other in _unequal(a.result.get("graph") or {}, b.result.get("graph") or {}):
        yield Difference("environment", f"graph.{key}", one, other)


def _in_backends(a: RunRecord, b: RunRecord) -> Iterator[Difference]:
    by_op = [{row["op"]: row["backend"] for row in run.backends} for run in (a, b)]
    for key, one, other in _unequal(*by_op):
        yield Difference("environment", f"backend of {key}", one, other)


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    one, other = dict(_flat(a)), dict(_flat(b))
    for key in [*one, *(key for key in other if key not in one)]:
        if one.get(key) != other.get(key):
            yield key, one.get(key), other.get(key)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, " ".join(map(str, value)) if isinstance(value, list | tuple) else value
