"""Libraries' dense recurrences beside ours: which are the same function, on the same weights."""

import pytest
import torch
from rnn_lab.bench import dense_peers
from rnn_lab.bench.calls import PEER_LIMITS, compare
from rnn_lab.bench.cases import Source
from rnn_lab.bench.peers import implementations
from rnn_lab.config import ModelSection
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry

CASES = {
    "e1": ("RNN", "peer"), "gru": ("GRU", "peer"), "lstm": ("LSTM", "peer"), "e42": ("RNN", "yardstick"),
    "e66": ("RNN", "yardstick"),
}  # fmt: skip


def case_of(name, dtype=torch.bfloat16, **fields):
    spec = model_spec(ModelSection(name=name, depth=1, fields={"dim": 16, "expansion": 1} | fields), registry())
    return Source(name, spec, dtype, torch.device("cpu")).case("recurrence", 3, 7)


@pytest.mark.parametrize("name", CASES)
def test_cudnn_is_a_peer_where_the_function_is_the_same(name):
    case, (module, kind) = case_of(name), CASES[name]
    found = {one.name: one for one in implementations(case) if one.name.startswith(("cuDNN", "plain loop"))}
    assert {(n, one.kind) for n, one in found.items()} == {
        ("plain loop bfloat16", "peer"), (f"cuDNN {module} float16", kind), (f"cuDNN {module} bfloat16", kind),
    }  # fmt: skip
    for one in found.values():
        errors = compare(one.fast(case), one.exact(case).forward_backward())
        assert 1e-5 < errors[0] < PEER_LIMITS[0] and errors[1] < PEER_LIMITS[1], (one.name, errors)
        if one.kind == "peer" and "cuDNN" in one.name:
            assert "our weights" in one.note


@pytest.mark.parametrize("name", ["e1", "gru", "lstm"])
def test_it_runs_on_our_recurrent_weights(name):
    case = case_of(name)
    (cell,) = [dense_peers.GATES[dense_peers.gates_of(case)]]
    module, _ = dense_peers._module(cell, torch.float32, case)
    assert torch.equal(module.weight_hh_l0, case.args[2].weights[0])


def test_another_function_is_caught(monkeypatch):
    """What is called a peer and is none fails its check."""
    monkeypatch.setattr(dense_peers, "_is_ours", lambda case, gates: True)
    case = case_of("e42")
    (one,) = [one for one in implementations(case) if one.name == "cuDNN RNN float16"]
    assert compare(one.fast(case), one.exact(case).forward_backward())[0] > PEER_LIMITS[0]


def test_in_fp32_there_is_no_loop_of_16_bits():
    names = [one.name for one in implementations(case_of("e1", torch.float32))]
    assert "cuDNN RNN float32" in names and not any(name.startswith("plain loop") for name in names)
