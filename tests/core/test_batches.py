"""Samplers: pinned Philox starts, exact multiply-high, windows, streams, chains."""

import gc
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rnn_lab.data import (
    HORIZON,
    ByteFile,
    ContiguousStreams,
    OffsetChain,
    RandomWindows,
    Region,
    eval_windows,
    fingerprint,
    gather,
    window_starts,
)
from rnn_lab.data.batches import _multiply_high
from rnn_lab.errors import ConfigError, DataError

TEXT = np.random.Philox(key=7).random_raw(4096).view(np.uint8).tobytes().replace(b"\x1e", b"-")


def region_of(tmp_path: Path, data: bytes, start: int = 0, stop: int | None = None) -> Region:
    path = tmp_path / "data.bin"
    path.write_bytes(data)
    return Region(ByteFile(path), start, len(data) if stop is None else stop)


@pytest.fixture
def region(tmp_path: Path) -> Region:
    return region_of(tmp_path, TEXT)


# Computed with numpy 2.4.6 and Python's exact integers: the pairing of runs rests on these numbers.
@pytest.mark.parametrize(
    ("seed", "k", "starts"),
    [
        (0, 0, [11546754286, 241549196564, 111425855515]),
        (0, 1, [813354060985, 751331425113, 671649043701]),
        (42, 1, [443746921346, 816392095106, 509026186210]),
        (2**63 + 5, 10**12, [342750529178, 763245312153, 726365180367]),
    ],
)
def test_starts_are_pinned(seed: int, k: int, starts: list[int]) -> None:
    drawn = window_starts(seed, k, 3, 10**12 + 7)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == starts


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=1), span=st.integers(1, 2**63 - 1))
@settings(max_examples=300, deadline=None)
def test_multiply_high_is_exact(words: list[int], span: int) -> None:
    high = _multiply_high(np.array([*words, 2**64 - 1], dtype=np.uint64), span)
    assert high.tolist() == [word * span >> 64 for word in [*words, 2**64 - 1]]


def test_starts_cover_the_span_and_no_more() -> None:
    drawn = window_starts(1, 1, 4000, 10)
    assert np.bincount(drawn, minlength=10).min() > 300
    assert set(drawn.tolist()) == set(range(10))


