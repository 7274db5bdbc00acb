"""A hash chain of the offsets that a run consumed: equal digests mean equal data, step by step."""

import hashlib
import json
import re

import numpy as np
from numpy.typing import NDArray

from rnn_lab.data.corpus import Region
from rnn_lab.errors import ConfigError

_EDGE = 1 << 20


def check_word(name: str, value: int) -> int:
    """Return `value`, if it fits an unsigned 64-bit word.

    Raises:
        ConfigError: it does not; the message calls it `name`.
    """
    if not 0 <= value < 2**64:
        raise ConfigError(f"{name} = {value}: must be at least 0 and below 2^64")
    return value


def fingerprint(region: Region) -> str:
    """Hex sha256 over the region's size and the sha256 of its first and last MiB: cheap at any size.

    It tells different files apart, it does not prove that the bytes in the middle are equal.
    """
    data = region.array
    digest = hashlib.sha256(len(region).to_bytes(8, "little"))
    digest.update(hashlib.sha256(data[:_EDGE].data).digest())
    digest.update(hashlib.sha256(data[-_EDGE:].data).digest())
    return digest.hexdigest()


class OffsetChain:
    """sha256 chain: digest = sha256(previous digest || k as 8 bytes LE || starts as int64 LE).

    `OffsetChain(hexdigest)` goes on from a stored digest, `OffsetChain.start` begins a run.

    Raises:
        ConfigError: the digest is not 64 hexadecimal digits.
    """

    def __init__(self, hexdigest: str) -> None:
        if not re.fullmatch("[0-9a-f]{64}", hexdigest):
            raise ConfigError(f"offset chain {hexdigest!r}: expected the 64 hexadecimal digits of a sha256")
        self._digest = bytes.fromhex(hexdigest)

    @classmethod
    def start(cls, sampler: str, region: Region, seed: int, batch_size: int, seq_len: int) -> "OffsetChain":
        """Begin a run's chain; its digest covers the sampler, its settings and the data's fingerprint."""
        return cls.of(sampler, len(region), fingerprint(region), seed, batch_size, seq_len)

    @classmethod
    def of(
        cls, sampler: str, region_bytes: int, fingerprint: str, seed: int, batch_size: int, seq_len: int
    ) -> "OffsetChain":
        """`start` where the data itself is out of reach and its size and fingerprint are on record."""
        identity = {
            "sampler": sampler,
            "region_bytes": region_bytes,
            "fingerprint": fingerprint,
            "seed": seed,
            "batch_size": batch_size,
            "seq_len": seq_len,
        }
        return cls(hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest())

    def update(self, k: int, starts_B: NDArray[np.int64]) -> None:
        """Append step `k`, which consumed the windows at `starts_B`, int64 [B].

        Raises:
            ConfigError: `k` is outside [0, 2^64).
        """
        step = check_word("step k", k).to_bytes(8, "little")
        self._digest = hashlib.sha256(self._digest + step + starts_B.astype("<i8").tobytes()).digest()

    @property
    def hexdigest(self) -> str:
        """64 hexadecimal digits; store them to go on later."""
        return self._digest.hex()
