"""Ranks of a run as forks of one process that has imported everything, so that each costs next to nothing."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

PRELOAD = [
    "torch._dynamo", "torch.profiler._cupti_monitor", "rnn_lab.train.resume", "rnn_lab.train.schedule_free",
    "rnn_lab.optim.factories", "rnn_lab.parallel.sharded", "torch.distributed.checkpoint.hf_storage",
    "rnn_lab.discovery.builtin", "rnn_lab.diagnostics.training", "rnn_lab.kernels.captured.loops",
    "rnn_lab.kernels.matrix.cuda",
    "rnn_lab_baselines", "rnn_lab_e0_e5", "rnn_lab_e61_e68.e61", "rnn_lab_e74_e88",
]  # fmt: skip
TRAIN = {"batch_size": 8, "seq_len": 12, "device": "cpu", "steps": 6}


class Acting:
    """An observer that may do something to its process after a step: send it signals, or spoil its part of a weight."""

    def __init__(self, rank: int, act: dict[str, Any]) -> None:
        self.rank, self.act = rank, act
        self.sharing: Any = None

    def step(self, line: dict[str, Any], fraction: float) -> None:
        if line["step"] != self.act.get("step", 0) or self.rank != self.act["rank"]:
            return
        if self.act.get("poison"):
            self.sharing.parameters[0].data[0] = float("nan")
        for number in self.act.get("signals", []):
            os.kill(os.getpid(), number)

    def note(self, text: str) -> None:
        pass

    def share(self, share: Any) -> Any:
        """`run.share`, overheard."""

        def overheard(*args: Any) -> Any:
            self.sharing, optimizer = share(*args)
            return self.sharing, optimizer

        return overheard


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


def work(rank: int, size: int, port: int, jobs: list[tuple[Path, dict[str, Any] | None, dict[str, Any]]]):
    """One rank: starts each run in its folder, or goes on with it where there are no sections.

    What a run came to is in files beside it, by rank: `.code` and, of an error, `.err`.
    """
    from rnn_lab.config import Layer
    from rnn_lab.registry import registry
    from rnn_lab.train import run as runs
    from rnn_lab.train.resume import resume_run

    world, share = joined(rank, size, port, jobs[0][0], jobs[0][2]), runs.share
    code = 0
    for out, sections, act in jobs:
        sys.stderr = (out.parent / f"{out.name}.{rank}.err").open("w")
        observer = Acting(rank, act)
        runs.share = observer.share(share)
        if "room" in act:
            resource.setrlimit(resource.RLIMIT_FSIZE, (act["room"], resource.RLIM_INFINITY))
        if act.get("graph"):
            fake_graphs(spoilt=act.get("spoilt") == rank)
        try:
            if sections is None:
                result = resume_run(out, act.get("extend", {}), registry(), observer, world)
            else:
                plan = runs.plan_run(
                    [Layer("test", sections), Layer("own", act.get("own", {}) if rank else {})], registry()
                )
                result = runs.start_run(plan, out, registry(), observer, world)
            code = {"ok": 0, "interrupted": 130}[result["status"]]
        except Exception:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        (out.parent / f"{out.name}.{rank}.code").write_text(str(code))
    world.close()
    sys.exit(code)


def fake_graphs(spoilt: bool) -> None:
    """Steps are captured as on a GPU, or cannot be."""
    from rnn_lab.train import graph, optimizers
    from train.fake_queue import FakeQueue

    class Spoilt(FakeQueue):
        def capture(self, body: Any) -> Any:
            raise RuntimeError("planted")

    optimizers.WarmupAdamW = optimizers.FusedAdamW
    graph.queue_of = lambda device: (Spoilt if spoilt else FakeQueue)()


def choose_products(rank: int, size: int, port: int, out: Path):
    """One rank: is shown a kernel that only rank 0 finds faster, and tells what it takes."""
    import torch
    from rnn_lab.config import Layer
    from rnn_lab.optim import gram
    from rnn_lab.registry import registry
    from rnn_lab.train.run import plan_run, share

    world = joined(rank, size, port, out, {})
    model = {"name": "e1", "dim": 64, "depth": 1}
    share(plan_run([Layer("test", {"model": model, "optimizer": {"name": "muon"}})], registry()), registry(), world)
    gram._refuses = lambda X: None
    gram._worse = lambda kernel, X: f"slower on rank {rank}" if rank else None
    gram.product(torch.zeros(1, 2, 2))
    ((_, choice),) = gram._chosen.values()
    out.with_name(f"{out.name}.{rank}").write_text(repr(choice))
    world.close()


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

    def __call__(self, size: int, out: Path, sections: dict[str, Any] | None = None, **act: Any) -> list[int]:
        """Exit codes of the ranks of one run."""
        return self._run(size, work, [(out, sections, act)], patience=act.get("patience", 60))

    def several(self, size: int, *jobs: tuple[Any, ...]) -> list[list[int]]:
        """For runs one after the other, each (out, sections, act): what each came to on every rank."""
        asked = [(out, *rest, *((None, {})[len(rest) :])) for out, *rest in jobs]
        self._run(size, work, asked)
        return [[_code(out, rank) for rank in range(size)] for out, *_ in asked]

    def rewrite(self, size: int, source: Path, folder: Path) -> list[int]:
        """Exit codes of ranks that write a run's newest checkpoint again."""
        return self._run(size, rewrite, source, folder)

    def choose_products(self, size: int, out: Path) -> list[int]:
        """Exit codes of ranks that `choose_products`."""
        return self._run(size, choose_products, out)

    def _run(self, size: int, target: Any, *args: Any, patience: float = 60) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [self.context.Process(target=target, args=(rank, size, port, *args)) for rank in range(size)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(patience if rank is ranks[-1] else 60)
            if rank.exitcode is None:
                os.kill(rank.pid, signal.SIGKILL)
                rank.join()
        return [rank.exitcode for rank in ranks]


def _code(out: Path, rank: int) -> int:
    """What a run came to on a rank; -1: it did not come to an end."""
    file = out.parent / f"{out.name}.{rank}.code"
    return int(file.read_text()) if file.exists() else -1
