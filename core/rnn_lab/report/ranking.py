"""The ranking: contestants in groups that were not shown to differ, and the front of loss against speed."""

from collections.abc import Callable, Mapping, Sequence

from rnn_lab.report.contestants import Contestant, mean
from rnn_lab.report.facts import Estimate, Noise, Standing, Verdict
from rnn_lab.report.judging import estimate, spread

Pairs = Mapping[tuple[str, str], Verdict]
DIFFERS = ("better", "worse")


def along(found: Sequence[Verdict], axis: str) -> Pairs:
    """The verdicts of one axis by pair."""
    return {(verdict.a, verdict.b): verdict for verdict in found if verdict.axis == axis}


def groups(labels: Sequence[str], shown: Callable[[str, str], bool]) -> list[int]:
    """Group of each label, best first, from 1; `shown(head, label)` says whether a label was shown to differ.

    A group is its head and those after it that were not shown to differ from the head.
    """
    found: list[int] = []
    head = ""
    for label in labels:
        if not found or shown(head, label):
            head = label
            found.append(found[-1] + 1 if found else 1)
        else:
            found.append(found[-1])
    return found


def front(points: Sequence[tuple[float, float | None]]) -> list[bool]:
    """Which (loss, tokens per second) no other point beats in one without losing in the other."""

    def beaten(loss: float, speed: float) -> bool:
        return any(
            other is not None and least <= loss and other >= speed and (least, other) != (loss, speed)
            for least, other in points
        )

    return [speed is not None and not beaten(loss, speed) for loss, speed in points]


def standings(field: Sequence[Contestant], metric: str, pairs: Pairs, noise: Noise | None) -> tuple[Standing, ...]:
    """The contestants, best mean first, in groups by the verdicts in `pairs`."""

    def shown(head: str, label: str) -> bool:
        verdict = pairs.get((head, label))
        return verdict is not None and verdict.verdict in DIFFERS and not verdict.below_noise

    losses = [estimate(one, metric) for one in field]
    speeds = [_throughput(one) for one in field]
    on_front = front([(loss.value, speed.value if speed else None) for loss, speed in zip(losses, speeds, strict=True)])
    rows = []
    for one, group, loss, speed, ahead in zip(
        field, groups([one.label for one in field], shown), losses, speeds, on_front, strict=True
    ):
        flops, tokens = one.result("flops"), one.result("tokens")
        gap = loss.value - losses[0].value
        validated = [run.result["val_loss"] for run in one.runs if run.result.get("val_loss") is not None]
        peaks = [run.result["peak_memory_bytes"] for run in one.runs if run.result.get("peak_memory_bytes")]
        rows.append(
            Standing(
                label=one.label,
                model=one.model,
                group=group,
                runs=tuple(run.name for run in one.runs),
                loss=loss,
                gap=gap,
                below_noise=noise is not None and 0 < gap < noise.floor,
                params=one.result("params"),
                target=(one.result("certificate") or {}).get("target"),
                val_loss=mean(validated) if validated else None,
                tokens_per_s=speed,
                flops_per_token=flops / tokens if flops and tokens else None,
                peak_memory_bytes=max(peaks) if peaks else None,
                on_front=ahead,
            )
        )
    return tuple(rows)


def _throughput(one: Contestant) -> Estimate | None:
    """Mean bytes per second of the runs, and their range."""
    rates = [float(run.result["tokens_per_s"]) for run in one.runs if run.result.get("tokens_per_s")]
    return spread(rates) if rates else None
