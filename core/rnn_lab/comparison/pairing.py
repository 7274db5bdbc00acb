"""Whether two runs read the same bytes at the same steps, so that their losses may be subtracted step by step.

Runs of equal length have equal offset chains or they don't. The chain of a longer run cannot be compared with that of a
shorter one, but batches are pure functions of (data, seed, step): each chain is replayed from what its run recorded,
and where both replays end at the recorded digests, equal settings mean equal batches at every common step.
"""

from functools import lru_cache

from rnn_lab.comparison.records import RunRecord
from rnn_lab.data.batches import ContiguousStreams, RandomWindows, stream_starts, window_starts
from rnn_lab.data.chain import OffsetChain
from rnn_lab.data.corpus import HORIZON

Source = tuple[str, int, str, int, int, int]


def unpaired_because(a: RunRecord, b: RunRecord) -> str | None:
    """Why step k of `a` and step k of `b` cannot be held to have seen the same bytes; None where they have."""
    for run in (a, b):
        if source_of(run) is None:
            return f"{run.name} has no record of the data that it read"
    one, other = source_of(a), source_of(b)
    assert one is not None and other is not None
    names = ("sampler", "bytes of data", "data (fingerprint)", "seed", "batch size", "sequence length")
    for name, x, y in zip(names, one, other, strict=True):
        if x != y:
            return f"{name}: {_short(x)} and {_short(y)}"
    if a.result["steps"] == b.result["steps"]:
        return None if a.chain == b.chain else "offset chains differ although seed and data are the same"
    for run, source in ((a, one), (b, other)):
        if replayed(source, run.result["steps"]) != run.chain:
            return f"the offset chain of {run.name} is not the one that its seed and data lead to"
    return None


def source_of(run: RunRecord) -> Source | None:
    """Sampler, bytes, fingerprint, seed, batch size and sequence length: what decides every batch of a run."""
    data, train = run.result.get("data"), run.config.get("train")
    if not isinstance(data, dict) or train is None or run.chain is None or run.seed is None:
        return None
    if "bytes" not in data or not run.result.get("steps"):
        return None
    sampler = ContiguousStreams.name if train["carry_state"] else RandomWindows.name
    return (sampler, data["bytes"], data["fingerprint"], run.seed, train["batch_size"], train["seq_len"])


@lru_cache(maxsize=64)
def replayed(source: Source, steps: int) -> str:
    """Offset chain after `steps` steps, computed from the record alone."""
    sampler, region_bytes, fingerprint, seed, batch_size, seq_len = source
    span = region_bytes - seq_len - HORIZON
    chain = OffsetChain.of(sampler, region_bytes, fingerprint, seed, batch_size, seq_len)
    for k in range(1, steps + 1):
        if sampler == RandomWindows.name:
            chain.update(k, window_starts(seed, k, batch_size, span))
        else:
            chain.update(k, stream_starts(seed, k, batch_size, seq_len, span))
    return chain.hexdigest


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:12] + "..."
