"""The documentation says what is so."""

import inspect
import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rnn_lab import errors, hookspecs
from rnn_lab.presets import all_presets
from rnn_lab.registry import registry
from rnn_lab_cli.main import cli
from rnn_lab_cli.plugin_commands import plugin_commands

from .pages import blocks, rows, sections, tree_entries
from .source import FAMILIES, ROOT, files, shown, text_of

DOCS = ROOT / "docs"
README = ROOT / "README.md"
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, f"{hookspecs.PROJECT}_spec")}
VARIABLE = re.compile(r"(?<![A-Z_])RNN_LAB_[A-Z_]*[A-Z]")


def test_generated_pages_are_fresh():
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hooks_were_found():
    assert "register_models" in HOOKS
    assert len(HOOKS) >= 5


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_an_entry_a_test_and_a_user(name):
    entry = sections(DOCS / "hooks.md")[name]
    shown_arguments = re.search(rf"def {name}\((.*?)\) -> None", entry)
    assert shown_arguments, entry
    arguments = [part.partition(":")[0].strip() for part in re.split(r", (?![^\[]*\])", shown_arguments[1])]
    assert arguments == list(inspect.signature(HOOKS[name]).parameters)
    tests = [text_of(path) or "" for path in (ROOT / "tests").rglob("test_*.py")]
    assert any(f"def test_hook_{name}(" in text for text in tests), f"no test is called test_hook_{name}"
    plugin_commands()
    assert any(name in info.hooks for info in registry().plugins), f"nothing uses {name}"


def test_every_environment_variable_is_in_the_readme():
    documented = {row[0] for row in rows(sections(README)["Environment variables"])}
    used = set()
    for path in files():
        if path.suffix in (".py", ".toml") or shown(path) in ("Makefile", ".ci/run"):
            used |= set(VARIABLE.findall(text_of(path) or ""))
    used -= {"RNN_LAB_COMPLETE"}
    assert documented == used


def test_the_readme_shows_the_tree_as_it_is():
    (block,) = [b for b in blocks(README) if b.language == "text" and "pyproject.toml" in b.text]
    top, every = tree_entries(block.text)
    missing = [path for path in every if not (ROOT / path).exists()]
    assert not missing, f"the tree names what is not there: {missing}"
    assert sorted(top) == sorted({shown(path).split("/")[0] for path in files()})
    assert all(len(line.split()) > 1 for line in block.text.splitlines() if line.startswith("  "))


def test_the_readme_runs_what_the_makefile_runs():
    make = (ROOT / "Makefile").read_text()
    text = README.read_text()
    (command,) = re.findall(r"\$\(BIN\)/(rnn-lab fit .*)", make)
    assert f".venv/bin/{command}" in text
    (torch,) = re.findall(r"^TORCH\s+\?= (.*)", make, re.MULTILINE)
    (triton,) = re.findall(r"^TRITON\s+\?= (.*)", make, re.MULTILINE)
    assert f"pip install {torch} -r requirements.txt && .venv/bin/rnn-lab fit" in text
    assert f"pip install {torch} {triton} -r requirements-dev.txt && .venv/bin/python -m pytest" in text
    assert text.index("make run") < text.index("make test") < text.index("Without make")


def test_exit_codes_of_errors_are_in_the_readme():
    documented = {int(row[0]) for row in rows(sections(README)["Exit codes"])}
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert {value.exit_code for value in classes} | {0, 130} == documented


def test_links_lead_somewhere():
    broken = []
    for path in files():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
                if "://" not in target and not (path.parent / target).exists():
                    broken.append(f"{shown(path)}: {target}")
    assert not broken


def test_every_check_of_the_contract_is_explained():
    from rnn_lab.testing import CHECKS

    documented = [row[0] for row in rows(sections(DOCS / "architecture.md")["The contract"])]
    assert documented == [check.id for check in CHECKS]


def test_fields_of_metrics_and_result_are_explained(tmp_path):
    run = tmp_path / "run"
    options = "--model e61 --dim 16 --depth 1 --steps 2 --batch-size 2 --seq-len 16 --eval-every 2 --quiet"
    done = CliRunner().invoke(cli, ["fit", *options.split(), "-o", "eval.tokens=64", "--out", str(run)])
    assert done.exit_code == 0, done.output
    page = sections(DOCS / "training.md")
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    result = json.loads((run / "result.json").read_text())
    assert [row[0] for row in rows(page["metrics.jsonl"])] == list(line)
    assert {row[0] for row in rows(page["result.json"])} == set(result)
    assert [row[0] for row in rows(page["Clock"])] == list(result["clock"]["buckets"])


def test_protocols_are_explained():
    documented = {row[0] for row in rows(sections(DOCS / "protocols.md")["Shipped"])}
    assert documented == set(registry().protocols)
    for name, path in registry().protocols.items():
        assert path.read_text().startswith('description = "'), name


@pytest.mark.parametrize("name", sorted(registry().protocols))
def test_protocols_plan_a_run(name):
    done = CliRunner().invoke(cli, ["fit", "--model", "e61", "--protocol", name, "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["config"]["train"]["batch_size"]["origin"] == f"protocol {name}"
    assert abs(plan["certificate"]["deviation"]) <= 0.005


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_results_are_the_presets_of_the_family(family):
    found = all_presets(registry())
    names = {name for name, preset in found.items() if preset.plugin == family}
    listed = rows(sections(ROOT / "plugins" / family / "README.md")["Seed results"])
    assert names and {row[0] for row in listed} == names
    for name, *_, params, printed, loss, _ in listed:
        assert params == (f"{found[name].count(registry()):,}" if "dim" in (found[name].row.config or {}) else "open")
        assert printed in {text.params for text in found[name].row.printed} | {"not printed"}
        assert loss in {text.loss for text in found[name].row.printed} | {"not printed"}


@pytest.mark.parametrize("name", ["seed003/mamba2", "seed003/e0_stock", "seed002/e88_d24_h32_n48", "seed004/llama"])
def test_parameter_counts_of_the_seeds_are_ours_too(name):
    done = CliRunner().invoke(cli, ["size", "--preset", name, "--json"])
    assert done.exit_code == 0, done.output
    params = json.loads(done.stdout)["params"]
    assert params == all_presets(registry())[name].count(registry())
    assert f"{params:,}" in (DOCS / "presets.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_list_their_models(family):
    text = (ROOT / "plugins" / family / "README.md").read_text()
    models = [ref for ref in registry().models.values() if ref.family == family]
    assert models
    assert all(f"| `{ref.name}` | `{' '.join(ref.doc.equation.split())}`" in text for ref in models)
