"""data, check, doctor, completion."""

import json
import subprocess
import sys

import pytest
from rnn_lab import testing
from rnn_lab.kernels import certificates
from rnn_lab.testing.checks import CheckResult
from rnn_lab_cli import diagnosis

from .helpers import environment

COMPLETE = {"COMP_CWORD": "", "COMP_WORDS": ""}


def test_data_info_describes_a_file(rnn_lab, corpus):
    page = rnn_lab("data", "info", str(corpus), "--json").json
    assert page["bytes"] == corpus.stat().st_size and page["documents"] == 500 and page["utf8_error"] is None
    assert sum(page["histogram"]) == page["bytes"]
    assert "documents\t500" in rnn_lab("data", "info", str(corpus)).out
    assert rnn_lab("data", "info", str(corpus.parent)).code == 2


def test_data_pack_writes_one_file(rnn_lab, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(9)))
    out = tmp_path / "out.bin"
    argv = ["data", "pack", str(tmp_path / "a.jsonl"), "--out", str(out), "--column", "body"]
    done = rnn_lab(*argv)
    assert done.code == 0 and "documents\t9" in done.out and out.read_bytes().count(b"\x1e") == 8
    done = rnn_lab(*argv)
    assert done.code == 2 and "--overwrite" in done.err
    page = rnn_lab(*argv, "--overwrite", "--max-bytes", "13", "--no-resume", "--json").json
    assert page["documents"] == 2 and page["bytes"] == out.stat().st_size == 13
    assert rnn_lab(*argv, "--overwrite", "--max-bytes", "lots").code == 2
    assert rnn_lab("data", "pack", str(tmp_path / "nix"), "--out", str(out)).code == 2


def test_data_fetch_gives_the_default_corpus(rnn_lab):
    page = rnn_lab("data", "fetch", "--json").json
    assert page["bytes"] > 6_000_000 and rnn_lab("data", "fetch").out.strip() == page["path"]


def test_check_prints_a_line_per_rule_and_fails_with_1(rnn_lab, monkeypatch):
    seen = []

    class Contract:
        def __init__(self, model, device):
            self.model, self.device = model, device

        def results(self, only):
            seen.append((self.model, only, self.device))
            yield CheckResult("shapes", "pass", "", 0.1)
            yield CheckResult("causal", "fail" if self.model == "e88" else "pass", "step 3 sees step 4", 0.2)
            yield CheckResult("compile", "skip", "needs shapes", 0.0)

    monkeypatch.setattr(testing, "Suite", Contract, raising=False)
    done = rnn_lab("check", "e61")
    assert done.code == 0
    assert done.out.splitlines() == ["pass shapes", "pass causal step 3 sees step 4", "skip compile needs shapes"]
    done = rnn_lab("check", "e74_e88", "--only", "shapes")
    assert done.code == 1 and "FAIL causal step 3 sees step 4" in done.out and "e88:" in done.out
    assert {("e74", ("shapes",), "cpu"), ("e88", ("shapes",), "cpu")} <= set(seen[1:])
    seen.clear()
    assert rnn_lab("check", "rnn-lab-e74-e88").code == 1 and ("e88", None, "cpu") in seen
    rows = rnn_lab("check", "e88", "--json").json
    assert rows[1] == {
        "model": "e88", "id": "causal", "status": "fail", "message": "step 3 sees step 4", "seconds": 0.2,
    }  # fmt: skip
    assert rnn_lab("check", "builtin").code == 2


