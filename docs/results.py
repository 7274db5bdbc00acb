"""Figures that the documentation shows, each from a file that says which device, versions and date it is from.

docs/benchmarks/*.json holds records of several kinds: `"kind": "run"`, written from a finished run's folder by
`python docs/generate.py --record RUN [NAME]`; `"kind": "bench"`, written by
`python bench/run.py --json docs/benchmarks/NAME.json`; and those of `rnn-lab bench`, whose tables are in speed.py.
"""

import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Table = Callable[[Sequence[str], Iterable[Sequence[object]]], str]
NOTHING = "Not measured: nothing has been recorded yet.\n"
RUN_HEADERS = (
    "model", "parameters", "steps", "batch", "data", "last100", "bits per byte", "validation bits per byte", "tok/s",
    "device", "torch", "commit", "date",
)  # fmt: skip
KEPT = (
    "status", "model", "params", "steps", "tokens", "last100", "bpb", "val_loss", "val_bpb", "tokens_per_s",
    "mfu", "peak_memory_bytes", "device", "dtype", "seed", "data_chain",
)  # fmt: skip
ENV = ("python", "packages", "cuda", "gpu", "cpu", "cpu_count", "torch_threads", "git")


def record(run: Path, names: Sequence[str], folder: Path) -> None:
    """Keep the figures of the run in `run` as `folder/NAME.json`; NAME is the run's own name if not given."""
    result_file = run / "result.json"
    if not result_file.is_file():
        raise SystemExit(f"{run} has no result.json: only a run that has ended can be recorded")
    result = json.loads(result_file.read_text())
    env = {"cpu": None} | json.loads((run / "env.json").read_text())  # older runs do not say
    config = tomllib.loads((run / "config.toml").read_text())
    config.pop("origins", None)
    for key, value in config["data"].items():
        config["data"][key] = Path(value).name
    ended = datetime.fromtimestamp(result_file.stat().st_mtime, UTC)
    page = {
        "kind": "run",
        "date": f"{ended:%Y-%m-%d}",
        "result": {key: result.get(key) for key in KEPT},
        **{key: (result.get("data") or {}).get(key) for key in ("fingerprint", "bytes")},
        "config": config,
        "env": {key: env[key] for key in ENV},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{names[0] if names else run.resolve().name}.json").write_text(json.dumps(page, indent=1) + "\n")


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Every record of one kind, by file name."""
    pages = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [page for page in pages if page["kind"] == kind]


def commit_of(head: dict[str, Any]) -> str:
    """The commit that a page's header names, and whether the tree had changes behind it; a wheel knows none."""
    if head["commit"] is None:
        return "installed from wheels"
    commit = str(head["commit"])
    return f"commit {commit[:10]}{'+' * commit.endswith('+')}"


def runs_block(folder: Path, table: Table) -> str:
    """Table of the recorded runs, by file name."""
    found = records(folder, "run")
    if not found:
        return "No run has been recorded yet.\n"
    return table(RUN_HEADERS, [_run_row(page) for page in found])


def _run_row(page: dict[str, Any]) -> list[object]:
    result, train, env = page["result"], page["config"]["train"], page["env"]
    device = env["gpu"] or f"{env.get('cpu') or 'CPU'}, {env['torch_threads']} threads"
    figures = [_figure(result[key], digits) for key, digits in (("last100", 4), ("bpb", 4), ("val_bpb", 4))]
    return [
        result["model"] if result["status"] == "ok" else f"{result['model']} ({result['status']})",
        f"{result['params']:,}",
        result["steps"],
        f"{train['batch_size']} x {train['seq_len']}",
        # A training loss after many passes says what was learnt by heart.
        f"{page['bytes']:,} bytes, {result['tokens'] / page['bytes']:.3g} passes" if page["bytes"] else "",
        *figures,
        _figure(result["tokens_per_s"], 0),
        f"{device}, {result['dtype']}",
        env["packages"]["torch"],
        (env["git"] or "unknown")[:10],
        page["date"],
    ]


def _figure(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:,.{digits}f}"


def bench_block(folder: Path, table: Table) -> str:
    """Tables of the recorded benchmarks, one per machine and date."""
    found = records(folder, "bench")
    if not found:
        return "Not measured: no benchmark has been recorded yet.\n"
    parts = []
    for page in found:
        header = ", ".join(f"{name} {value}" for name, value in page["header"].items())
        rows = [(row["name"], row["shown"], row["target"], row["verdict"]) for row in page["rows"]]
        parts.append(f"{header}\n\n{table(('what', 'measured', 'target', 'verdict'), rows)}")
    return "\n".join(parts)
