"""`python tests/golden/run.py DIR...`: every golden case of the folders through our models, one line each."""

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import torch
from rnn_lab.errors import RnnLabError
from rnn_lab.registry import registry

from .cases import CaseError, FolderError, NotInstalledError, discover, load
from .checks import check
from .measure import DRAWS, Finding, judge, judge_bf16, pooled
from .subject import Setting


@dataclass(frozen=True)
class Outcome:
    """What became of one case: `status` is pass, FAIL or skip; `what` says why not pass."""

    name: str
    status: str
    what: str = ""
    r: float | None = None
    checked: int = 0

    def line(self) -> str:
        """The case's line of the report."""
        shown = "-" if self.r is None else f"{self.r:.1e}"
        if self.status == "skip":
            return f"skip {self.name} {self.what}"
        return " ".join(filter(None, (self.status, self.name, self.what, f"r={shown}")))


def run_case(stem: Path, setting: Setting) -> Outcome:
    """Load, run and judge one case. Whatever goes wrong is the case's failure, not the runner's."""
    try:
        entries = check(load(stem), setting)
        if setting.dtype == "bf16":
            findings = judge_bf16(entries, check(load(stem), replace(setting, backend="reference")))
            if not all(finding.ok for finding in findings):
                findings = _judge_draws(stem, setting)
        else:
            findings = judge(entries, setting.dtype)
    except NotInstalledError as absent:
        return Outcome(stem.name, "skip", str(absent))
    except (CaseError, RnnLabError) as error:
        return Outcome(stem.name, "FAIL", _one_line(str(error)))
    except Exception as error:
        return Outcome(stem.name, "FAIL", _one_line(f"{type(error).__name__}: {error}"))
    return _outcome(stem.name, findings)


def _judge_draws(stem: Path, setting: Setting) -> list[Finding]:
    """Findings of a bf16 run over DRAWS draws of the inputs, each tensor's draws as one.

    What one draw's rounding does to a gradient that nearly cancels is chance. The exact values are those of the plain
    reference in fp64, which equals the golden ones at the golden inputs.
    """
    ways = (setting, replace(setting, backend="reference"), Setting("reference"))
    drawn = [[check(load(stem), replace(way, draw=draw)) for draw in range(DRAWS)] for way in ways]
    got, plain, exact = ([[entry.got for entry in entries] for entries in zip(*runs, strict=True)] for runs in drawn)
    entries = drawn[0][0]
    return judge_bf16(*(
        [pooled(entry, mine, true) for entry, mine, true in zip(entries, tensors, exact, strict=True)]
        for tensors in (got, plain)
    ))  # fmt: skip


def _outcome(name: str, findings: Sequence[Finding]) -> Outcome:
    if not findings:
        return Outcome(name, "FAIL", "nothing was compared")
    worst = sorted(findings, key=lambda f: (f.ok, -f.r if math.isfinite(f.r) else -math.inf))
    failed = [finding for finding in worst if not finding.ok]
    r = worst[0].r
    if not failed:
        return Outcome(name, "pass", r=r, checked=len(findings))
    more = f" and {len(failed) - 1} more of {len(findings)}" if len(failed) > 1 else f" of {len(findings)}"
    return Outcome(name, "FAIL", worst[0].what + more, r, len(findings))


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 400 else flat[:397] + "..."


def summary(outcomes: Sequence[Outcome]) -> str:
    """`N passed, M failed, K skipped`."""
    count = Counter(outcome.status for outcome in outcomes)
    return f"{count['pass']} passed, {count['FAIL']} failed, {count['skip']} skipped"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 when no case failed."""
    options = _parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = Setting(options.backend, options.dtype, options.device or _device(options.backend))
    try:
        stems = [stem for stem in discover(options.folders) if fnmatch(stem.name, options.only)]
        if not stems:
            raise FolderError(f"no case is called like {options.only!r}")
        first, step = options.part
        stems = stems[first::step]
    except FolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for plugin in registry().plugins:
        for problem in plugin.problems:
            print(f"warning: plugin {plugin.name}: {problem}", file=sys.stderr)
    outcomes = []
    for stem in stems:
        outcomes.append(run_case(stem, setting))
        if not options.json:
            print(outcomes[-1].line(), flush=True)
    if options.json:
        print(json.dumps([_jsonable(outcome) for outcome in outcomes], indent=1))
    print(summary(outcomes), file=sys.stderr if options.json else sys.stdout)
    return int(any(outcome.status == "FAIL" for outcome in outcomes))


def _jsonable(outcome: Outcome) -> dict[str, object]:
    finite = outcome.r is not None and math.isfinite(outcome.r)
    return asdict(outcome) | {"r": outcome.r if finite else None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests/golden/run.py", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of golden cases")
    parser.add_argument("--backend", help="kernel backend that every operation must run by; a fallback fails")
    parser.add_argument("--dtype", choices=("fp64", "fp32", "bf16"), default="fp64", help="precision (fp64)")
    parser.add_argument("--device", help="cpu or cuda; default: cuda for a backend other than reference")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases whose name matches")
    parser.add_argument("--part", type=_part, default=(0, 1), metavar="I/N", help="every N-th case from I on, from 0")
    parser.add_argument("--json", action="store_true", help="the outcomes as JSON; the summary to stderr")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1; the cases are tiny)")
    return parser


def _part(text: str) -> tuple[int, int]:
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal() and int(first) < int(step)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I below N")
    return int(first), int(step)


def _device(backend: str | None) -> str:
    named = backend or os.environ.get("RNN_LAB_KERNELS", "auto")
    kernels = named not in ("auto", "reference")
    return "cuda" if kernels and torch.cuda.is_available() else "cpu"
