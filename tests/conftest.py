"""Settings that every test relies on; they must be in place before torch is first imported."""

import gc
import os
import signal
from itertools import groupby

import pytest

# Tests run in several processes on few cores: threads that spin for each other make them many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.pop("RNN_LAB_KERNELS", None)
os.environ.pop("RNN_LAB_LOAD_PLUGINS", None)
os.environ.pop("RNN_LAB_PLUGINS_DIR", None)

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Long tests first, dealt to the processes file by file: nothing long is left when all but one have ended.

    xdist hands each process an equal stretch of the list to begin with, which is where its hand has to lie.
    """
    hands = [[] for _ in range(getattr(config, "workerinput", {}).get("workercount", 1))]
    slow = [item for item in items if item.get_closest_marker("slow")]
    for _, file in groupby(slow, key=lambda item: item.path):
        min(hands, key=len).extend(file)
    rest = [item for item in items if not item.get_closest_marker("slow")]
    left, items[:] = len(items), []
    for i, hand in enumerate(hands):
        stretch = left // (len(hands) - i)
        left -= stretch
        count = max(0, stretch - len(hand))
        items += [*hand, *rest[:count]]
        del rest[:count]
    items += rest


def pytest_collection_finish():
    """What is there by now stays to the end: no garbage collection need look at it again."""
    gc.freeze()
