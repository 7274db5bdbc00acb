"""The noise floor of a protocol: how far apart runs lie that differ by their seed alone.

From n runs of one model with losses of standard deviation s (n - 1 in the denominator), two single runs of models
that are equally good differ by more than

    floor = t(0.975, n - 1) * s * sqrt(2)

in 5 % of cases (Student's t interval of a difference of two draws, s estimated from the n runs). A smaller gap between
single runs says nothing. With few runs t is large: n = 3 gives 6.1 s, n = 5 gives 3.9 s, many give 2.8 s.
"""

import json
import math
import statistics
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rnn_lab.errors import RnnLabError
from rnn_lab.lab.plan import SeriesPlan
from rnn_lab.lab.series import SeriesDir, now
from rnn_lab.protocol import slug
from rnn_lab.system.atomic import write_text_atomic
from rnn_lab.system.paths import data_dir

CONFIDENCE = 0.95


def noise_floor(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and floor of the losses of runs that differ by seed alone.

    Raises:
        RnnLabError: fewer than two, which have no spread.
    """
    if len(values) < 2:
        raise RnnLabError(f"a noise floor needs at least 2 runs that ended well, there are {len(values)}")
    from scipy import stats

    sd = statistics.stdev(values)
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return {"n": len(values), "mean": statistics.fmean(values), "sd": sd, "floor": t * sd * math.sqrt(2), "t": t}


def measure(series: SeriesDir) -> dict[str, Any]:
    """The floor of a finished series of one model, as noise.json holds it.

    Raises:
        RnnLabError: fewer than two runs ended with the metric.
    """
    meta = series.read_plan()
    metric, jobs = str(meta["metric"]), series.jobs()
    figures = {job.seed: value for job in jobs if (value := _figure(series, job.name, metric)) is not None}
    return {
        "protocol": meta["protocol"],
        "fingerprint": meta["fingerprint"],
        "overrides": meta["overrides"],
        "model": jobs[0].label,
        "metric": metric,
        "unit": "nats per byte",
        "confidence": CONFIDENCE,
        "formula": "t * sd * sqrt(2)",
        "values": {str(seed): value for seed, value in figures.items()},
        **noise_floor(list(figures.values())),
        "devices": sorted({_device(series, job.name) for job in jobs if job.seed in figures}),
        "measured": now(),
        "series": str(series.path.resolve()),
    }


def store(noise: dict[str, Any]) -> Path:
    """Keep a floor with its protocol, where later series find it; one per model, the newest.

    Returns:
        The file.

    Raises:
        RnnLabError: it cannot be written.
    """
    path = _file(noise["protocol"])
    kept = [old for old in _read(path) if _key(old) != _key(noise)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, json.dumps([*kept, noise], indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise RnnLabError(f"{path}: the noise floor cannot be kept: {error.strerror}") from error
    return path


def stored_noise(plan: SeriesPlan, devices: Collection[str]) -> dict[str, Any] | None:
    """The floor of a planned series: the largest of its metric under the very same settings; None without one.

    Args:
        plan: the series.
        devices: that it will run on, by names of GPUs or `cpu`; a floor of others is another, since a budget of time
            and the precision depend on them.
    """
    wanted: dict[str, Any] = {"fingerprint": plan.protocol.fingerprint(), "overrides": list(plan.overrides)}
    wanted |= {"metric": plan.protocol.series.metric, "devices": sorted(devices)}
    fitting = [old for old in _read(_file(plan.name)) if {key: old.get(key) for key in wanted} == wanted]
    return max(fitting, key=lambda noise: float(noise["floor"]), default=None)


def _file(protocol: str) -> Path:
    return data_dir() / "noise" / f"{slug(protocol)}.json"


def _read(path: Path) -> list[dict[str, Any]]:
    """Floors of a protocol; none where the file is missing or damaged, because it can be measured again."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [noise for noise in table if isinstance(noise, dict) and isinstance(noise.get("floor"), float)]


def _key(noise: dict[str, Any]) -> tuple[Any, ...]:
    settings = json.dumps([noise.get("overrides"), noise.get("devices")])
    return noise.get("fingerprint"), settings, noise.get("model"), noise.get("metric")


def _figure(series: SeriesDir, job: str, metric: str) -> float | None:
    result = _result(series, job)
    value = result.get(metric)
    return float(value) if result.get("status") == "ok" and isinstance(value, int | float) else None


def _device(series: SeriesDir, job: str) -> str:
    """Name of the GPU that a run was on, or `cpu`."""
    with suppress(OSError, ValueError, AttributeError):
        gpu = json.loads((series.run(job) / "env.json").read_text(encoding="utf-8")).get("gpu")
        if gpu and _result(series, job).get("device") != "cpu":
            return str(gpu)
    return str(_result(series, job).get("device"))


def _result(series: SeriesDir, job: str) -> dict[str, Any]:
    from rnn_lab.train.rundir import RunDir

    return RunDir(series.run(job)).read_result() or {}
