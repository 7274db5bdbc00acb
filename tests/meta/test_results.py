"""Figures get into the documentation with the device, versions and date that they are from."""

import json
import sys

import pytest

from .source import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import results

sys.path.pop(0)


def table(headers, rows):
    return [dict(zip(headers, row, strict=True)) for row in rows]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    figures = {
        **dict.fromkeys(results.KEPT),
        "status": "ok", "model": "e61", "params": 1000, "steps": 200, "last100": 2.0, "bpb": 2.885390,
        "tokens_per_s": 12345.6, "dtype": "float32", "tokens": 204800,
        "data": {"path": "somewhere/train.bin", "fingerprint": "ab", "bytes": 100000},
    }  # fmt: skip
    versions = {
        "packages": {"torch": "2.13.0"},
        "git": "0123456789abcdef",
        "gpu": None,
        "cpu": "Chip",
        "torch_threads": 2,
    }
    (folder / "result.json").write_text(json.dumps(figures))
    (folder / "env.json").write_text(json.dumps({**dict.fromkeys(("python", "cuda", "cpu_count")), **versions}))
    (folder / "config.toml").write_text(
        '[train]\nbatch_size = 8\nseq_len = 128\n[data]\npath = "somewhere/train.bin"\n[origins]\n'
    )
    return folder


def test_a_recorded_run_becomes_a_row(run, tmp_path):
    results.record(run, ["first"], tmp_path / "benchmarks")
    (row,) = results.runs_block(tmp_path / "benchmarks", table)
    assert tuple(row) == results.RUN_HEADERS
    assert (row["model"], row["parameters"], row["batch"]) == ("e61", "1,000", "8 x 128")
    assert row["data"] == "100,000 bytes, 2.05 passes"
    assert (row["last100"], row["bits per byte"], row["validation bits per byte"]) == ("2.0000", "2.8854", "none")
    assert (row["tok/s"], row["device"], row["torch"]) == ("12,346", "Chip, 2 threads, float32", "2.13.0")
    assert row["commit"] == "0123456789"
    assert row["date"][:2] == "20"


def test_a_record_names_no_folder_of_the_machine(run, tmp_path):
    results.record(run, [], tmp_path / "benchmarks")
    text = (tmp_path / "benchmarks" / "run.json").read_text()
    assert "somewhere" not in text
    assert json.loads(text)["fingerprint"] == "ab"


def test_without_records_the_pages_say_so(tmp_path):
    assert results.runs_block(tmp_path, table) == "No run has been recorded yet.\n"
    assert results.bench_block(tmp_path, table).startswith("Not measured")


def test_a_run_that_has_not_ended_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"has no result\.json"):
        results.record(tmp_path, [], tmp_path)