def test_check_prints_a_line_as_soon_as_it_is_known(rnn_lab, monkeypatch):
    def interrupted(suite, only):
        yield CheckResult("shapes", "pass", "", 0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr("rnn_lab.testing.checks.Suite.results", interrupted)
    done = rnn_lab("check", "e61")
    assert done.code == 130 and done.out.splitlines() == ["pass shapes"]


def test_check_runs_the_real_contract(rnn_lab):
    done = rnn_lab("check", "e61", "--only", "shapes", "--json")
    assert done.code == 0 and [(row["id"], row["status"]) for row in done.json] == [("shapes", "pass")]
    assert rnn_lab("check", "e61", "--only", "nix").code == 2


def test_doctor_reports_every_part(rnn_lab):
    done = rnn_lab("doctor", "--json")
    rows = {row["check"]: row for row in done.json}
    assert done.code == 0 and {row["status"] for row in rows.values()} <= {"ok", "warn"}
    assert rows.keys() >= {"python", "cpu", "torch", "cuda", "triton", "cache", "plugins", "default corpus", "pyarrow"}
    assert all(row["advice"] for row in rows.values() if row["status"] != "ok")
    assert rnn_lab("doctor").out.splitlines()[0] == "status\tcheck\tdetail\tadvice"


def test_doctor_names_kernels_that_were_seen_wrong(rnn_lab, monkeypatch):
    key = {"op": "recurrence", "backend": "diagonal", "sources": certificates.sources("rnn_lab.kernels.recurrence")}
    row = {"key": key, "distrust": "its small run differs"}
    gone = [{**row, "key": {**key, what: "gone"}} for what in ("op", "backend", "sources")]
    monkeypatch.setattr(certificates, "certificates", lambda: [row, row, {**row, "distrust": None}, *gone])
    found = rnn_lab("doctor", "--json").json
    (warned,) = [row for row in found if row["check"] == "kernel"]
    assert warned["status"] == "warn"
    assert warned["detail"] == "recurrence/diagonal: its small run differs (and 1 more kinds of calls)"
    (summary,) = [row for row in found if row["check"] == "kernels"]
    assert summary["detail"] == "1 certificates hold on this machine, 2 refused"


@pytest.mark.parametrize("value,status", [("diagonal", "ok"), ("diagonals", "fail")])
def test_doctor_notices_which_kernels_are_asked_for(rnn_lab, monkeypatch, value, status):
    monkeypatch.setenv("RNN_LAB_KERNELS", value)
    rows = {row["check"]: row for row in rnn_lab("doctor", "--json").json}
    assert rows["RNN_LAB_KERNELS"]["status"] == status


def test_doctor_fails_with_1_and_says_what_to_do(rnn_lab, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(diagnosis, "_torch", lambda: iter(()))
    done = rnn_lab("doctor", "--json")
    rows = {row["check"]: row for row in done.json}
    assert done.code == 1 and rows["cache"]["status"] == "fail" and "RNN_LAB_CACHE" in rows["cache"]["advice"]
    assert rows["default corpus"]["status"] == "fail"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(rnn_lab, shell):
    done = rnn_lab("completion", shell)
    assert done.code == 0 and "_RNN_LAB_COMPLETE" in done.out and "rnn-lab" in done.out
    assert done.err.count("\n") == 1


def complete(*words: str) -> list[str]:
    code = (
        "import sys\nfrom rnn_lab_cli.main import main\n"
        "try:\n    main([])\nfinally:\n    assert 'torch' not in sys.modules and 'rich' not in sys.modules"
    )
    env = environment(
        _RNN_LAB_COMPLETE="bash_complete", COMP_WORDS=" ".join(["rnn-lab", *words]), COMP_CWORD=str(len(words))
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_the_shell_completes_commands_models_and_options_without_torch():
    assert complete("li") == ["list-models"]
    assert {"fit", "size", "doctor"} <= set(complete(""))
    assert complete("data", "in") == ["info"]
    assert {"e74", "e88", "61b"} <= set(complete("fit", "--model", ""))
    assert {"e70", "e74", "e75", "e75h4n32"} <= set(complete("size", "e7"))
    assert "e74_e88" in complete("check", "e74")
    assert complete("size", "--preset", "seed004/e74_n") == [f"seed004/e74_n{n}" for n in (16, 32, 48, 64)]
    assert complete("fit", "--preset", "seed002/e88_silu") == [""]
    assert "--seq-len" in complete("fit", "--seq")
