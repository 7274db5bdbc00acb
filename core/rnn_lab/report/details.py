"""What stands behind the figures: sizes, kernels, settings, environment, and what else differs or is unknown."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rnn_lab.comparison.differences import kernels_of
from rnn_lab.comparison.records import RunRecord, Series
from rnn_lab.report.contestants import Contestant
from rnn_lab.report.facts import Confound, Kernel, Noise, Size, Unrecorded

REFERENCE = "reference"
_UNSHOWN = {"train.seed", "data.path", "data.val_path", "train.device", "log.trackers"}
_RAN_ON = ("device", "dtype")
_MEASURED = ("data.fingerprint", *_RAN_ON, "clock of budgets", "CUDA graph")
_STATED = {
    "batch_size": "train.batch_size", "seq_len": "train.seq_len", "grad_accum": "train.grad_accum",
    "optimizer": "optimizer.name",
}  # fmt: skip
_EXPECTED = ("train.batch_size", "train.seq_len", "optimizer.name", "optimizer.lr", *_MEASURED)
_WEIGHTY = ("train", "optimizer", "data")
_UNKNOWN = "not recorded"


def sizes(field: Sequence[Contestant]) -> tuple[Size, ...]:
    """Certificate of every contestant that has one."""
    found = []
    for one in field:
        certificate = one.result("certificate")
        if not certificate:
            continue
        model = {key: value for key, value in one.runs[0].config.get("model", {}).items() if key != "target"}
        found.append(
            Size(
                label=one.label,
                params=certificate["params"],
                target=certificate.get("target"),
                deviation=certificate.get("deviation"),
                counted=bool(certificate.get("counted")),
                shape={key: _text(value) for key, value in model.items()},
                breakdown=dict(certificate.get("breakdown") or {}),
            )
        )
    return tuple(found)


def kernels(field: Sequence[Contestant]) -> tuple[Kernel, ...]:
    """Which backend served each operation of each contestant; seeds that were served alike share a row."""
    found: list[Kernel] = []
    for one in field:
        seen = set()
        for run in one.runs:
            for row in run.backends:
                kernel = Kernel(
                    label=one.label,
                    op=str(row.get("op")),
                    backend=str(row.get("backend")),
                    layers=_layers(row.get("layers") or []),
                    refused={str(k): str(v) for k, v in (row.get("refused") or {}).items()},
                )
                key = (kernel.op, kernel.backend, kernel.layers)
                if key not in seen:
                    seen.add(key)
                    found.append(kernel)
    return tuple(found)


def _layers(layers: Sequence[Any]) -> str:
    """`0-7, lm` from [0, 1, ..., 7, "lm"]."""
    numbers = sorted(layer for layer in layers if isinstance(layer, int))
    parts: list[str] = []
    start = 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            parts.append(str(number) if start == i else f"{numbers[start]}-{number}")
            start = i + 1
    return ", ".join([*parts, *(str(layer) for layer in layers if not isinstance(layer, int))])


@dataclass(frozen=True)
class Setup:
    """What all runs share, what differs besides the model, and what nobody recorded."""

    settings: Mapping[str, str]
    environment: Mapping[str, str]
    confounds: tuple[Confound, ...]
    unrecorded: tuple[Unrecorded, ...]


def setup(field: Sequence[Contestant]) -> Setup:
    """Settings and environment of the runs that count; what a run did not record is neither equal nor another."""
    runs = [run for one in field for run in one.runs]
    of_settings = {run.name: dict(_settings(run)) for run in runs}
    of_environment = {run.name: dict(_environment(run)) for run in runs}
    settings, differ = _shared(of_settings, {run.name for run in runs if run.external})
    environment, elsewhere = _shared(of_environment, {run.name for run in runs if not run.env})
    return Setup(
        settings,
        environment,
        (*differ, *elsewhere, *_kernel_confound(field), *_chain_confounds(field)),
        _unrecorded(runs, of_settings),
    )


def _shared(
    tables: Mapping[str, Mapping[str, str]], partial: Collection[str]
) -> tuple[dict[str, str], tuple[Confound, ...]]:
    """What all runs have in common and what not, by key; what a run of `partial` lacks is unknown, not unset."""
    shared, differ = {}, []
    for key in dict.fromkeys(key for table in tables.values() for key in table):
        by_value: dict[str, list[str]] = {}
        for name, table in tables.items():
            value = table.get(key, _UNKNOWN if name in partial else "not set")
            by_value.setdefault(value, []).append(name)
        unknown = by_value.pop(_UNKNOWN, [])
        if len(by_value) == 1:
            shared[key] = next(iter(by_value)) + (" (where recorded)" if unknown else "")
        elif by_value:
            differ.append(Confound(key, {value: ", ".join(names) for value, names in by_value.items()}))
    return shared, tuple(differ)


def _unrecorded(runs: Sequence[RunRecord], tables: Mapping[str, Mapping[str, str]]) -> tuple[Unrecorded, ...]:
    """What runs do not say of what a comparison rests on; runs that lack the same together."""
    known = [key for table in tables.values() for key in table if key.partition(".")[0] in _WEIGHTY]
    by_what: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        table = tables[run.name]
        expected = [*_EXPECTED, *known] if run.external else _MEASURED
        lacking = [key for key in dict.fromkeys(expected) if table.get(key, _UNKNOWN) == _UNKNOWN]
        for what, there in (
            ("bytes consumed", run.chain),
            ("kernels", run.backends),
            ("software and machine", run.env),
        ):
            if not there:
                lacking.append(what)
        if lacking:
            by_what.setdefault(tuple(lacking), []).append(run.name)
    return tuple(Unrecorded(", ".join(names), what) for what, names in by_what.items())


def _settings(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Configuration as `section.key`, the model's own left out; then what the machine decided."""
    for section, table in run.config.items():
        if section != "model":
            yield from ((f"{section}.{k}", _text(v)) for k, v in table.items() if f"{section}.{k}" not in _UNSHOWN)
    stated = run.result.get("stated") or {}
    if run.external and isinstance(stated, Mapping):
        yield from ((key, _text(stated[name])) for name, key in _STATED.items() if stated.get(name) is not None)
    measured = (
        (run.result.get("data") or {}).get("fingerprint"),
        *(run.result.get(key) for key in _RAN_ON),
        run.clock.get("budget"),
        (run.result.get("graph") or {}).get("used"),
    )
    yield from ((key, _UNKNOWN if v is None else _text(v)) for key, v in zip(_MEASURED, measured, strict=True))


