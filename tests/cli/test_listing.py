"""list-models, show, size: what is there, and that nobody imports torch to list it."""

import resource
import subprocess
import sys

import pytest

from .helpers import program

MODELS = {"e0", "e1", "e61", "e68", "e74", "e88", "gru", "lstm"}
MATRIX_STATES = ["e63m", "e70", "e71", "e72", "e73", "e74", "e74d", "e75", "e88"]
WITHOUT_TORCH = """
import sys
from rnn_lab_cli.main import main
try:
    code = main({argv!r})
except SystemExit as stop:
    code = stop.code
heavy = [m for m in ("torch", "numpy", "pydantic", "rich") if m in sys.modules]
commands = [m for m in sys.modules if m.startswith("rnn_lab_cli.commands.")]
print("IMPORTED", heavy, commands, file=sys.stderr)
sys.exit(code)
"""


def imported(*argv: str, **env: str) -> tuple[int, str]:
    code = WITHOUT_TORCH.format(argv=list(argv))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**env} or None)
    return done.returncode, next(line for line in done.stderr.splitlines() if line.startswith("IMPORTED"))


def test_list_models_names_every_model_and_its_equation(rnn_lab):
    done = rnn_lab("list-models", "--json")
    rows = {row["name"]: row for row in done.json}
    assert done.code == 0 and rows.keys() >= MODELS
    assert rows["e74"].keys() == {"name", "family", "plugin", "equation", "parent", "aliases"}
    assert rows["e74"]["equation"].startswith("S_t = tanh(") and rows["e74"]["plugin"] == "e74_e88"
    assert "61b" in rows["e61"]["aliases"] and rows["e61"]["family"] == "e61_e68"


def test_list_models_of_a_family(rnn_lab):
    assert [row["name"] for row in rnn_lab("list-models", "--family", "e74_e88", "--json").json] == MATRIX_STATES
    done = rnn_lab("list-models", "--family", "e74-e88")
    assert done.code == 2 and "'e74_e88'" in done.err


@pytest.mark.parametrize(
    ("argv", "heavy"), [(("list-models", "--json"), []), (("list-models",), []), (("plugins",), ["pydantic"])]
)
def test_listing_imports_nothing_heavy(argv, heavy):
    """Only `plugins`, which says what is wrong with preset files too, reads them."""
    code, line = imported(*argv)
    assert code == 0 and line.startswith(f"IMPORTED {heavy} ")


@pytest.mark.parametrize("argv", [("--help",), (), ("--version",), ("data", "--help")])
def test_help_imports_no_command(argv):
    _, line = imported(*argv)
    assert line in ("IMPORTED [] []", "IMPORTED [] ['rnn_lab_cli.commands.data']")


def test_list_models_is_quick():
    def seconds(*argv: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *argv], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # In turns: a machine's clock may halve from one second to the next, and has to do it to both.
    turns = [
        (seconds("-m", "rnn_lab_cli", "list-models"), seconds("-c", "import click, pluggy, pydantic")) for _ in range(5)
    ]
    listing, libraries = (min(column) for column in zip(*turns, strict=True))
    assert listing <= 2.5 * libraries


def test_show_has_mathematics_fields_sizes_and_kernels(rnn_lab):
    page = rnn_lab("show", "e74", "--json").json
    assert "P_out" in page["text"] and page["parent"].startswith("e73") and page["source"] and page["parameters"]
    fields = {field["name"]: field for field in page["fields"]}
    assert fields["n_state"] == {
        "name": "n_state", "type": "int", "default": 32, "description": "side n of the square state",
    }  # fmt: skip
    assert fields["block_size"]["type"] == "int | None" and "tied_kq" in fields["projection"]["type"]
    assert page["state_shapes"] == {"h": [32, 32]}
    assert [row["target"] for row in page["sizes"]] == [50_000_000, 100_000_000, 500_000_000]
    assert all(abs(row["deviation"]) <= 0.005 for row in page["sizes"])
    assert page["kernels"][0]["op"] == "recurrence" and page["kernels"][0]["backend"]
    assert page["flops_per_token"]["training"] == 3 * page["flops_per_token"]["forward"]


def test_show_prints_pages_for_people_and_follows_aliases(rnn_lab):
    done = rnn_lab("show", "61b")
    assert done.code == 0 and done.out.startswith("e61: h_t = ")
    for part in ("fields", "sizes", "kernels usable here", "61b (form = additive)"):
        assert part in done.out


def test_size_json_is_a_certificate(rnn_lab):
    done = rnn_lab("size", "e74", "--target", "1M", "--n-state", "16", "--json")
    proof = done.json
    assert set(proof) == {
        "model", "target", "params", "deviation", "config", "breakdown", "reachable", "reason",
    }  # fmt: skip
    assert proof["target"] == 1_000_000 and abs(proof["deviation"]) <= 0.005 and proof["reachable"] is True
    assert sum(proof["breakdown"].values()) == proof["params"] and proof["config"]["n_state"] == 16


@pytest.mark.parametrize("argv", [("e74", "--n-state", "16"), ("--n-state", "16", "e74"), ("--n-state=16", "74")])
def test_size_finds_the_model_wherever_it_stands(rnn_lab, argv):
    assert rnn_lab("size", *argv, "--json").json["config"]["n_state"] == 16


def test_size_takes_overrides_and_holds_them(rnn_lab):
    config = rnn_lab("size", "e61", "-o", "model.expansion=1.5", "--depth", "4", "--json").json["config"]
    assert config["expansion"] == 1.5 and config["depth"] == 4
    done = rnn_lab("size", "e61", "-o", "train.steps=3")
    assert done.code == 2 and "-o train" in done.err


def test_size_prints_a_breakdown_with_its_total(rnn_lab):
    lines = rnn_lab("size", "gru", "--dim", "32", "--depth", "2").out.splitlines()
    rows = [line.split("\t") for line in lines[1 : lines.index("") - 1]]
    counts = {row[0]: int(row[1]) for row in rows}
    total = counts.pop("total")
    assert sum(counts.values()) == total


def test_size_out_of_reach_still_prints_the_nearest_and_exits_2(rnn_lab):
    done = rnn_lab("size", "e74", "--target", "10k", "--n-state", "48", "--json")
    assert done.code == 2 and done.json["reachable"] is False
    assert done.json["reason"] in done.err and f"--target {done.json['params']}" in done.err


def test_module_and_script_are_the_same_program():
    done = program("--version")
    assert done.code == 0 and done.out.startswith("rnn-lab ")
