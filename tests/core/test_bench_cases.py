"""Cases are recorded from a pass through the kernels that a run would take."""

import torch
from rnn_lab.bench.cases import Source
from rnn_lab.config import ModelSection
from rnn_lab.kernels.dispatch import Backend
from rnn_lab.kernels.recurrence import RECURRENCE
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry


def test_what_runs_while_recording_are_kernels_but_no_captured_loop(monkeypatch):
    called = []

    def backend(name, capturable):
        def run(*args):
            called.append(name)
            return RECURRENCE.reference(*args)

        return Backend(name, run, lambda *_: None, certified=False, capturable=capturable)

    monkeypatch.setattr(RECURRENCE, "backends", [backend("loop", False), backend("kernel", True)])
    spec = model_spec(ModelSection(name="e61", depth=1, fields={"dim": 16}), registry())
    case = Source("e61", spec, torch.float32, torch.device("cpu")).case("recurrence", 2, 4)
    assert called == ["kernel"]
    assert case.op is RECURRENCE
    assert [b.name for b in case.op.backends] == ["loop", "kernel"]
