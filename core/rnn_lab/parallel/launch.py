"""Starting the ranks of a run by torchrun's own code: rendezvous, environment, the end of all when one has ended."""

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rnn_lab.errors import ConfigError, RankLost

INTERRUPTED = 130


@dataclass(frozen=True)
class Machines:
    """What to start, in torchrun's terms.

    Attributes:
        gpus: ranks on this machine (`--nproc-per-node`).
        nodes: machines (`--nnodes`).
        rendezvous: torchrun's options of how they meet, by name (`rdzv-endpoint`, `rdzv-id`, `node-rank`, ...).

    """

    gpus: int
    nodes: int
    rendezvous: Mapping[str, str]

    @property
    def ranks(self) -> int:
        """Of the whole run."""
        return self.gpus * self.nodes

    def options(self) -> list[str]:
        """As torchrun reads them.

        Raises:
            ConfigError: several machines, and nothing says where they meet.

        """
        found = ["--nproc-per-node", str(self.gpus), "--nnodes", str(self.nodes), "--max-restarts", "0"]
        if self.nodes == 1 and not self.rendezvous:
            return ["--standalone", *found]
        if self.nodes > 1 and "rdzv-endpoint" not in self.rendezvous and "PET_RDZV_ENDPOINT" not in os.environ:
            raise ConfigError(
                f"--nodes {self.nodes}: say where they meet with --rdzv-endpoint HOST:PORT (the same on all of them; "
                "HOST is one of them)"
            )
        own = {"rdzv-backend": "c10d", "rdzv-id": "rnn-lab"} if "rdzv-endpoint" in self.rendezvous else {}
        return [*found, *(f"--{name}={value}" for name, value in {**own, **self.rendezvous}.items())]


def launch(module: str, arguments: Sequence[str], machines: Machines) -> int:
    """Run `python -m MODULE ARGUMENTS...` once per rank of this machine, and wait.

    Returns:
        The exit code of the run: 0, or that of the first rank that failed by itself.

    Raises:
        ConfigError: torchrun cannot work with these options, or the machines did not meet.
        RankLost: a rank was ended by a signal.

    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import parse_args, run

    # What its agent has to say of a failure is an error of ours.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // machines.gpus)))
    try:
        asked = parse_args([*machines.options(), "-m", module, *arguments])  # type: ignore[no-untyped-call]
        run(asked)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        return judged({rank: failure.exitcode for rank, failure in error.failures.items()}, machines.ranks)
    except SignalException:
        return INTERRUPTED
    except RendezvousError as error:
        raise ConfigError(f"the machines of this run did not meet: {error}") from error
    return 0


def judged(failures: Mapping[int, int], ranks: int) -> int:
    """The exit code of a run of which these ranks failed, by theirs.

    Raises:
        RankLost: a rank was ended by a signal, and not by torchrun, which ends all others when one has failed.

    """
    own = [code for code in failures.values() if code > 0]
    killed = {rank: -code for rank, code in failures.items() if code < 0 and not (own and -code == signal.SIGTERM)}
    if killed:
        rank, number = min(killed.items())
        raise RankLost(f"rank {rank} of {ranks} was ended by {signal.Signals(number).name}")
    return own[0]
