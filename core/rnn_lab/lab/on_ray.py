"""The executor of a Ray cluster: one actor per task at a time, which holds one GPU or some CPUs.

Ray finds the machine, notices when it dies and carries the calls; retries are the scheduler's, because they stand in
the job's record. The extra `rnn-lab-core[ray]` brings the library.
"""

import logging
import os
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field

from rnn_lab.data.streams import require
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.identity import Identity, difference, identity, identity_of
from rnn_lab.lab.executor import Setting, Task
from rnn_lab.lab.local import cores
from rnn_lab.lab.remote import RemoteExecutor, Terms, WorkerGone, common_env
from rnn_lab.lab.runner import Runner
from rnn_lab.strict import StrictModel

_CHECK_SECONDS = 120.0


class RayOptions(StrictModel):
    """What `-x` sets for `--executor ray`."""

    address: str = Field("auto", description="`auto`: the cluster that this machine is part of, else `RAY_ADDRESS`; "
                         "`HOST:PORT`; `local`: one on this machine, for as long as the series runs.")  # fmt: skip
    gpus: int | None = Field(None, ge=0, le=1, description="GPUs that a run holds; default: one where the cluster "
                             "has any; 1 waits for machines that are still to come.")  # fmt: skip
    cpus: int = Field(1, ge=1, description="CPUs that a run holds, and its threads where it trains on the CPU.")
    shared: Literal["auto", "no"] = Field("auto", description="`auto`: runs train in the series' folder where a "
                                          "worker sees it, else results travel; `no`: they always travel.")  # fmt: skip
    checkpoints: Literal["unfinished", "all"] = Field("unfinished", description="Runs whose checkpoints travel back.")
    retries: int = Field(1, ge=0, description="Workers that may vanish below one run before it counts as failed.")


class RayKind:
    """`--executor ray`."""

    def preview(self, setting: Setting, task: Task) -> str:
        """What a run asks of the cluster."""
        options = setting.read_options(RayOptions)
        where = "gpu: 1, " if _wants_gpu(setting, options, None) else ""
        return f"{task.name}: an actor on Ray ({options.address}) with {where}cpu: {options.cpus}"

    def open(self, setting: Setting) -> RemoteExecutor:
        """Connect to the cluster, and see that every machine of it has the rnn-lab that is here.

        Raises:
            ConfigError: an option is wrong, ray is not installed, or no cluster answers.
            RnnLabError: a machine's rnn-lab differs; names both.
        """
        options = setting.read_options(RayOptions)
        if setting.gpus not in (None, "none"):
            raise ConfigError(f"--gpus {setting.gpus}: Ray chooses the GPUs; only `--gpus none` has a meaning with it")
        ray = _connect(options, setting)
        try:
            gpu = _wants_gpu(setting, options, ray)
            place, env = common_env(setting, cpus=options.cpus, gpu=gpu)
            here = identity(os.environ.get("RNN_LAB_PLUGINS_DIR"))
            _check_machines(ray, here, env)
        except BaseException:
            ray.shutdown()
            raise
        terms = Terms(
            setting.series.resolve(), setting.program, place, here, env, options.shared == "auto",
            options.checkpoints == "all", options.retries, setting.slots if options.address != "local" else None,
        )  # fmt: skip
        return RemoteExecutor(RayWorkers(ray, gpu, options.cpus), terms, [] if gpu else ["cpu"])


RAY = RayKind()


