"""Whether a run's files are what the trainer wrote: those of a series have sums, and all agree with each other.

The trainer writes most figures twice (loss and bits per byte, every step and the summary at the end), so that one
changed digit shows, and where.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnn_lab.train.metrics import WINDOW

if TYPE_CHECKING:
    from rnn_lab.comparison.records import RunRecord

_EXACT = 1e-9
_CUMULATIVE = ("tokens", "flops")


def edited(run: "RunRecord") -> str | None:
    """Why a run that ended well counts for nothing, in one line; None where its files are what was written.

    Raises:
        RunError: a line of its metrics is damaged.
    """
    if run.status != "ok":
        return None
    sums = run.job.get("sums") or {}
    changed = [name for name, known in sums.items() if sha256(run.path / str(name)) != known]
    if changed:
        return f"edited or damaged after it ended: {', '.join(changed)}"
    wrong = contradiction(run)
    return None if wrong is None else f"edited or damaged: {wrong}"


def sha256(path: Path) -> str | None:
    """Sum of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contradiction(run: "RunRecord") -> str | None:
    """The first place where the files of a finished run contradict each other, or None.

    Imported runs and runs that did not finish have too few figures to tell.
    """
    if run.external or run.status != "ok":
        return None
    return next(_steps(run), None) or next(_summary(run), None) or next(_counts(run.result), None)


def _steps(run: "RunRecord") -> Iterator[str]:
    """Lines of metrics.jsonl that do not fit themselves or the lines before."""
    first, sums = run.lines[:1], [0.0]
    seconds = 0.0
    for number, line in enumerate(run.lines, 1):
        where = f"metrics.jsonl, line {number}"
        sums.append(sums[-1] if line["loss"] is None else line["loss"])
        if line.get("bpb") is not None and not _same(line["bpb"] * math.log(2), line["loss"]):
            yield f"{where}: bpb {line['bpb']!r} is not loss {line['loss']!r} / ln 2"
        for key in _CUMULATIVE:
            if line.get(key) is not None and not _same(line[key], first[0][key] * number):
                yield f"{where}: {key} {line[key]!r} is not {number} times that of step 1"
        if line.get("seconds") is not None:
            if line["seconds"] < seconds:
                yield f"{where}: the training clock goes back from {seconds!r} to {line['seconds']!r} s"
            seconds = line["seconds"]
        if line.get("last100") is not None:
            mean = math.fsum(sums[-WINDOW:]) / WINDOW
            if number < WINDOW or not _same(line["last100"], mean):
                yield f"{where}: last100 {line['last100']!r} is not the mean loss of the last {WINDOW} steps, {mean!r}"


def _summary(run: "RunRecord") -> Iterator[str]:
    """Figures of result.json that are not those of the last step."""
    result, last = run.result, run.lines[-1] if run.lines else {}
    none = None if run.lines else 0
    expected = {
        "steps": len(run.lines),
        "tokens": last.get("tokens", none),
        "flops": last.get("flops", none),
        "loss": last.get("loss"),
        "last100": run.last100,
        "bpb": None if run.last100 is None else run.last100 / math.log(2),
        "val_bpb": None if result.get("val_loss") is None else result["val_loss"] / math.log(2),
    }
    for key, value in expected.items():
        if (value is None) != (result.get(key) is None) or (value is not None and not _same(result[key], value)):
            yield f"result.json: {key} {result.get(key)!r}, but metrics.jsonl gives {value!r}"
    train = result.get("clock", {}).get("buckets", {}).get("train")
    if train is not None and last.get("seconds") is not None and not _same(last["seconds"], train, 1e-6):
        yield f"result.json: {train!r} s of training, but the clock of metrics.jsonl ends at {last['seconds']!r} s"
    per_second, per_step = result.get("tokens_per_s"), last.get("tokens", 0) / max(len(run.lines), 1)
    if train and per_second and per_step:
        timed = per_second * train / per_step
        if abs(timed - round(timed)) > 1e-6 * max(timed, 1) or timed > len(run.lines) + 0.5:
            yield f"result.json: tokens_per_s {per_second!r} is no whole number of steps over {train!r} s"


def _counts(result: Mapping[str, Any]) -> Iterator[str]:
    """Sums of result.json that do not come out."""
    certificate, clock = result.get("certificate") or {}, result.get("clock") or {}
    parts, params = certificate.get("breakdown"), result.get("params")
    if parts and sum(parts.values()) != certificate.get("params"):
        yield f"result.json: the certificate's parts sum to {sum(parts.values()):,}, not {certificate.get('params'):,}"
    if certificate and certificate.get("params") != params:
        yield f"result.json: params {params}, but the certificate counts {certificate.get('params')}"
    buckets = clock.get("buckets")
    if buckets and not _same(math.fsum(buckets.values()), clock.get("total", 0.0), 1e-6):
        yield f"result.json: the clock's buckets sum to {math.fsum(buckets.values())!r} s, not {clock.get('total')!r}"


def _same(a: float, b: float, tolerance: float = _EXACT) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
