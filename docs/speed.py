"""Tables of speed: pages that `rnn-lab bench ... --out docs/benchmarks/NAME.json` wrote, and floors by arithmetic."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results import NOTHING, Table, commit_of, records

REFERENCE_SIZE = {"batch": 32, "seq_len": 512, "dtype": "bfloat16"}
FLOORS = (
    # class, model and fields, shape, bytes, arithmetic, serial chain, prediction: milliseconds, forward and backward
    ("diagonal, linear", "e61:dim=640,expansion=2.0", "D 1280", 0.11, 0.02, 0.02, 0.14),
    ("diagonal, linear", "mingru:dim=640,expansion=2.0", "D 1280", 0.11, 0.02, 0.02, 0.14),
    ("diagonal, nonlinear", "e64:dim=640,expansion=2.0", "D 1280", 0.11, 0.04, 0.05, 0.16),
    ("diagonal, nonlinear", "e68:dim=640,expansion=2.0", "D 1280", 0.11, 0.05, 0.06, 0.18),
    ("matrix, linear", "e70:n_state=96", "n 96, one head", 0.01, 0.01, 0.01, 0.05),
    ("matrix, linear, delta", "gdn:n_heads=32,head_dim=64", "K = V = 64, 32 heads", 0.25, 0.25, 0.02, 1.0),
    ("matrix, linear", "mamba2:dim=672,n_state=64", "D 672, S 64", 0.08, 0.07, 0.01, 0.4),
    ("matrix, tanh", "e74:n_state=16,nonlinearity=tanh", "n 16, one head", 0.002, 0.003, 0.15, 0.25),
    ("matrix, tanh", "e74:n_state=32,nonlinearity=tanh", "n 32, one head", 0.004, 0.014, 0.15, 0.3),
    ("matrix, tanh", "e74:n_state=48,nonlinearity=tanh", "n 48, one head", 0.006, 0.031, 0.15, 0.35),
    ("matrix, tanh", "e74:n_state=64,nonlinearity=tanh", "n 64, one head", 0.008, 0.056, 0.15, 0.4),
    ("matrix, tanh", "e74:n_state=96,nonlinearity=tanh", "n 96, one head", 0.011, 0.12, 0.15, 0.5),
    ("matrix, tanh", "e88:n_heads=32,n_state=16,nonlinearity=tanh", "n 16, 32 heads", 0.06, 0.11, 0.15, 0.4),
    ("matrix, tanh", "e88:n_heads=32,n_state=32,nonlinearity=tanh", "n 32, 32 heads", 0.12, 0.44, 0.15, 1.0),
    ("matrix, tanh", "e88:n_heads=32,n_state=48,nonlinearity=tanh", "n 48, 32 heads", 0.19, 0.99, 0.15, 2.2),
    ("matrix, tanh", "e88:n_heads=32,n_state=64,nonlinearity=tanh", "n 64, 32 heads", 0.25, 1.8, 0.15, 4.0),
    ("dense, tanh", "e1:dim=1024,expansion=1.0", "D 1024", 0.06, 0.13, 0.98, 2.2),
    ("dense, linear", "e42:dim=768,expansion=2.0", "D 1536", 0.08, 0.3, 0.1, 3.4),
)
OPERATIONS = {"e70": "linear_state", "gdn": "gated_delta_rule", "mamba2": "ssd"}
"""What is measured of a model, where it is not its recurrence."""
LIBRARIES = ("fla", "mamba-ssm")
"""Backends that are not ours."""
FLOOR_HEADERS = ("class", "measured on", "shape", "bytes", "arithmetic", "serial chain", "prediction", "outcome")


def floors_block(folder: Path, table: Table) -> str:
    """Floors and predictions, and beside them the best backend of ours in the newest page that has it."""
    pages = [
        page
        for page in _pages(folder, "bench-kernels")
        if page["header"]["device"] != "CPU" and REFERENCE_SIZE.items() <= page["setting"].items()
    ]
    rows = [(*row[:3], *(f"{ms:g}" for ms in row[3:]), _outcome(row[1], pages)) for row in FLOORS]
    return table(FLOOR_HEADERS, rows)


def _outcome(model: str, pages: list[dict[str, Any]]) -> str:
    name, _, given = model.partition(":")
    fields = dict(pair.split("=") for pair in given.split(",") if pair)
    for page in reversed(pages):
        found = [
            row["forward_backward"]
            for row in page["rows"]
            if row["model"] == name
            and all(str(row["fields"][key]) == value for key, value in fields.items())
            and row["status"] == "ok"
            and row["op"] == OPERATIONS.get(name, "recurrence")
            and (row["implementation_kind"], row["mode"]) == ("backend", "graph")
            and row["implementation"] not in LIBRARIES
        ]
        if found:
            best = min(found, key=lambda figures: figures["ms"]["median"])
            return f"{best['ms']['median']:.3g} ({best['copy_share']:.0%} of copy)"
    return "not measured"


def _pages(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Pages of one kind, oldest first."""
    return sorted(records(folder, kind), key=lambda page: str(page["header"]["date"]))


