"""How far a computed tensor is from its golden value, and how far it may be.

r = RMS(got - golden) / RMS(golden). A golden tensor whose RMS is under 1e-4 of the median RMS of its case is
the small difference of larger numbers; there max|got - golden| / max(1, max|golden|) takes the place of r,
under the same limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

FORWARD, GRADIENT = "forward", "gradient"
TINY = 1e-4
SPEC_LIMIT = 1e-10
"""Limit of max|d| / max(1, max|golden|) in fp64 that the golden data themselves promise, besides r."""
LIMITS = {
    "fp64": {FORWARD: 1e-12, GRADIENT: 1e-12},
    "fp32": {FORWARD: 1e-5, GRADIENT: 1e-4},
}
BF16_UNIT = 2.0**-8
"""Rounding unit of bf16: no error below it is counted against a backend."""
DRAWS = 16
"""Of a case's inputs, before a backend's rounding is called worse than the reference's."""


@dataclass(frozen=True)
class Entry:
    """One comparison.

    `scale` is a lower bound of the denominator, for a scalar that is a sum of signed terms: their root sum of
    squares, so that cancellation in the golden value does not pass for an error.
    """

    what: str
    got: Tensor
    golden: Tensor
    kind: str = FORWARD
    scale: float = 0.0

    def errors(self, typical: float) -> tuple[float, float]:
        """r (or its stand-in for a tiny tensor) and max|d| / max(1, max|golden|)."""
        if self.got.shape != self.golden.shape:
            return math.inf, math.inf
        golden = self.golden.double()
        difference = self.got.detach().cpu().double() - golden
        if not difference.numel():
            return math.inf, math.inf
        absolute = float(difference.abs().max() / golden.abs().max().clamp(min=1.0))
        size = max(rms(golden), self.scale)
        relative = absolute if size < TINY * typical or size == 0 else rms(difference) / size
        return relative, absolute


@dataclass(frozen=True)
class Finding:
    """What a comparison showed."""

    what: str
    r: float
    ok: bool


def pooled(entry: Entry, got: Sequence[Tensor], exact: Sequence[Tensor]) -> Entry:
    """The entry over several draws of its inputs, as one tensor."""
    return replace(entry, got=torch.stack([*got]).detach().cpu(), golden=torch.stack([*exact]).detach().cpu())


def rms(tensor: Tensor) -> float:
    """Root of the mean square."""
    return float(tensor.double().square().mean().sqrt())


def judge(entries: Sequence[Entry], dtype: str) -> list[Finding]:
    """Findings of one run against the fixed limits of `dtype`. NaN is never within a limit."""
    typical = _typical(entries)
    findings = []
    for entry in entries:
        r, absolute = entry.errors(typical)
        ok = r < LIMITS[dtype][entry.kind] and (dtype != "fp64" or absolute <= SPEC_LIMIT)
        findings.append(Finding(_label(entry), r, ok))
    return findings


def judge_bf16(entries: Sequence[Entry], plain: Sequence[Entry]) -> list[Finding]:
    """Findings of a bf16 run: at most twice the error of the plain reference on the same inputs."""
    typical = _typical(entries)
    findings = []
    for entry, other in zip(entries, plain, strict=True):
        assert entry.what == other.what
        r, _ = entry.errors(typical)
        allowed, _ = other.errors(typical)
        findings.append(Finding(_label(entry), r, r <= max(2 * allowed, BF16_UNIT)))
    return findings


def _typical(entries: Sequence[Entry]) -> float:
    return median(rms(entry.golden) for entry in entries) if entries else 0.0


def _label(entry: Entry) -> str:
    if entry.got.shape == entry.golden.shape:
        return entry.what
    return f"{entry.what} (shape {list(entry.got.shape)} instead of {list(entry.golden.shape)})"


def signed_scale(*products: Tensor) -> float:
    """Root sum of squares of all terms of a sum."""
    with torch.no_grad():
        return math.sqrt(sum(float(p.double().square().sum()) for p in products))
