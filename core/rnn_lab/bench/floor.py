"""The row of a dense recurrence that says what no form of it is faster than, by latencies of the same run."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from rnn_lab.bench.cases import Case
from rnn_lab.bench.dense_peers import gates_of
from rnn_lab.bench.latencies import Latencies, floor_us, latencies, refuses
from rnn_lab.bench.rows import failure
from rnn_lab.kernels.cell import counts
from rnn_lab.kernels.recurrence import RECURRENCE

FLOOR = "floor"
"""What stands for an implementation in the row."""


@cache
def _measured(device: torch.device) -> Latencies:
    return latencies(device)


def floor_rows(case: Case, common: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An announcement and the row, where the recurrence is dense and not linear; nothing else.

    Args:
        case: the call.
        common: what every row of the call has.

    """
    gates = gates_of(case) if case.op is RECURRENCE else None
    if gates is None or not isinstance(case.args[0].linear(counts(case.args[2])), str):
        return
    assert case.state is not None
    row = common | {"implementation": FLOOR, "implementation_kind": FLOOR, "note": None}
    yield row
    try:
        if reason := refuses(case.device):
            yield row | {"status": "refused", "reason": reason}
            return
        found = _measured(case.device)
        us = floor_us(found, case.state[-1], case.batch, gates)
        if us is None:
            yield row | {"status": "refused", "reason": "no cluster holds its matrices"}
            return
        yield row | {"status": "ok", "us_per_step": us, "latencies": found.as_dict(), "note": _told(found)}
    except Exception as error:
        yield row | failure(error)


def _told(found: Latencies) -> str:
    """The figures in words, in microseconds."""
    by_blocks = [
        f"{name} {' / '.join(f'{us:.2f}' for us in figures.values())} for clusters of {' / '.join(map(str, figures))}"
        for name, figures in (("barrier", found.barrier), ("exchange", found.exchange))
    ]
    single = [f"load {found.load:.2f}", f"signal {found.signal:.2f}", f"{found.products / 1e12:.1f} TFLOP/s a block"]
    ingest = " / ".join(f"{rate / 1e9:.0f}" for rate in found.ingest.values())
    return ", ".join(["µs: " + by_blocks[0], *by_blocks[1:], *single, f"{ingest} GB/s into a block"])
