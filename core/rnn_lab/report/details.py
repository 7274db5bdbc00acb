"""What stands behind the figures: sizes, kernels, settings, environment, and what differs besides the model."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rnn_lab.records import RunRecord, Series
from rnn_lab.report.contestants import Contestant
from rnn_lab.report.facts import Confound, Kernel, Noise, Size

REFERENCE = "reference"
_UNSHOWN = {"train.seed", "data.path", "data.val_path", "train.device", "log.trackers"}
_RAN_ON = ("device", "dtype")


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


def shared_and_confounds(field: Sequence[Contestant]) -> tuple[dict[str, str], dict[str, str], tuple[Confound, ...]]:
    """Settings and environment that all runs share, and everything else that is not the model itself."""
    of_runs = {run.name: (dict(_settings(run)), dict(_environment(run))) for one in field for run in one.runs}
    shared: tuple[dict[str, str], dict[str, str]] = ({}, {})
    confounds = []
    for which in (0, 1):
        for key in dict.fromkeys(key for tables in of_runs.values() for key in tables[which]):
            by_value: dict[str, list[str]] = {}
            for name, tables in of_runs.items():
                by_value.setdefault(tables[which].get(key, "not set"), []).append(name)
            if len(by_value) == 1:
                shared[which][key] = next(iter(by_value))
            else:
                confounds.append(Confound(key, {value: ", ".join(names) for value, names in by_value.items()}))
    return shared[0], shared[1], (*confounds, *_kernel_confound(field), *_chain_confounds(field))


def _settings(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Configuration as `section.key`, the model's own left out; then what the machine decided."""
    for section, table in run.config.items():
        if section != "model":
            yield from ((f"{section}.{k}", _text(v)) for k, v in table.items() if f"{section}.{k}" not in _UNSHOWN)
    yield "data.fingerprint", _text((run.result.get("data") or {}).get("fingerprint"))
    yield from ((key, _text(run.result.get(key))) for key in _RAN_ON)
    yield "clock of budgets", _text(run.clock.get("budget"))
    yield "CUDA graph", _text((run.result.get("graph") or {}).get("used"))


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
    """Whether some contestants ran plain references where others ran kernels."""
    by_value: dict[str, list[str]] = {}
    for one in field:
        plain = sorted({str(row["op"]) for run in one.runs for row in run.backends if row.get("backend") == REFERENCE})
        by_value.setdefault(f"plain reference for {', '.join(plain)}" if plain else "kernels only", []).append(
            one.label
        )
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


def noise_of(series: Series) -> Noise | None:
    """The noise floor that the series was planned with, or measured itself."""
    known = series.noise
    if not known or not isinstance(known.get("floor"), int | float):
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
