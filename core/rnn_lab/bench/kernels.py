"""Rows of `rnn-lab bench kernels`: every implementation of every operation that the models call.

An implementation is checked first, against the reference in fp64 on fresh inputs; one that fails has no times.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch

from rnn_lab.bench.calls import Bound, Check, Outcome, compare
from rnn_lab.bench.cases import Case, Source, flops
from rnn_lab.bench.floor import FLOOR, floor_rows
from rnn_lab.bench.implementation import Implementation
from rnn_lab.bench.isolated import rows_of
from rnn_lab.bench.machine import cache_bytes, ceilings, header
from rnn_lab.bench.peers import implementations
from rnn_lab.bench.rows import failure, free
from rnn_lab.bench.timing import Spread, time_eager, time_graph
from rnn_lab.config import ModelSection
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.modelspec import ModelSpec, model_spec
from rnn_lab.registry import registry

LOOP_STEPS = 2048
"""A plain loop over more steps is not run: minutes, and memory for every step."""
CHECK_STEPS = 512
CHECK_BYTES = 8e9
"""What the fp64 loop of a check may save for its backward pass, estimated from the state."""
SAVED_PER_STEP = 6
"""States that a loop saves per step, roughly."""
MOST_SETS = 32
Exact = Callable[[Callable[[Case], Bound]], Outcome]
LEFT_OUT = "left out"
"""Status of a call none of whose implementations is asked for: no row of the page."""
TIMERS = {"graph": time_graph, "eager": time_eager}


@dataclass(frozen=True)
class Setting:
    """At which size and for how long is measured.

    `limit` is how many seconds a row may take in a process of its own; None: in this one, however long.
    `implementations` are patterns of the names that are measured.
    """

    batch: int
    seq_len: int
    dtype: torch.dtype
    device: torch.device
    seconds: float = 0.5
    limit: float | None = None
    implementations: tuple[str, ...] = ("*",)

    @property
    def modes(self) -> tuple[str, ...]:
        """Every implementation under a CUDA graph and launched from Python; only the latter on the CPU."""
        return ("graph", "eager") if self.device.type == "cuda" else ("eager",)


def bench_kernels(
    asked: Sequence[tuple[str, dict[str, Any]]], ops: Sequence[str], setting: Setting,
    show: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:  # fmt: skip
    """The page: header, ceilings, rows.

    Args:
        asked: models and their fields.
        ops: operations to keep; all when empty.
        setting: sizes.
        show: is handed the page after every row.

    Raises:
        ConfigError: what these models call has no implementation that is asked for.

    """
    for name, fields in asked:
        _spec(name, fields)  # what cannot be built is an error at once
    page: dict[str, Any] = {
        "kind": "bench-kernels",
        "header": header(setting.device),
        "setting": {
            "batch": setting.batch, "seq_len": setting.seq_len,
            "dtype": str(setting.dtype).removeprefix("torch."),
            **_kept("op", ops), **_kept("implementation", setting.implementations),
        },
        "ceilings": ceilings(setting.device, setting.seconds),
        "rows": [],
    }  # fmt: skip
    known: set[str] = set()
    for row in rows_of(_rows, (list(asked), list(ops), setting, page["ceilings"]), setting.limit):
        if row["status"] == LEFT_OUT:
            known |= set(row["implementations"])
            continue
        page["rows"].append(row)
        show(page)
    if known and not page["rows"]:
        patterns = " or ".join(setting.implementations)
        near = did_you_mean(patterns, known)
        raise ConfigError(
            f"--implementation {patterns}: nothing that these models call has it; "
            f"known are {', '.join(sorted(known))}.{near}"
        )
    return page


def _kept(what: str, names: Sequence[str]) -> dict[str, str]:
    """What a page was restricted to, so that it says itself what was left out."""
    return {} if not names or "*" in names else {f"only {what}": " or ".join(names)}


def _spec(name: str, fields: dict[str, Any]) -> ModelSpec:
    return model_spec(ModelSection(name=name, depth=1, fields=fields), registry())


def _rows(
    asked: Sequence[tuple[str, dict[str, Any]]], ops: Sequence[str], setting: Setting, top: dict[str, float | None],
    done: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    seen: dict[str, str] = {}
    for name, fields in asked:
        yield from _model_rows(name, _spec(name, fields), ops, setting, seen, top, done)


def _model_rows(
    name: str, spec: ModelSpec, ops: Sequence[str], setting: Setting, seen: dict[str, str],
    top: dict[str, float | None], done: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of one model, each implementation announced first."""
    fields = spec.layer_cfg.model_dump(mode="json", exclude_none=True)
    ready = {"model": name, "fields": fields, "op": None, "implementation": None, "prepares": True}
    if ready in done:
        return
    yield ready
    try:
        source = Source(name, spec, setting.dtype, setting.device)
        cases = source.cases(setting.batch, setting.seq_len)
    except Exception as error:
        yield {"model": name, "fields": fields, "op": None, "implementation": None, **failure(error)}
        return
    for case in cases:
        if ops and case.op.name not in ops:
            continue
        state = case.state and list(case.state)
        common = {"model": name, "fields": fields, "op": case.op.name, "recurrent": bool(state), "state": state}
        found = list(implementations(case))
        kept = [one for one in found if any(fnmatchcase(one.name, p) for p in setting.implementations)]
        if not kept:
            yield common | {"status": LEFT_OUT, "implementations": [one.name for one in found]}
            continue
        if case.identity in seen:
            same = f"the same call as {seen[case.identity]}'s"
            yield common | {"implementation": None, "status": "same", "reason": same}
            continue
        seen[case.identity] = name
        try:
            work = flops(source, case.op.name, case.batch, case.seq_len)
            small = _small(source, case)
        except Exception as error:
            yield common | {"implementation": None, **failure(error)}
            continue
        # Most implementations of a case share one fp64 reference: it is run once.
        exact = cache(lambda bound, small=small: bound(small).forward_backward())
        if any(fnmatchcase(FLOOR, p) for p in setting.implementations):
            for row in floor_rows(case, common):
                if row in done:
                    break
                yield row
        for implementation in kept:
            row = common | {
                "implementation": implementation.name,
                "implementation_kind": implementation.kind,
                "note": implementation.note or None,
            }
            if row in done:
                continue
            yield row
            for found_row in _measured(implementation, case, small, exact, setting, work, top):
                yield row | found_row
            free()