def _environment(run: RunRecord) -> Iterator[tuple[str, str]]:
    """env.json as flat pairs, without the date and the command."""
    for key, value in run.env.items():
        if key in ("date", "command"):
            continue
        if isinstance(value, Mapping):
            yield from ((str(name), _text(version)) for name, version in value.items())
        else:
            yield {"git": "commit", "gpu_memory_bytes": "GPU memory, bytes"}.get(key, key), _text(value)


def _kernel_confound(field: Sequence[Contestant]) -> Iterator[Confound]:
    """Whether some contestants fell back to plain references where others ran kernels; on a CPU there are none."""
    by_value: dict[str, list[str]] = {}
    for one in field:
        kinds = {kernels_of(run) for run in one.runs if run.backends}
        for kind in sorted(kinds):
            rows = [row for run in one.runs for row in run.backends if row.get("backend") == REFERENCE]
            plain = ", ".join(sorted({str(row["op"]) for row in rows if row.get("layers") != ["lm"]}))
            by_value.setdefault(f"plain reference for {plain}" if kind == "fallback" else kind, []).append(one.label)
    if len(by_value) > 1:
        yield Confound("kernels", {value: ", ".join(labels) for value, labels in by_value.items()})


def _chain_confounds(field: Sequence[Contestant]) -> Iterator[Confound]:
    """Runs of one seed and as many steps that consumed different bytes."""
    seen: dict[tuple[Any, Any], dict[str, list[str]]] = {}
    for one in field:
        for run in one.runs:
            if run.chain is not None:
                chains = seen.setdefault((run.seed, run.result.get("steps")), {})
                chains.setdefault(run.chain[:12], []).append(run.name)
    for (seed, steps), chains in seen.items():
        if len(chains) > 1:
            key = f"bytes consumed by seed {seed} in {steps:,} steps"
            yield Confound(key, {chain: ", ".join(names) for chain, names in chains.items()})


def noise_of(series: Series, metric: str) -> Noise | None:
    """The noise floor that the series was planned with, or measured itself; None for that of another figure."""
    known = series.noise
    if not known or not isinstance(known.get("floor"), int | float) or known.get("metric", metric) != metric:
        return None
    return Noise(float(known["floor"]), float(known.get("sd", 0.0)), int(known.get("n", 0)), str(known.get("model")))


def dates(field: Sequence[Contestant]) -> str:
    """First and last start of the runs."""
    known = sorted(str(run.env["date"]) for one in field for run in one.runs if run.env.get("date"))
    return "" if not known else known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def commands(series: Series) -> tuple[str, ...]:
    """What makes the series again, then what judges it."""
    given = series.meta.get("command") or ()
    words = shlex.split(given) if isinstance(given, str) else [str(word) for word in given]
    if words and words[0] == "__main__.py":
        words[0] = "rnn-lab"
    return (*([shlex.join(words)] if words else []), "rnn-lab report DIR", "rnn-lab verify-report DIR")


def _text(value: Any) -> str:
    """A value of a configuration as a file would show it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)