@pytest.mark.parametrize(("seed", "k"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_seed_and_step_out_of_range(region: Region, seed: int, k: int) -> None:
    with pytest.raises(ConfigError, match="at least 0 and below 2"):
        window_starts(seed, k, 1, 10)
    for sampler in (RandomWindows, ContiguousStreams):
        with pytest.raises(ConfigError, match="at least 0 and below 2"):
            sampler(region, seed, 2, 8).batch(k)


@pytest.mark.parametrize(("batch_size", "span"), [(0, 1), (1, 0)])
def test_starts_refuse_empty_draws(batch_size: int, span: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        window_starts(0, 0, batch_size, span)


def test_random_windows_are_the_bytes_at_their_starts(tmp_path: Path) -> None:
    region = region_of(tmp_path, TEXT, 1000, 5000)
    sampler = RandomWindows(region, 3, 16, 64)
    batch = sampler.batch(5)
    assert batch.reset_BT is None
    assert batch.bytes_BT1.shape == (16, 65)
    assert batch.bytes_BT1.dtype == np.uint8
    assert batch.bytes_BT1.flags.writeable
    assert batch.starts_B.tolist() == window_starts(3, 5, 16, 4000 - 64 - HORIZON).tolist()
    for row, start in zip(batch.bytes_BT1, batch.starts_B.tolist(), strict=True):
        assert row.tobytes() == TEXT[1000 + start : 1000 + start + 65]


@pytest.mark.parametrize("kind", [RandomWindows, ContiguousStreams])
def test_batch_is_a_pure_function_of_seed_and_step(
    region: Region, kind: type[RandomWindows] | type[ContiguousStreams]
) -> None:
    one, other = kind(region, 3, 8, 32), kind(region, 3, 8, 32)
    for k in (4, 1, 9):
        one.batch(k)
    again, fresh = one.batch(2), other.batch(2)
    assert np.array_equal(again.bytes_BT1, fresh.bytes_BT1)
    assert np.array_equal(again.starts_B, fresh.starts_B)
    assert not np.array_equal(again.starts_B, one.batch(3).starts_B)
    assert not np.array_equal(again.starts_B, kind(region, 4, 8, 32).batch(2).starts_B)


def test_windows_leave_room_for_the_horizon(tmp_path: Path) -> None:
    region = region_of(tmp_path, TEXT, stop=8 + HORIZON + 2)
    starts = np.concatenate([RandomWindows(region, 0, 64, 8).batch(k).starts_B for k in range(4)])
    assert set(starts.tolist()) == {0, 1}


@pytest.mark.parametrize("kind", [RandomWindows, ContiguousStreams])
def test_region_of_exactly_one_window(tmp_path: Path, kind: type[RandomWindows] | type[ContiguousStreams]) -> None:
    assert kind(region_of(tmp_path, TEXT, stop=25), 0, 2, 8).batch(1).starts_B.tolist() == [0, 0]
    with pytest.raises(DataError, match="24 bytes are shorter than one window, which needs 25"):
        kind(region_of(tmp_path, TEXT, stop=24), 0, 2, 8)
    with pytest.raises(ConfigError, match="batch_size = 0"):
        kind(region_of(tmp_path, TEXT), 0, 0, 8)
    with pytest.raises(ConfigError, match="seq_len = 0"):
        kind(region_of(tmp_path, TEXT), 0, 2, 0)


def test_memory_stays_flat(region: Region) -> None:
    sampler = RandomWindows(region, 0, 32, 128)
    sampler.batch(0)
    tracemalloc.start()
    try:
        sampler.batch(0)
        before = tracemalloc.get_traced_memory()[0]
        for k in range(1000):
            sampler.batch(k)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 16 * 1024
    finally:
        tracemalloc.stop()


def test_streams_go_on_from_step_to_step(region: Region) -> None:
    sampler = ContiguousStreams(region, 1, 4, 32)
    wraps = 0
    for k in range(1500):
        now, then = sampler.batch(k), sampler.batch(k + 1)
        assert now.reset_BT is not None and then.reset_BT is not None
        follows = then.starts_B == now.starts_B + 32
        wraps += int((~follows).sum())
        assert np.array_equal(then.reset_BT[:, 0], ~follows)
        assert np.array_equal(then.bytes_BT1[follows, 0], now.bytes_BT1[follows, 32])
    assert wraps == pytest.approx(4 * 1500 * 32 / sampler.span, abs=4)


def test_streams_begin_spread_over_the_region(region: Region) -> None:
    first, second = ContiguousStreams(region, 1, 4, 32), ContiguousStreams(region, 2, 4, 32)
    starts = first.batch(0).starts_B
    assert (starts // (first.span // 4)).tolist() == [0, 1, 2, 3]
    assert not np.array_equal(starts, second.batch(0).starts_B)
    assert first.batch(0).reset_BT[:, 0].all()  # type: ignore[index]


def test_streams_reset_after_each_delimiter(tmp_path: Path) -> None:
    data = bytearray(TEXT[:2000])
    for place in (0, 7, 8, 500, 501, 999, 1500):
        data[place] = 0x1E
    sampler = ContiguousStreams(region_of(tmp_path, bytes(data)), 5, 3, 16)
    seen = 0
    for k in range(1, 200):
        batch = sampler.batch(k)
        assert batch.reset_BT is not None
        for b, start in enumerate(batch.starts_B.tolist()):
            expected = [start + t > 0 and data[start + t - 1] == 0x1E for t in range(16)]
            expected[0] = expected[0] or start < 16
            assert batch.reset_BT[b].tolist() == expected
            seen += sum(expected)
    assert seen > 30


def test_streams_at_a_step_beyond_int64(region: Region) -> None:
    sampler = ContiguousStreams(region, 1, 4, 32)
    k = 2**63 + 11
    base = sampler.batch(0).starts_B.tolist()
    assert sampler.batch(k).starts_B.tolist() == [(b + k * 32) % sampler.span for b in base]


def test_more_streams_than_places(tmp_path: Path) -> None:
    sampler = ContiguousStreams(region_of(tmp_path, TEXT, stop=8 + HORIZON + 2), 0, 5, 8)
    batch = sampler.batch(3)
    assert batch.bytes_BT1.shape == (5, 9)
    assert batch.reset_BT is not None
    assert batch.reset_BT[:, 0].all()


def test_chain_follows_its_definition(region: Region) -> None:
    sampler = RandomWindows(region, 3, 4, 16)
    chain = sampler.chain()
    digest = bytes.fromhex(chain.hexdigest)
    for k in (1, 2, 3):
        starts = sampler.batch(k).starts_B
        chain.update(k, starts)
        words = b"".join(start.to_bytes(8, "little") for start in starts.tolist())
        digest = hashlib.sha256(digest + k.to_bytes(8, "little") + words).digest()
    assert chain.hexdigest == digest.hex()


def test_chain_goes_on_from_a_stored_digest(region: Region) -> None:
    sampler = RandomWindows(region, 3, 4, 16)
    whole, first = sampler.chain(), sampler.chain()
    for k in (1, 2):
        whole.update(k, sampler.batch(k).starts_B)
    first.update(1, sampler.batch(1).starts_B)
    second = OffsetChain(first.hexdigest)
    second.update(2, sampler.batch(2).starts_B)
    assert second.hexdigest == whole.hexdigest
    for bad in ("", "ab", "g" * 64, "a" * 65):
        with pytest.raises(ConfigError, match="64 hexadecimal digits"):
            OffsetChain(bad)
    with pytest.raises(ConfigError, match="step k = -1"):
        whole.update(-1, np.zeros(1, dtype=np.int64))


def test_chain_tells_runs_apart(region: Region) -> None:
    smaller = Region(region.file, 0, len(region) - 1)
    shifted = Region(region.file, 1, len(region))
    starts = [
        RandomWindows(region, 3, 4, 16),
        ContiguousStreams(region, 3, 4, 16),
        RandomWindows(region, 4, 4, 16),
        RandomWindows(region, 3, 5, 16),
        RandomWindows(region, 3, 4, 17),
        RandomWindows(smaller, 3, 4, 16),
        RandomWindows(shifted, 3, 4, 16),
    ]
    assert len({sampler.chain().hexdigest for sampler in starts}) == len(starts)
    assert starts[0].chain().hexdigest == RandomWindows(region, 3, 4, 16).chain().hexdigest


def test_fingerprint_sees_size_and_both_ends_only(tmp_path: Path) -> None:
    mib = 1 << 20
    data = bytearray(3 * mib)

    def of(changed: int | None = None, drop: int = 0) -> str:
        copy = bytearray(data[: len(data) - drop])
        if changed is not None:
            copy[changed] = 1
        return fingerprint(region_of(tmp_path, bytes(copy)))

    whole = of()
    assert of(mib) == of(2 * mib - 1) == whole
    assert len({whole, of(0), of(mib - 1), of(2 * mib), of(3 * mib - 1), of(drop=1)}) == 6


@pytest.mark.parametrize("tokens", [1, 100, 101, 640, 4000, 32000, 10**12])
@pytest.mark.parametrize("size", [101, 4096, 32768])
def test_eval_windows(tmp_path: Path, size: int, tokens: int) -> None:
    region = region_of(tmp_path, TEXT, stop=size)
    starts = eval_windows(region, 100, tokens)
    assert starts.dtype == np.int64
    assert len(starts) == max(1, min(tokens // 100, (size - 1) // 100))
    assert starts[0] == 0
    assert starts[-1] + 101 <= size
    if len(starts) > 1:
        gaps = np.diff(starts)
        assert starts[-1] + 101 == size
        assert gaps.min() >= 100
        assert gaps.max() - gaps.min() <= 1


def test_eval_windows_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="100 bytes of evaluation data"):
        eval_windows(region_of(tmp_path, TEXT, stop=100), 100, 1000)
    for seq_len, tokens in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            eval_windows(region_of(tmp_path, TEXT), seq_len, tokens)


def test_gather_refuses_windows_outside(region: Region) -> None:
    last = len(region) - 10
    assert gather(region, np.array([last]), 10).tobytes() == TEXT[-10:]
    for start in (-1, last + 1):
        with pytest.raises(DataError, match="leaves the"):
            gather(region, np.array([0, start]), 10)
