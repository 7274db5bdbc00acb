"""Ranks of a run as forks of one process that has imported everything, so that each costs next to nothing."""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

PRELOAD = [
    "torch._dynamo", "rnn_lab.train.resume", "rnn_lab.parallel.sharded", "torch.distributed.checkpoint.hf_storage",
]  # fmt: skip
TRAIN = {"batch_size": 8, "seq_len": 12, "device": "cpu", "steps": 6}


class Acting:
    """An observer that may do something to its process after a step."""

    def __init__(self, rank: int, act: dict[str, Any]) -> None:
        self.rank, self.act = rank, act

    def step(self, line: dict[str, Any], fraction: float) -> None:
        if line["step"] == self.act.get("step", 0) and self.rank == self.act["rank"]:
            os.kill(os.getpid(), self.act["signal"])

    def note(self, text: str) -> None:
        pass


def values(corpus: Path, **sections: Any) -> dict[str, Any]:
    """A tiny run's sections."""
    return {
        "data": {"path": str(corpus)},
        "eval": {"tokens": 240},
        "log": {"trackers": []},
        "diagnostics": {"ignore": ["D-WARMUP"], "every": 4},
        **sections,
        "model": {"name": "e61", "dim": 16, "depth": 2, **sections.get("model", {})},
        "train": {**TRAIN, **sections.get("train", {})},
    }


def work(rank: int, size: int, port: int, out: Path, sections: dict[str, Any] | None, extend: dict[str, int], act: Any):
    """One rank: starts the run in `out`, or goes on with it where there are no sections."""
    from rnn_lab.config import Layer
    from rnn_lab.registry import registry
    from rnn_lab.train.resume import resume_run
    from rnn_lab.train.run import plan_run, start_run

    world = joined(rank, size, port, out, act)
    observer = Acting(rank, act)
    if sections is None:
        result = resume_run(out, extend, registry(), observer, world)
    else:
        result = start_run(plan_run([Layer("test", sections)], registry()), out, registry(), observer, world)
    world.close()
    sys.exit({"ok": 0, "interrupted": 130}[result["status"]])


def joined(rank: int, size: int, port: int, out: Path, act: dict[str, Any]):
    """The world of a rank, as torchrun would have it."""
    import torch
    from rnn_lab.parallel.world import join

    sys.stderr = (out.parent / f"{out.name}.{rank}.err").open("w")
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    if act.get("graph"):
        from rnn_lab.train import graph, optimizers
        from train.fake_queue import FakeQueue

        optimizers.WarmupAdamW = optimizers.FusedAdamW
        graph.queue_of = lambda device: FakeQueue()
    return join("cpu", act.get("timeout", 20.0))


def rewrite(rank: int, size: int, port: int, source: Path, folder: Path):
    """One rank: takes up the newest checkpoint of a run and writes it again, in `folder`."""
    from rnn_lab.config import Resolved
    from rnn_lab.data.corpus import open_split
    from rnn_lab.modelspec import model_spec
    from rnn_lab.parallel.storage import latest
    from rnn_lab.registry import registry
    from rnn_lab.train.checkpoint import Checkpoint
    from rnn_lab.train.progress import flatten_states, restore
    from rnn_lab.train.run import Plan, share
    from rnn_lab.train.rundir import RunDir

    world = joined(rank, size, port, folder, {})
    run = RunDir(source)
    resolved = run.read_config()
    cfg = resolved.config
    plan = Plan(Resolved(cfg, resolved.origins), model_spec(cfg.model, registry(), must_reach=False))
    sharing, optimizer = share(plan, registry(), world)
    saved = latest(world, run.checkpoints, print)
    split = open_split(str(cfg.data.path), seq_len=cfg.train.seq_len)
    progress = restore(saved, cfg=cfg, spec=plan.spec, run=run, split=split, sharing=sharing, optimizer=optimizer)
    tensors, values = sharing.tensors(optimizer, flatten_states(progress.carry))
    sharing.save(folder, Checkpoint(saved.step, tensors, {**saved.state, "optimizer": values}), 9)
    world.close()


class Ranks:
    """Starts ranks and waits for them."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def __call__(
        self, size: int, out: Path, sections: dict[str, Any] | None = None, *, extend: Any = None, act: Any = None
    ) -> list[int]:
        """Exit codes of the ranks."""
        return self._run(size, work, out, sections, extend or {}, act or {})

    def rewrite(self, size: int, source: Path, folder: Path) -> list[int]:
        """The same of ranks that write a run's newest checkpoint again."""
        return self._run(size, rewrite, source, folder)

    def _run(self, size: int, target: Any, *args: Any) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [self.context.Process(target=target, args=(rank, size, port, *args)) for rank in range(size)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join((args[-1] or {}).get("patience", 60) if isinstance(args[-1], dict) else 60)
            if rank.exitcode is None:
                os.kill(rank.pid, signal.SIGKILL)
                rank.join()
        return [rank.exitcode for rank in ranks]