class RayWorkers:
    """Actors of a cluster; see `rnn_lab.lab.remote.Workers` for the methods."""

    def __init__(self, ray: Any, gpu: bool, cpus: int) -> None:
        self._ray, self._cpus, self._gpus = ray, cpus, 1 if gpu else 0
        self._actor = ray.remote(Runner).options(num_cpus=cpus, num_gpus=self._gpus, max_restarts=0)

    def slots(self) -> int:
        """Runs that fit beside each other on the machines that live."""
        return sum(self._fit(node["Resources"]) for node in self._ray.nodes() if node["Alive"])

    def lack(self) -> str:
        """What no machine has."""
        wanted = f"{'a GPU and ' if self._gpus else ''}{self._cpus} CPUs"
        return (
            f"no machine of the Ray cluster has {wanted} for a run: start one that has, give --slots N to wait for N "
            f"of them{', or --gpus none for the CPU' if self._gpus else ''}. `--resume` goes on"
        )

    def hire(self) -> "_RayWorker":
        """An actor, which Ray places when there is room."""
        return _RayWorker(self._ray, self._actor.remote())

    def close(self) -> None:
        """Leave the cluster, which ends what was hired; one that was started for the series ends."""
        self._ray.shutdown()

    def _fit(self, resources: dict[str, float]) -> int:
        by_cpu = int(resources.get("CPU", 0) // self._cpus)
        return min(by_cpu, int(resources.get("GPU", 0))) if self._gpus else by_cpu


class _RayWorker:
    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor

    def ask(self, method: str, *args: Any) -> "Future[Any]":
        answer: Future[Any] = Future()
        raw = getattr(self._actor, method).remote(*args).future()
        raw.add_done_callback(lambda done: self._pass_on(done, answer))
        return answer

    def _pass_on(self, done: "Future[Any]", answer: "Future[Any]") -> None:
        """The outcome, in the words of `rnn_lab.lab.remote`."""
        errors = self._ray.exceptions
        error = done.exception()
        if error is None:
            answer.set_result(done.result())
        elif isinstance(error, errors.RayTaskError):  # an exception of the runner's
            answer.set_exception(RnnLabError(str(error.cause)))
        else:
            answer.set_exception(WorkerGone(_in_short(str(error))))

    def dismiss(self) -> None:
        self._ray.kill(self._actor)


def _in_short(text: str) -> str:
    """The sentence of Ray's page on a dead actor that says how it died."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("The actor is dead because")), lines[0] if lines else "")
    return told.removeprefix("The actor is dead because ").partition(" Some common causes")[0].rstrip(" .")


def _wants_gpu(setting: Setting, options: RayOptions, ray: Any) -> bool:
    """On GPUs unless the user says otherwise or the cluster has none; before there is one to ask, on GPUs."""
    if setting.gpus == "none":
        return False
    if options.gpus is not None:
        return options.gpus == 1
    return ray is None or ray.cluster_resources().get("GPU", 0) > 0


def _connect(options: RayOptions, setting: Setting) -> Any:
    """The library, connected.

    Raises:
        ConfigError: it is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", "--executor ray (the extra rnn-lab-core[ray])")
    local = options.address == "local"
    room = {"num_cpus": (setting.slots or cores()) * options.cpus, "include_dashboard": False} if local else {}
    if local and setting.gpus == "none":
        room["num_gpus"] = 0
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR, **room)
    except Exception as error:  # ConnectionError, ValueError or a time limit, as Ray pleases
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"-x address={options.address}: no Ray cluster answers ({said}): start one with `ray start --head` and "
            "`ray start --address=HEAD:6379` on the others, or give -x address=local"
        ) from error
    with suppress(AttributeError):  # of another version, which then is only louder
        # Ray tells of every dead worker on standard output, which is ours; the job's record says the same.
        ray._private.worker._worker_logs_enabled = False
    return ray


def _check_machines(ray: Any, here: Identity, env: dict[str, str]) -> None:
    """See that every machine of the cluster has the rnn-lab that is here.

    Raises:
        RnnLabError: one has another, or none.
    """
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ask = ray.remote(_identity_there)
    plugins_dir = os.environ.get("RNN_LAB_PLUGINS_DIR")
    answers = {
        node["NodeManagerHostname"]: ask.options(
            num_cpus=0, scheduling_strategy=where(node_id=node["NodeID"], soft=False), max_retries=0
        ).remote(env, plugins_dir)
        for node in nodes
    }
    until = time.monotonic() + _CHECK_SECONDS
    wrong = []
    for host, answer in answers.items():
        try:
            said = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
        except Exception as error:  # a machine without rnn-lab cannot even load the question
            lines = str(error).strip().splitlines()
            wrong.append(f"{host}: rnn-lab cannot be asked there: {lines[-1] if lines else type(error).__name__}")
        else:
            if problem := said if isinstance(said, str) else difference(here, said):
                wrong.append(problem)
    if wrong:
        raise RnnLabError("\n".join(wrong))


def _identity_there(env: dict[str, str], plugins_dir: str | None) -> Identity | str:
    """Runs on a machine of the cluster: its identity, or why there is none."""
    import sys

    try:
        return identity_of(sys.executable, {**os.environ, **env}, plugins_dir)
    except RnnLabError as error:
        return str(error)
