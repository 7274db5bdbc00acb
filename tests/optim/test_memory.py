"""Bytes of state: measured equal to predicted, and the tables that the claims are judged by."""

import json

import pytest
import torch
from rnn_lab.config import Layer, OptimizerSection
from rnn_lab.optim.memory_model import VARIANTS, memory_table
from rnn_lab.optim.plan import wider_rank
from rnn_lab.optim.state_bytes import measured, predicted
from rnn_lab.registry import registry
from rnn_lab.train.run import plan_run
from torch import nn

from .small import gradients, small

SETTINGS = {"galore_min_dim": 16, "galore_rank": 8, "block_size": 128}


@pytest.mark.parametrize(("label", "name", "changes"), VARIANTS, ids=[v[0] for v in VARIANTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measured_is_predicted(label, name, changes, dtype):
    model = small(dtype, dim=64, wide=96, vocab=64)
    section = OptimizerSection(name=name, muon_heads=True, **SETTINGS, **changes)
    optimizer = registry().load("optimizers", name)(model, section)
    getattr(optimizer, "train", lambda: None)()
    for step in range(2):
        gradients(model, step)
        optimizer.step()
    assert measured(optimizer) == predicted(model.to("meta"), name, section)


def test_gum_is_predicted_step_by_step():
    section = OptimizerSection(
        name="galore_muon", galore_debias="gum", galore_gum_share=0.5, galore_update_freq=1, **SETTINGS
    )
    model = small(dim=64, wide=96)
    optimizer = registry().load("optimizers", "galore_muon")(model, section)
    seen = set()
    for taken in range(1, 6):
        gradients(model, taken)
        optimizer.step()
        assert measured(optimizer) == predicted(model, "galore_muon", section, taken)
        seen.add(sum(measured(optimizer).values()))
    assert len(seen) > 1


def test_shared_and_wrapped_tensors_count_once():
    class Projector:
        def __init__(self):
            self.basis = torch.zeros(10)

    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=1)
    one = torch.zeros(5)
    optimizer.state[p].update(a=one, b=[one], projector=Projector(), step=3)
    assert sum(measured(optimizer).values()) == 4 * 15


class Shape(nn.Module):
    """Square or given matrices per layer on the meta device, embedding and head."""

    def __init__(self, depth, dim, matrices, vocab, untied):
        super().__init__()
        with torch.device("meta"):
            self.embedding = nn.Embedding(vocab, dim)
            self.head = nn.Linear(dim, vocab, bias=False) if untied else None
            self.layers = nn.ModuleList(
                nn.ModuleList(nn.Linear(m, n, bias=False) for m, n in matrices) for _ in range(depth)
            )


def reductions(model, block=2048, rank=256, force=False):
    section = OptimizerSection(block_size=block, galore_rank=rank, galore_force=force)
    return {row["label"]: row for row in memory_table(model, section)["variants"]}


def test_the_3b_table():
    d, ff = 2560, 6848
    model = Shape(32, d, 4 * [(d, d)] + 2 * [(d, ff)] + [(ff, d)], 32000, untied=True)
    rows = reductions(model)
    found = [
        (rows[label]["bytes"] / 1e9, 100 * rows[label]["vs_muon"], 100 * rows[label]["vs_adamw"])
        for label in (
            "Muon",
            "8-bit Muon",
            "8-bit Muon, 8-bit AdamW",
            "GaLore-Muon",
            "8-bit GaLore-Muon",
            "8-bit GaLore-Muon, 8-bit AdamW",
        )
    ]
    published = [
        (11.40, 0, 46.9), (3.84, 66.3, 82.1), (2.86, 74.9, 86.7), (2.91, 74.5, 86.5), (1.86, 83.7, 91.4),
        (0.88, 92.3, 95.9),
    ]  # fmt: skip
    for ours, theirs in zip(found, published, strict=True):
        assert ours == pytest.approx(theirs, abs=0.06), (ours, theirs)
    assert rows["AdamW"]["bytes"] / 1e9 == pytest.approx(21.49, abs=0.01)


@pytest.mark.parametrize(
    ("depth", "dim", "published"),
    [
        (12, 1024, [(73.3, 86.5), (24.5, 61.8), (48.9, 74.2), (79.5, 89.6), (81.1, 90.4)]),
        (11, 1536, [(73.8, 86.8), (49.2, 74.4), (65.6, 82.7), (86.1, 93.0), (87.3, 93.6)]),
        (11, 3328, [(74.4, 87.2), (76.4, 88.1), (84.0, 92.0), (93.5, 96.8), (94.1, 97.0)]),
    ],
)
def test_the_table_of_byte_models(depth, dim, published):
    rows = reductions(Shape(depth, dim, 4 * [(dim, dim)], 256, untied=True))
    labels = ("8-bit Muon", "GaLore-AdamW", "GaLore-Muon", "8-bit GaLore-Muon", "8-bit GaLore-Muon, 8-bit AdamW")
    for label, theirs in zip(labels, published, strict=True):
        ours = 100 * rows[label]["vs_muon"], 100 * rows[label]["vs_adamw"]
        assert ours == pytest.approx(theirs, abs=0.25), label
    assert rows["GaLore-Muon"]["whole_share"] == 0


def test_at_512_the_seeds_rank_saves_nothing():
    model = Shape(48, 512, 4 * [(512, 512)], 256, untied=True)
    rows = reductions(model)
    assert rows["GaLore-Muon"]["whole_share"] == 1 and rows["GaLore-Muon"]["vs_muon"] == 0
    forced = reductions(model, force=True)
    assert 100 * forced["GaLore-Muon"]["vs_muon"] == pytest.approx(0, abs=0.1)


def test_an_optimizers_own_defaults_are_a_layer():
    def planned(**optimizer):
        values = {"model": {"name": "e61", "dim": 16, "depth": 2}, "optimizer": optimizer, "train": {"device": "cpu"}}
        return plan_run([Layer("test", values)], registry())

    plan = planned(name="muon8bit")
    assert (plan.resolved.config.optimizer.lr, plan.resolved.config.optimizer.weight_decay) == (0.02, 0.01)
    assert plan.origins()["optimizer.lr"] == "default of muon8bit"
    assert planned(name="muon", lr=0.01).resolved.config.optimizer.lr == 0.01
    assert planned(name="muon", muon_scale="match_rms_adamw").resolved.config.optimizer.lr == 0.003
    assert planned(name="adamw").resolved.config.optimizer.lr == 3e-4


def test_the_page_is_json():
    page = memory_table(small(), OptimizerSection(name="of_a_plugin"))
    assert page["configured"]["state"] is None and page["routing"] == []
    json.dumps(page, allow_nan=False)


def test_a_wider_rank_saves_in_every_projected_matrix():
    def wider(**changes):
        return wider_rank(small(dim=64, wide=96), OptimizerSection(name="galore_muon", galore_min_dim=16, **changes))

    assert wider(galore_rank=8) == 16
    assert wider() == wider(galore_rank=20) == 31  # a quarter of 64, and 32 of 64 x 64 would save nothing
    assert wider(galore_rank=31) is None and wider_rank(small(), OptimizerSection(name="muon")) is None