def _measured(
    implementation: Implementation, case: Case, small: Case, exact: Exact, setting: Setting, work: tuple[int, int],
    top: dict[str, float | None],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One row per mode, or one that says why there is none."""
    if implementation.kind == "reference" and case.state is not None and case.seq_len > LOOP_STEPS:
        yield {"status": "skipped", "reason": f"a plain loop of {case.seq_len} steps"}
        return
    try:
        if reason := implementation.refuses(case):
            yield {"status": "refused", "reason": reason}
            return
        with torch.autocast(case.device.type, enabled=False):
            errors = compare(implementation.fast(small), exact(implementation.exact))
        check = Check(*errors, implementation.limits(case), small.batch, small.seq_len)
    except Exception as error:
        yield failure(error)
        return
    if check.failure is not None:
        yield {"status": "wrong", "reason": check.failure, "check": check.as_dict()}
        return
    for mode in setting.modes:
        if mode == "graph" and implementation.uncapturable:
            yield {"mode": mode, "status": "skipped", "reason": implementation.uncapturable}
            continue
        free()
        try:
            yield {"mode": mode, "check": check.as_dict(), **_timed(implementation, case, mode, setting, work, top)}
        except Exception as error:
            yield {"mode": mode, "check": check.as_dict(), **failure(error)}


def _small(source: Source, case: Case) -> Case:
    """A call on other inputs, as large as the fp64 loop can be."""
    steps = min(case.seq_len, CHECK_STEPS)
    per_sequence = 8 * SAVED_PER_STEP * steps * torch.Size(case.state or (0,)).numel()
    batch = max(1, min(case.batch, int(CHECK_BYTES / max(1, per_sequence))))
    return source.case(case.op.name, batch, steps, seed=1)


def _timed(
    implementation: Implementation, case: Case, mode: str, setting: Setting, work: tuple[int, int],
    top: dict[str, float | None],
) -> dict[str, Any]:  # fmt: skip
    """Times of one mode, and what share of the ceilings they are."""
    bounds = [implementation.fast(case)]
    moved = bounds[0].bytes()
    inputs = sum(leaf.nbytes for leaf in bounds[0].leaves)
    sets = min(MOST_SETS, 1 + 3 * cache_bytes(setting.device) // inputs)
    bounds += [implementation.fast(case) for _ in range(1, sets)]
    # The products of a yardstick are not those of the case.
    own = implementation.kind == "yardstick"
    times = {}
    for key, call in (("forward", Bound.inference), ("forward_backward", Bound.forward_backward)):
        calls = [lambda bound=bound, call=call: call(bound) for bound in bounds]
        times[key] = TIMERS[mode](calls, setting.device, setting.seconds)
    return {
        "status": "ok",
        "input_sets": sets,
        **{key: _figures(times[key], moved[i], None if own else work[i], top) for i, key in enumerate(times)},
    }


def _figures(spread: Spread, moved: int, work: int | None, top: dict[str, float | None]) -> dict[str, Any]:
    """Milliseconds, algorithmic bytes and FLOPs, and the shares of what the machine was seen to do."""
    seconds = spread.median / 1e3
    copy, product = top["copy_bytes_per_s"], top["matmul_flops_per_s"]
    assert copy is not None and product is not None
    return {
        "ms": spread.as_dict(),
        "bytes": moved,
        "flops": work,
        "copy_share": moved / seconds / copy,
        "matmul_share": work / seconds / product if work else None,
    }
