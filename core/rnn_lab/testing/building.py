"""Checks of a layer as an object: building it, preparing it, saving it."""

import copy
import os
import random
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from rnn_lab.layer import Layer
from rnn_lab.testing.contract import check, expect
from rnn_lab.testing.measure import kernels, nan_filled
from rnn_lab.testing.subject import TIME, Subject


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def _differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [name for name in one if not torch.equal(one[name], other[name])]


def _outputs(subject: Subject, layer: Layer, cfg: Any) -> dict[str, Tensor]:
    """Everything that one pass returns."""
    with torch.no_grad(), nan_filled():
        y_BTD, state = layer(subject.x(cfg), subject.state(cfg))
    return {"output": y_BTD} | {f"state {key}": tensor for key, tensor in state.items()}


@check("deterministic", "one seed gives the same parameters and outputs every time", needs=("shapes",))
def deterministic(subject: Subject, cfg: Any) -> None:
    """Torch's seed alone decides: not Python's or numpy's generators, nor what was built or run before."""
    outside = random.getstate(), np.random.get_state()
    try:
        random.seed(1)
        np.random.seed(1)
        first = subject.plain_layer(cfg)
        before, outputs = _snapshot(first), _outputs(subject, first, cfg)
        random.seed(2)
        np.random.seed(2)
        subject.plain_layer(cfg, seed=1)
        second = subject.plain_layer(cfg)
    finally:
        random.setstate(outside[0])
        np.random.set_state(outside[1])
    changed = _differences(before, _snapshot(second))
    expect(not changed, f"two layers built from one seed differ in {changed}")
    changed = _differences(outputs, _outputs(subject, second, cfg))
    expect(not changed, f"two equal layers differ in {changed}")


@check("prepare", "a pass changes nothing; prepare changes buffers only", needs=("deterministic",))
def prepare(subject: Subject, cfg: Any) -> None:
    """Parameters, buffers, input and given state survive a pass; two passes and two prepares agree."""
    layer = subject.layer(cfg)
    before, x_BTD, given = _snapshot(layer), subject.x(cfg), subject.state(cfg)
    kept = {"x": x_BTD.clone()} | {key: tensor.clone() for key, tensor in given.items()}
    layer(x_BTD, given)
    changed = _differences(before, _snapshot(layer))
    expect(not changed, f"a pass changes {changed}: what advances belongs in prepare()")
    changed = _differences(kept, {"x": x_BTD} | given)
    expect(not changed, f"a pass writes into its arguments: {changed}")
    changed = _differences(_outputs(subject, layer, cfg), _outputs(subject, layer, cfg))
    expect(not changed, f"two passes on the same input differ in {changed}")
    twin = copy.deepcopy(layer)
    layer.prepare()
    twin.prepare()
    changed = _differences(_snapshot(layer), _snapshot(twin))
    expect(not changed, f"prepare is not deterministic: {changed}")
    parameters = dict(layer.named_parameters())
    changed = [name for name in _differences(before, _snapshot(layer)) if name in parameters]
    expect(not changed, f"prepare changes parameters: {changed}")


@check("save-load", "a checkpoint restores the outputs and does not depend on a backend", needs=("prepare",))
def save_load(subject: Subject, cfg: Any) -> None:
    """A safetensors round trip into a layer of another seed; names and shapes agree under every setting."""
    chosen = os.environ.get("RNN_LAB_KERNELS")
    saved = subject.layer(cfg, seed=0)
    outputs = _outputs(subject, saved, cfg)
    raw = safetensors.torch.save({k: v.contiguous() for k, v in saved.state_dict().items()})
    layouts = {}
    for setting in dict.fromkeys(("reference", None, "auto", "require", chosen)):
        with kernels(setting):
            layer = subject.layer(cfg, seed=1)
        layouts[setting] = {name: tuple(t.shape) for name, t in layer.state_dict().items()}
        expect(
            layouts[setting] == layouts["reference"],
            f"RNN_LAB_KERNELS={setting} changes names or shapes: "
            f"{sorted(set(layouts[setting].items()) ^ set(layouts['reference'].items()))}",
        )
        layer.load_state_dict(safetensors.torch.load(raw))
        changed = _differences(outputs, _outputs(subject, layer, cfg))
        expect(not changed, f"a restored layer differs in {changed} (T = {TIME})")
