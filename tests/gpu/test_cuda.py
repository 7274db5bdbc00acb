"""What only a GPU can show: autocast, device transfer, real memory limits."""

import json

import pytest
import torch
from rnn_lab.config import Layer
from rnn_lab.errors import OutOfMemory
from rnn_lab.lm import LM, LMConfig
from rnn_lab.registry import registry
from rnn_lab.train.checkpoint import load_checkpoint
from rnn_lab.train.resume import resume_run
from rnn_lab.train.run import plan_run, start_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MODELS = sorted(registry().models)


class Quiet:
    def step(self, line, fraction):
        pass

    def note(self, text):
        pass


@pytest.fixture
def plan(tmp_path):
    data = tmp_path / "bytes.bin"
    data.write_bytes(bytes(range(32, 127)) * 400)

    def make(model, train, **sections):
        values = {"model": model, "data": {"path": str(data)}, "train": train, "log": {"trackers": []}, **sections}
        return plan_run([Layer("test", {"eval": {"tokens": 512}, **values})], registry())

    return make


def build(name, device, dtype):
    torch.manual_seed(0)
    layer = registry().models[name].load()
    return LM(layer, layer.Config(dim=64), LMConfig(depth=2)).to(device, dtype)


def relative(a, b):
    return ((a.double().cpu() - b.double().cpu()).norm() / b.double().cpu().norm()).item()


@pytest.mark.parametrize("name", MODELS)
def test_fp32_on_the_gpu_equals_fp64_on_the_cpu(name):
    torch.manual_seed(1)
    tokens = torch.randint(0, 256, (3, 42))
    reset = torch.rand(3, 41) < 0.1
    ours, exact = build(name, "cuda", torch.float32), build(name, "cpu", torch.float64)
    exact.load_state_dict(ours.state_dict())
    loss, states = ours.loss(tokens.cuda(), None, reset.cuda())
    loss.backward()
    expected, expected_states = exact.loss(tokens, None, reset)
    expected.backward()
    assert relative(loss, expected) < 1e-5
    for state, other in zip(states, expected_states, strict=True):
        assert all(relative(state[k], other[k]) < 1e-5 for k in other)
    for (n, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        if q.grad is not None and q.grad.norm() > 1e-9:
            assert relative(p.grad, q.grad) < 1e-4, n


@pytest.mark.parametrize("name", MODELS)
def test_bf16_training_falls_and_resumes(name, plan, tmp_path):
    train = {"batch_size": 8, "seq_len": 64, "device": "cuda"}
    made = plan({"name": name, "dim": 64, "depth": 2}, {**train, "steps": 30}, optimizer={"lr": 3e-3})
    result = start_run(made, tmp_path / "r", registry(), Quiet())
    first = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert result["dtype"] == "bfloat16" and result["device"].startswith("cuda") and result["loss"] < first - 0.5
    assert result["peak_memory_bytes"] > 0
    saved = load_checkpoint(tmp_path / "r" / "checkpoints" / "step_30")
    assert {t.dtype for n, t in saved.tensors["model"].items()} == {torch.float32}
    assert resume_run(tmp_path / "r", {"steps": 33}, registry(), Quiet())["steps"] == 33


def test_out_of_memory_is_a_status_with_advice(plan, tmp_path):
    made = plan({"name": "e61", "dim": 2048, "depth": 8}, {"batch_size": 4096, "seq_len": 4096, "steps": 2})
    with pytest.raises(OutOfMemory, match="use --grad-accum 2"):
        start_run(made, tmp_path / "r", registry(), Quiet())
    assert json.loads((tmp_path / "r" / "result.json").read_text())["status"] == "oom"
