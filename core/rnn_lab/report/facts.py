"""What a report says, as plain data: report.json is this, and both pages are renderings of it.

Losses are nats per byte, times seconds of the training clock, sizes bytes. Numbers are cut to seven significant
digits once, when the facts are complete, so that every rendering and every later check reads the same ones.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from rnn_lab.comparison.ranking import Reversal

DIGITS = 7
AXES = ("steps", "tokens", "flops", "seconds")
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; `low` and `high` are None where no interval can be had, and `method` says why."""

    value: float
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class Run:
    """One run, whatever became of it.

    `problem` says why it counts for nothing: how it failed, or what in its folder contradicts itself. `files` are
    sha256 sums; `other_seconds` what the clock booked besides training and warm-up.
    """

    name: str
    label: str
    model: str
    seed: int | None
    status: str
    params: int | None
    steps: int | None
    tokens: int | None
    flops: int | None
    seconds: float | None
    last100: float | None
    val_loss: float | None
    tokens_per_s: float | None
    mfu: float | None
    peak_memory_bytes: int | None
    device: str | None
    buckets: Mapping[str, float]
    attempts: tuple[str, ...]
    problem: str | None
    command: str
    chain: str | None
    files: Mapping[str, str]
    other_seconds: float | None


@dataclass(frozen=True)
class Standing:
    """A contestant (one configuration, all its seeds) in the ranking.

    `group` counts from 1; the best of each group is its head, and the others of the group were not shown to differ
    from the head. `gap` is the loss over that of the best contestant.
    """

    label: str
    model: str
    group: int
    runs: tuple[str, ...]
    loss: Estimate
    gap: float
    below_noise: bool
    params: int | None
    target: int | None
    val_loss: float | None
    tokens_per_s: Estimate | None
    flops_per_token: float | None
    peak_memory_bytes: int | None
    on_front: bool


@dataclass(frozen=True)
class Verdict:
    """What is known of the difference in training loss of two contestants at an equal amount of `axis`.

    Where `axis` is `val_loss` it is the difference of their validation losses at the end, and `at` is None.
    `effect` is a's loss less b's; negative is better for a; its interval is `low` to `high`, or plus or minus `half`.
    `detectable` is the smallest difference that these runs would have shown four times in five; `p` is adjusted over
    the pairs of the axis. `refusal` says why there is no verdict.
    """

    a: str
    b: str
    axis: str
    at: float | None
    verdict: str
    effect: float | None
    low: float | None
    high: float | None
    half: float | None
    p: float | None
    detectable: float | None
    method: str
    below_noise: bool
    refusal: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """Training loss of a contestant along an axis: moving mean, averaged over its seeds, and their range."""

    label: str
    axis: str
    at: tuple[float, ...]
    loss: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Milestones:
    """Losses at equal amounts of an axis, by label in the order of the ranking; None before and after a run."""

    axis: str
    at: tuple[float, ...]
    losses: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Size:
    """Certificate of a contestant: parameters by component, which sum to `params`."""

    label: str
    params: int
    target: int | None
    deviation: float | None
    counted: bool
    shape: Mapping[str, str]
    breakdown: Mapping[str, int]


@dataclass(frozen=True)
class Kernel:
    """An operation of a contestant: what ran in which layers, and why nothing faster did."""

    label: str
    op: str
    backend: str
    layers: str
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Published:
    """A published figure, somebody else's, and ours beside it where we ran the same."""

    label: str
    document: str
    run: str | None
    loss: float | None
    our_loss: Estimate | None
    tokens_per_s: float | None
    our_tokens_per_s: float | None
    params: int | None
    our_params: int | None
    preset: str | None
    caveat: str | None
    history: str | None


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of published figures with ours; `tau` is None below two pairs."""

    document: str
    of: str
    n: int
    tau: float | None
    low: float | None
    high: float | None
    p: float | None
    method: str
    swapped: tuple[str, ...]


@dataclass(frozen=True)
class Confound:
    """Something besides the model that differs between the runs."""

    key: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Unrecorded:
    """What nobody recorded of some runs, by name, so that nobody can say whether it is the same."""

    runs: str
    what: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Bytes that `runs` read: the file's name without its place, its size, and the fingerprint of its content.

    `read` are the fewest and the most bytes that one run read, `passes` the same as shares of the file; windows that
    overlap count each time.
    """

    name: str
    bytes: int
    fingerprint: str
    read: tuple[int, int] | None
    passes: tuple[float, float] | None
    runs: str


@dataclass(frozen=True)
class Noise:
    """The noise floor: what the same configuration differs by when only the seed changes."""

    floor: float
    sd: float
    n: int
    model: str


@dataclass(frozen=True)
class Report:
    """Everything; see the parts.

    `budgets` are those that the runs had, whatever the protocol says.
    `axis` is what the runs were given an equal amount of, `decides` the axis of the verdicts that part the groups of
    the ranking (`val_loss` for validation losses), `window` the steps that losses along the way are means of,
    `allowed` are obstacles that pairs are compared in spite of, `sources` sha256 sums of plan, noise floor and jobs.
    """

    title: str
    description: str
    budgets: tuple[str, ...]
    data: tuple[Corpus, ...]
    metric: str
    axis: str
    decides: str
    window: int
    made_with: Mapping[str, str]
    allowed: tuple[str, ...]
    settings: Mapping[str, str]
    notes: tuple[str, ...]
    findings: tuple[str, ...]
    standings: tuple[Standing, ...]
    verdicts: tuple[Verdict, ...]
    curves: tuple[Curve, ...]
    milestones: tuple[Milestones, ...]
    reversals: tuple[Reversal, ...]
    sizes: tuple[Size, ...]
    kernels: tuple[Kernel, ...]
    runs: tuple[Run, ...]
    published: tuple[Published, ...]
    agreements: tuple[Agreement, ...]
    confounds: tuple[Confound, ...]
    unrecorded: tuple[Unrecorded, ...]
    noise: Noise | None
    commands: tuple[str, ...]
    sources: Mapping[str, str]
    environment: Mapping[str, str]

    @property
    def failures(self) -> tuple[Run, ...]:
        """Runs that count for nothing, in plan order."""
        return tuple(run for run in self.runs if run.problem is not None)

    def to_json(self) -> str:
        """report.json: one key a line, in the order of the fields."""
        return json.dumps(asdict(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def settled(value: T) -> T:
    """`value` with every float within it cut to seven significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS - 1}e}")  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(settled(item) for item in value)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: settled(item) for key, item in value.items()}  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        changes: dict[str, Any] = {field.name: settled(getattr(value, field.name)) for field in fields(value)}
        return replace(value, **changes)
    return value
