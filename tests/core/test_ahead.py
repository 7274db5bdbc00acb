"""Batches read ahead by threads are those that are read when needed."""

import threading

import numpy as np
import pytest
from rnn_lab.data.ahead import ReadAhead
from rnn_lab.data.batches import ContiguousStreams, RandomWindows
from rnn_lab.data.corpus import open_split
from rnn_lab.errors import ConfigError, DataError


@pytest.fixture
def region(tmp_path):
    (tmp_path / "bytes").write_bytes(np.random.default_rng(0).integers(0, 256, 6000, np.uint8).tobytes())
    return open_split(str(tmp_path / "bytes"), None, seq_len=16).train


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_order_does_not_depend_on_workers(region, workers):
    plain = ContiguousStreams(region, 3, 4, 16, 4)
    with ReadAhead(plain, workers, 3) as ahead:
        for k in [*range(7, 40), 9, 40, 41, 90]:  # from any step on, and any other between
            one, other = plain.batch(k), ahead.batch(k)
            assert np.array_equal(one.bytes_BT1, other.bytes_BT1) and np.array_equal(one.reset_BT, other.reset_BT)
    assert ahead.chain().hexdigest == plain.chain().hexdigest


def test_no_thread_is_left_after_an_early_end(region):
    before = threading.active_count()
    ahead = ReadAhead(RandomWindows(region, 3, 4, 16), 4, 2)
    ahead.close()
    ahead = ReadAhead(RandomWindows(region, 3, 4, 16), 4, 2)
    ahead.batch(1)
    assert ahead.depth <= 2
    ahead.close()
    ahead.close()
    assert threading.active_count() == before
    assert ahead.batch(2).bytes_BT1.shape == (4, 17)  # whoever explains a divergence still reads


def test_an_error_of_a_thread_is_raised_where_its_batch_is_asked_for(region, monkeypatch):
    real = RandomWindows.batch

    def batch(self, k):
        if k == 3:
            raise OSError("the disk is gone")
        return real(self, k)

    monkeypatch.setattr(RandomWindows, "batch", batch)
    with ReadAhead(RandomWindows(region, 3, 4, 16), 2, 4) as ahead:
        ahead.batch(1), ahead.batch(2)
        with pytest.raises(OSError, match="the disk is gone"):
            ahead.batch(3)
        assert ahead.batch(4).starts_B.shape == (4,)


def test_windows_that_look_further_ahead_have_the_same_starts(region, tmp_path):
    one, four = RandomWindows(region, 3, 4, 16).batch(5), RandomWindows(region, 3, 4, 16, 4).batch(5)
    assert four.bytes_BT1.shape == (4, 20)
    assert np.array_equal(four.bytes_BT1[:, :17], one.bytes_BT1) and np.array_equal(four.starts_B, one.starts_B)
    with pytest.raises(ConfigError, match="between 1 and 16"):
        RandomWindows(region, 3, 4, 16, 17)
    (tmp_path / "short").write_bytes(bytes(20))
    with pytest.raises(DataError):
        open_split(str(tmp_path / "short"), None, seq_len=16)