def _tables(
    folder: Path, kind: str, headers: Sequence[str], cells: Callable[[dict[str, Any]], Sequence[object]], table: Table
) -> str:
    """One table per page below what it was measured on."""
    pages = _pages(folder, kind)
    if not pages:
        return NOTHING
    return "\n".join(
        f"{_above(page)}\n\n{table(headers, [cells(page['setting'] | row) for row in page['rows']])}" for page in pages
    )


def _above(page: dict[str, Any]) -> str:
    head, top = page["header"], page["ceilings"]
    peers = [f"{name} {version}" for name, version in head["peers"].items() if version]
    facts = [
        head["date"],
        head["device"],
        *(f"{name} {head[name]}" for name in ("driver", "torch", "triton", "cudnn") if head[name]),
        *peers,
        commit_of(head),
        *(f"{name} {value}" for name, value in page["setting"].items()),
        f"copy {top['copy_bytes_per_s'] / 1e12:.2f} TB/s",
        f"matmul {top['matmul_flops_per_s'] / 1e12:.0f} TFLOP/s",
    ]
    return ", ".join(facts) + "."


def _ms(spread: dict[str, Any] | None) -> str:
    return "" if spread is None else f"{spread['median']:.4g} ({spread['q1']:.4g} to {spread['q3']:.4g})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _why(row: dict[str, Any]) -> str:
    return str(row.get("note") or "") if row["status"] == "ok" else f"{row['status']}: {row['reason']}"


def kernels_block(folder: Path, table: Table) -> str:
    """Operations."""
    headers = (
        "model", "state", "op", "implementation", "mode", "forward, ms", "both, ms", "µs per step", "of copy",
        "of matmul", "remark",
    )  # fmt: skip
    return _tables(folder, "bench-kernels", headers, _kernel_cells, table)


def _kernel_cells(row: dict[str, Any]) -> Sequence[object]:
    both, state = row.get("forward_backward", {}), row.get("state") or ()
    return (
        row["model"], " x ".join(map(str, state)), row["op"], row["implementation"] or "", row.get("mode", ""),
        _ms(row.get("forward", {}).get("ms")), _ms(both.get("ms")), _per_step(row),
        _percent(both.get("copy_share")), _percent(both.get("matmul_share")), _why(row),
    )  # fmt: skip


def _per_step(row: dict[str, Any]) -> str:
    """Microseconds, forward and backward, where a state is carried from step to step."""
    both = row.get("forward_backward")
    if us := row.get("us_per_step"):
        return f"{us:.3g}"
    return f"{1e3 * both['ms']['median'] / row['seq_len']:.3g}" if both and row.get("state") else ""


def train_block(folder: Path, table: Table) -> str:
    """Training steps."""
    headers = (
        "model", "implementation", "mode", "parameters", "tok/s", "ms", "GiB", "MFU of datasheet", "MFU of measured",
        "launch", "update", "remark",
    )  # fmt: skip
    return _tables(folder, "bench-train", headers, _train_cells, table)


def _train_cells(row: dict[str, Any]) -> Sequence[object]:
    head = (row["model"], row["implementation"], row["mode"])
    if row["status"] != "ok":
        return (*head, *[""] * 8, _why(row))
    update = row.get("update_ms")  # older files lack it
    return (
        *head, f"{row['params']:,}", f"{row['tokens_per_s']['median']:,.0f}", _ms(row["ms"]),
        f"{row['peak_memory_bytes'] / 2**30:.1f}", _percent(row["mfu_datasheet"]), _percent(row["mfu_measured"]),
        _percent(row["launch_overhead"]),
        f"{_ms(update)}, {_percent(row['update_share'])}" if update else "", _backends(row),
    )  # fmt: skip


def _backends(row: dict[str, Any]) -> str:
    found = ", ".join(f"{c['op']} {c['backend']}" for c in row["backends"])
    chunks = row.get("wavefront", 1)
    return f"{found}, {chunks} chunks at once" if chunks > 1 else found


def decode_block(folder: Path, table: Table) -> str:
    """Generation."""
    headers = ("model", "batch", "mode", "parameters", "tok/s", "ms per byte", "state bytes", "remark")
    return _tables(folder, "bench-decode", headers, _decode_cells, table)


def _decode_cells(row: dict[str, Any]) -> Sequence[object]:
    head = (row["model"], row["batch"], row["mode"])
    if row["status"] != "ok":
        return (*head, *[""] * 4, _why(row))
    figures = (f"{row['params']:,}", f"{row['tokens_per_s']:,.0f}", _ms(row["ms"]), f"{row['state_bytes']:,}")
    return (*head, *figures, "")
