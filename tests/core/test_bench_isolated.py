"""Rows in a process of their own: whatever happens to one, the others are measured."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rnn_lab.bench.isolated import rows_of
from rnn_lab.errors import RnnLabError

from tests.processes import alive, wait_for

NAMES = ("first", "second", "third")


def measure(what, done):
    """Three rows made ready together; what happens at the second is named."""
    yield {"name": "preparing", "prepares": True}
    if what == "unprepared":
        os._exit(7)
    yield {"name": "known", "status": "same"}
    for name in NAMES:
        row = {"name": name}
        if row in done:
            continue
        yield row
        if name == "second":
            if what == "crash":
                os._exit(3)
            if what == "hang":
                time.sleep(60)
            if what == "raise":
                raise ValueError("illegal address")
            if what == "refuse":
                raise RnnLabError("not here")
        yield row | {"status": "ok"}


def nothing(done):
    raise ImportError("no such library")
    yield


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("crash", "error", "its process ended with code 3"),
        ("hang", "timeout", "no figures after 5 s"),
        ("raise", "error", "ValueError: illegal address"),
        ("refuse", "error", "not here"),
    ],
)
def test_a_fault_is_a_row_and_the_rest_is_measured(what, status, reason):
    limit = 5 if what == "hang" else 60  # the others wait for nothing, and a busy machine may start a process slowly
    rows = list(rows_of(measure, (what,), limit))
    assert [row["name"] for row in rows] == ["known", *NAMES]
    assert rows[2] == {"name": "second", "status": status, "reason": reason}
    assert rows[1]["status"] == rows[3]["status"] == "ok"


@pytest.mark.parametrize("limit", [None, 30])
def test_without_a_fault_both_ways_give_the_same(limit):
    found = list(rows_of(measure, ("nothing",), limit))
    assert found == [{"name": "known", "status": "same"}, *({"name": name, "status": "ok"} for name in NAMES)]


def test_what_cannot_be_made_ready_is_a_row_too():
    reason = "its process ended with code 7"
    (row,) = rows_of(once_unprepared, (), 30)
    assert row == {"name": "preparing", "status": "error", "reason": reason}


def once_unprepared(done):
    """As a model is: left out where it could not be made ready."""
    ready = {"name": "preparing", "prepares": True}
    if ready not in done:
        yield from measure("unprepared", done)


def test_a_process_that_measures_nothing_is_an_error():
    with pytest.raises(RnnLabError, match="no such library"):
        list(rows_of(nothing, (), 30))


PARENT = """
import os, sys, time
from rnn_lab.bench.isolated import rows_of

def hang(path, done):
    print(os.getpid(), file=sys.stderr, flush=True)
    yield {"name": "first"}
    time.sleep(600)

if __name__ == "__main__":
    list(rows_of(hang, ("",), 600))
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_ends_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True) as parent:
        child = int(parent.stderr.readline())
        assert alive(child)
        parent.kill()
    wait_for(lambda: not alive(child))
