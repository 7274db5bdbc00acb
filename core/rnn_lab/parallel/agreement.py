"""Ranks that train one run: the same configuration, the same bytes, the same code."""

from collections.abc import Mapping
from typing import Any

from rnn_lab.data.chain import fingerprint
from rnn_lab.data.corpus import Split
from rnn_lab.errors import ConfigError
from rnn_lab.identity import identity_with
from rnn_lab.parallel.world import World
from rnn_lab.registry import Registry

LOCAL = {"data.path", "data.val_path", "objective.collider_reference"}
"""Places of files, which each machine may have elsewhere."""
SHOWN = 3
"""Differences that an error names."""


def check_same_run(world: World, tables: Mapping[str, Mapping[str, Any]], split: Split, found: Registry) -> None:
    """See that every rank of `world` would train the run that rank 0 trains; each calls this.

    Args:
        world: the ranks.
        tables: every section of the configuration with every value decided.
        split: the data.
        found: plugins, whose code counts.

    Raises:
        ConfigError: a rank differs, on every rank.

    """
    if world.size == 1:
        return
    code = identity_with(found)
    mine = {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}
    mine = {name: value for name, value in mine.items() if name not in LOCAL}
    mine |= {"training data": fingerprint(split.train), "validation data": fingerprint(split.val), **code.parts}
    every = world.everyone((code.host, mine))
    wanted = every[0][1]
    for rank, (host, its) in enumerate(every):
        names = [name for name in {**wanted, **its} if its.get(name) != wanted.get(name)]
        if names:
            told = "; ".join(f"{n} is {its.get(n)} there and {wanted.get(n)} on rank 0" for n in names[:SHOWN])
            more = f" (and {len(names) - SHOWN} more)" if len(names) > SHOWN else ""
            raise ConfigError(
                f"rank {rank} on {host} would train another run: {told}{more}. Every rank needs the same command, "
                "the same data (name a file by --data) and the same code"
            )
