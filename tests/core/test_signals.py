"""Stopping in order, then at once."""

import os
import signal
import threading

import pytest
from rnn_lab.system.signals import asked_to_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number):
    before, asked = signal.getsignal(number), []
    with pytest.raises(KeyboardInterrupt), asked_to_stop(asked.append):
        os.kill(os.getpid(), number)
        assert asked == [number]
        os.kill(os.getpid(), number)
    assert asked == [number] and signal.getsignal(number) is before


def test_another_thread_leaves_signals_alone():
    seen, before = [], signal.getsignal(signal.SIGTERM)

    def work():
        with asked_to_stop(lambda number: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
