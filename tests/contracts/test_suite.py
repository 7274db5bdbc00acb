"""The suite itself: its order, its interface, and what a plugin author sees of it."""

import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from rnn_lab.errors import ConfigError
from rnn_lab.kernels.recurrence import RECURRENCE
from rnn_lab.registry import registry
from rnn_lab.tensors import relative_error
from rnn_lab.testing import CHECKS, Suite
from rnn_lab.testing.measure import RefusedError, forced, nan_filled
from rnn_lab.testing.subject import Subject

THIRD_PARTY_TESTS = """
import pytest
from rnn_lab.testing.pytest_plugin import contract_params

@pytest.mark.parametrize(("model", "check"), contract_params("mycell"))
def test_contract(model, check, contract):
    contract(model, check)
"""


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_checks_come_after_those_that_they_need():
    seen = set()
    for check in CHECKS:
        assert check.title
        assert set(check.needs) <= seen, check.id
        seen.add(check.id)


def test_only_reports_what_was_asked_for(check_model):
    results = check_model("e61b", {"use_conv": True}, only=["shapes", "config"])
    assert [result.id for result in results] == ["config", "shapes"]
    assert {result.status for result in results} == {"pass"}


def test_unknown_names_are_refused(check_model):
    with pytest.raises(ConfigError, match=r"unknown check 'streming'. Did you mean 'streaming'"):
        check_model("e61", only=["streming"])
    with pytest.raises(ConfigError, match="unknown model 'e6l'"):
        check_model("e6l")
    with pytest.raises(ConfigError, match="its Config refuses the small sizes"):
        check_model("e61", {"no_such_field": 1})


def test_variants_cover_every_choice_of_a_model():
    labels = {variant.label for variant in Subject(registry().models["e88"]).variants}
    assert {"default", "decay=none", "tie_kv=True", "head_mix=per_head", "nonlinearity=linear"} <= labels
    labels = {variant.label for variant in Subject(registry().models["e74"]).variants}
    assert {"block_size=4", "update=ntm", "gate=retain", "use_conv=True"} <= labels
    fixed = Subject(registry().models["e61"], {"form": "tied", "tanh": True}).variants
    assert [variant.label for variant in fixed] == ["default", "use_conv=True"]
    assert all(variant.cfg.form == "tied" and variant.cfg.tanh for variant in fixed)


def test_a_suite_leaves_the_process_as_it_was():
    before = torch.get_rng_state(), torch.get_num_threads(), dict(os.environ), torch.empty
    for one, two in pairwise([Suite("e0"), Suite("e0")]):
        for check in CHECKS[:-2]:
            first, second = one.result(check.id), two.result(check.id)
            assert (first.status, first.message) == (second.status, second.message)
    after = torch.get_rng_state(), torch.get_num_threads(), dict(os.environ), torch.empty
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_unwritten_memory_reads_as_nan():
    given = torch.zeros(3)
    with nan_filled():
        floats = (
            torch.empty(3),
            torch.empty_like(given),
            given.new_empty(3),
            given.new_empty_strided((3,), (1,)),
        )
        assert all(tensor.isnan().all() for tensor in floats)
        assert torch.empty(3, dtype=torch.long).dtype == torch.long
    assert relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")


def test_a_backend_that_refuses_is_named_in_the_note(monkeypatch, check_model):
    from rnn_lab.kernels.dispatch import Backend

    shy = Backend("shy", RECURRENCE.reference, lambda *args: "needs a GPU")
    monkeypatch.setattr(RECURRENCE, "backends", [shy])
    with pytest.raises(RefusedError, match="needs a GPU"), forced("recurrence", "shy"):
        Suite("e61").subject.layer(Suite("e61").subject.variants[0].cfg)(torch.zeros(1, 1, 24))
    (result,) = check_model("e61", only=["backends"])
    assert (result.status, result.message) == ("pass", "recurrence/shy cannot run here: needs a GPU")


def test_pytest_starts_without_torch():
    done = run("-c", "import sys, rnn_lab.testing.pytest_plugin; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_plugin_runs_the_suite_in_three_lines(tmp_path):
    models, tests = tmp_path / "models", tmp_path / "test_mycell.py"
    models.mkdir()
    text = registry().models["e61"].path.read_text()
    (models / "mycell.py").write_text(re.sub(r"(?ms)^Aliases.*?(?=^Source)", "", text))
    tests.write_text(THIRD_PARTY_TESTS)
    options = ("-q", "-p", "no:cacheprovider", "-k", "discovery or config or count")
    done = run("-m", "pytest", *options, str(tests), "--rootdir", str(tmp_path), RNN_LAB_PLUGINS_DIR=str(models))
    assert "3 passed" in done.stdout, done.stdout + done.stderr
    broken = text.replace("tanh: bool = Field(False, description=", "tanh: bool = Field(False, title=")
    (models / "mycell.py").write_text(re.sub(r"(?ms)^Aliases.*?(?=^Source)", "", broken))
    done = run("-m", "pytest", *options, str(tests), "--rootdir", str(tmp_path), RNN_LAB_PLUGINS_DIR=str(models))
    assert "mycell: [default] fields without a description: tanh" in done.stdout, done.stdout
