"""Sixteen thousand steps: kernels beside the plain loop in fp64, and a training step that fits."""

import pytest
import torch
from rnn_lab.kernels import dispatch
from rnn_lab.registry import registry
from rnn_lab.tensors import relative_error

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

T = 16384
MODELS = {
    "e61": {}, "e64": {}, "e68": {}, "mingru": {}, "minlstm": {}, "e74d": {}, "e74": {"n_state": 16}, "gdn": {},
    "mamba2": {"n_state": 64}, "e70": {"n_state": 16}, "e88": {"n_heads": 2, "n_state": 16},
}  # fmt: skip


def layer_of(name, dtype, **more):
    torch.manual_seed(0)
    ref, alias = registry().find_model(name)
    cls = ref.load()
    return cls(cls.Config(**{"dim": 64, **alias, **MODELS[name], **more})).to("cuda", dtype)


@pytest.mark.parametrize("name", MODELS)
def test_kernels_are_the_plain_loop(name, monkeypatch):
    torch.manual_seed(1)
    x = torch.randn(1, T, 64, device="cuda")
    gradient = torch.randn(1, T, 64, device="cuda", dtype=torch.float64)
    reset = torch.rand(1, T, device="cuda") < 0.001
    found = []
    for dtype, way in ((torch.float32, "auto"), (torch.float64, "reference")):
        monkeypatch.setenv("RNN_LAB_KERNELS", way)
        layer = layer_of(name, dtype)
        given = x.to(dtype, copy=True).requires_grad_()
        y, state = layer(given, None, reset)
        (y * gradient.to(y.dtype)).mean().backward()
        found.append([y, *state.values(), given.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
        if way == "auto":
            assert all(choice.backend != dispatch.REFERENCE for choice in layer.backends.values()), layer.backends
    forward = 1 + len(state)
    for i, (got, want) in enumerate(zip(*found, strict=True)):
        assert relative_error(got, want) < (1e-5 if i < forward else 1e-4)


@pytest.mark.parametrize("name", ["e61", "e68", "e74", "e88", "mamba2"])
def test_a_language_model_of_a_hundred_million_trains(name):
    """One step in bf16, from bytes to gradients, in less than half of an H100's memory."""
    from rnn_lab.config import ModelSection
    from rnn_lab.modelspec import model_spec

    torch.cuda.reset_peak_memory_stats()
    model = model_spec(ModelSection(name=name, target=100_000_000), registry()).build().to("cuda")
    window = torch.randint(0, 256, (1, T + 1), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        logits, _ = model(window[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert torch.cuda.max_memory_allocated() < 40 * 2**30
