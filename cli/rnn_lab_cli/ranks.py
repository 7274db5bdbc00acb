"""`--gpus N` of `fit` and `resume`: one process per GPU, started here or by torchrun."""

import os
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.errors import BudgetTooSmall, CheckpointError, ConfigError, Diagnosed, Diverged, RankLost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rnn_lab.config import RunConfig
    from rnn_lab.parallel.world import World

MODULE = "rnn_lab_cli"
_RENDEZVOUS = ("node_rank", "rdzv_endpoint", "rdzv_id", "rdzv_backend")


def to_launch(options: dict[str, Any]) -> bool:
    """Whether this process only starts ranks.

    Raises:
        ConfigError: torchrun started another number of ranks than the options say, or options lack --gpus.

    """
    from rnn_lab.parallel.world import launched

    given = {name: options[name] for name in ("gpus", "nodes", *_RENDEZVOUS) if options[name] is not None}
    ranks = launched()
    if ranks is not None:
        asked = given.get("gpus", ranks) * given.get("nodes", 1)
        if "gpus" in given and asked != ranks:
            raise ConfigError(f"torchrun started {ranks} ranks, and the options ask for {asked}: leave --gpus out")
        return False
    if given and "gpus" not in given:
        option = next(iter(given)).replace("_", "-")
        raise ConfigError(f"--{option} needs --gpus N, the number of GPUs that each machine has")
    return bool(given) and given["gpus"] * given.get("nodes", 1) > 1


def start(
    ctx: click.Context, options: dict[str, Any], out: Path, cfg: "RunConfig", extra: tuple[str, ...] = ()
) -> None:
    """Start this very command once per GPU and end as the run does.

    Args:
        ctx: of the command.
        options: its options.
        out: the run's folder.
        cfg: of the run, to be checked before anything starts.
        extra: arguments to add.

    Raises:
        ConfigError: the run cannot be shared out like this, or the machines did not meet.
        RankLost: a rank was ended by a signal.

    """
    from rnn_lab.parallel.launch import Machines, launch
    from rnn_lab.parallel.world import check_gpus
    from rnn_lab.train.setup import check_ranks

    rendezvous = {name.replace("_", "-"): options[name] for name in _RENDEZVOUS if options[name] is not None}
    machines = Machines(options["gpus"], options["nodes"] or 1, rendezvous)
    check_gpus(cfg.train.device, machines.gpus)
    check_ranks(cfg, machines.ranks)
    machines.options()
    try:
        code = launch(MODULE, [*sys.argv[1:], *extra], machines)
    except RankLost as error:
        raise RankLost(f"{error}; go on with: rnn-lab resume {shlex.quote(str(out))}") from error
    if code:
        ctx.exit(code)


@contextmanager
def joined(device: str, timeout: float) -> "Iterator[World]":
    """The ranks of this run while the block lasts; the others than rank 0 write nothing to stdout."""
    from rnn_lab.parallel.world import join

    world = join(device, timeout)
    try:
        yield world
    finally:
        world.close()


class Silent:
    """The watcher of every rank but rank 0."""

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


def says_its_errors(error: BaseException) -> bool:
    """Whether this process tells a person about an error: rank 0 does, and another that is alone with it."""
    shared = (ConfigError, Diverged, Diagnosed, BudgetTooSmall, CheckpointError, RankLost)
    return os.environ.get("RANK", "0") == "0" or not isinstance(error, shared)
