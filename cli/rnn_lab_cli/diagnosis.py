"""What `rnn-lab doctor` looks at: every check gives ok, warn or fail, and what to do about it."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.system.processor import cpu_name

OPTIONAL = {
    "zstandard": "reads .jsonl.zst",
    "pyarrow": "reads Parquet",
    "datasets": "reads hf:// data sets",
    "matplotlib": "draws report figures",
    "optuna": "searches hyperparameters",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


def all_checks() -> Iterator[Finding]:
    """Every finding, in the order of the report; a check that raises is a finding too."""
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("python", _python),
        ("torch", _torch),
        ("cache", _cache),
        ("kernels", _kernels),
        ("plugins", _plugins),
        ("default corpus", _corpus),
        ("optional packages", _optional),
    )
    for name, check in checks:
        try:
            yield from check()
        except (RnnLabError, ImportError, OSError, RuntimeError) as error:
            yield Finding(name, "fail", f"{type(error).__name__}: {error}", "see the message")


def _python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    advice = "" if good else "install Python 3.11 or newer"
    yield Finding("python", "ok" if good else "fail", f"{platform.python_version()} at {sys.executable}", advice)
    yield Finding("cpu", "ok", ", ".join(filter(None, [cpu_name(), f"{os.cpu_count()} cores"])))


def _torch() -> Iterator[Finding]:
    import torch

    threads = torch.get_num_threads()
    good = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 11)
    advice = "" if good else "pip install 'torch>=2.11,<3'"
    yield Finding("torch", "ok" if good else "fail", f"{torch.__version__}, {threads} threads", advice)
    driver = _driver()
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        yield Finding("cuda", "ok", f"{torch.version.cuda}, {torch.cuda.device_count()} devices")
        yield Finding("gpu", "ok", f"{name}, {memory / 2**30:.0f} GiB")
    elif driver:
        advice = "install a CUDA build of torch that this driver supports"
        yield Finding("cuda", "warn", f"a driver is here, and torch ({torch.version.cuda}) sees no GPU", advice)
    else:
        yield Finding("cuda", "warn", "no GPU", "everything runs on the CPU, only slower")
    if driver:
        yield Finding("driver", "ok", driver)
    if find_spec("triton") is not None:
        yield Finding("triton", "ok", "present")
    elif torch.cuda.is_available():
        yield Finding("triton", "warn", "missing: kernels fall back", "pip install triton")
    else:
        yield Finding("triton", "ok", "missing, and of no use without a GPU")


def _driver() -> str:
    """Version of the NVIDIA driver, empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _cache() -> Iterator[Finding]:
    from rnn_lab.system.paths import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "set RNN_LAB_CACHE to a folder that can be written"
        yield Finding("cache", "fail", f"{folder}: {error.strerror}", advice)
        return
    yield Finding("cache", "ok", f"{folder}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free")


def _kernels() -> Iterator[Finding]:
    """RNN_LAB_KERNELS where it is set, then certificates, of the backends that there are, as their sources are now."""
    from rnn_lab.kernels.certificates import certificates, sources
    from rnn_lab.kernels.dispatch import AUTO, setting
    from rnn_lab.kernels.operations import check_setting, operations

    if setting() != AUTO:
        try:
            yield Finding("RNN_LAB_KERNELS", "ok", check_setting())
        except ConfigError as error:
            yield Finding("RNN_LAB_KERNELS", "fail", str(error), "unset it, or name one that is known")
    stored = certificates()
    ops = operations().values() if stored else ()
    now = {(op.name, b.name): sources(b.run.__module__) for op in ops for b in op.backends}
    found: dict[tuple[str, str], list[str | None]] = {}
    for row in stored:
        key = row["key"]
        pair = (key["op"], key["backend"])
        if pair in now and now[pair] == key.get("sources"):
            found.setdefault(pair, []).append(row["distrust"])
    for (op, backend), reasons in found.items():
        wrong = [reason for reason in reasons if reason]
        if wrong:
            more = f" (and {len(wrong) - 1} more kinds of calls)" if len(wrong) > 1 else ""
            detail = f"{op}/{backend}: {wrong[0]}{more}"
            yield Finding("kernel", "warn", detail, "it is not used for such calls here; please report it")
    total = [reason for reasons in found.values() for reason in reasons]
    refused = sum(reason is not None for reason in total)
    yield Finding("kernels", "ok", f"{len(total) - refused} certificates hold on this machine, {refused} refused")


def _plugins() -> Iterator[Finding]:
    from rnn_lab.presets import all_presets
    from rnn_lab.registry import registry

    from rnn_lab_cli.plugin_commands import plugin_commands

    plugin_commands()
    found = registry()
    all_presets(found)
    for info in found.plugins:
        if info.problems:
            advice = "see `rnn-lab plugins`; reinstall or uninstall it"
            yield Finding(f"plugin {info.name}", "fail", info.problems[0], advice)
    if found.models:
        yield Finding("plugins", "ok", f"{len(found.plugins)} plugins, {len(found.models)} models")
    else:
        yield Finding("plugins", "fail", "no models", "install a family, such as rnn-lab-e74-e88")


def _corpus() -> Iterator[Finding]:
    from rnn_lab.data.default import default_corpus

    path = default_corpus()
    yield Finding("default corpus", "ok", f"{path}, {path.stat().st_size:,} bytes")


def _optional() -> Iterator[Finding]:
    for package, use in OPTIONAL.items():
        if find_spec(package) is not None:
            yield Finding(package, "ok", f"present: {use}")
        else:
            yield Finding(package, "warn", f"missing: {use}", f"pip install {package}")
