"""The shell of E74's seed runs, against the same steps written out."""

import pytest
import torch
from rnn_lab.config import ModelSection
from rnn_lab.errors import ConfigError
from rnn_lab.layers import ProjectedConfig, ProjectedLayer
from rnn_lab.lm import LM, LMConfig, counted_params, lm_n_params
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry
from torch.nn import functional as F

D, DEPTH = 16, 3


class Cell(ProjectedLayer):
    Config = ProjectedConfig

    @classmethod
    def cell_parts(cls, cfg):
        return {}

    def inputs(self, x_BTd):
        return (x_BTd,)

    @staticmethod
    def update(h, x):
        return torch.tanh(h + x)


class Own(Cell):
    """Takes the residual stream and gives it back."""

    @classmethod
    def normalises_input(cls, cfg):
        return True

    def forward(self, x_BTD, state=None, reset_BT=None):
        y_BTD, state = super().forward(x_BTD, state, reset_BT)
        return 3 * x_BTD + y_BTD, state


def model(shell, dim=D, depth=DEPTH):
    torch.manual_seed(0)
    return LM(Cell, ProjectedConfig(dim=dim), LMConfig(depth=depth, shell=shell)).double()


def test_the_seed_shell_doubles_the_embedding_and_centres_before_layers():
    lm = model("e74")
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.normal_()
    tokens = torch.randint(0, 256, (2, 7))
    r = 2 * lm.embedding.weight[tokens]
    for norm, layer in zip(lm.norms, lm.layers, strict=True):
        centred = r - r.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        r = r + layer(x)[0]
    x = r / (r.square().mean(-1, keepdim=True) + 1e-6).sqrt() * lm.final_norm.weight
    torch.testing.assert_close(lm(tokens)[0], F.linear(x, lm.embedding.weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shell", "times", "eps"), [("common", 1, 1e-5), ("e74", 2, 1e-6)])
def test_a_layer_with_a_norm_of_its_own_takes_and_returns_the_stream(shell, times, eps):
    lm = LM(Own, ProjectedConfig(dim=D), LMConfig(depth=DEPTH, shell=shell)).double()
    tokens = torch.randint(0, 256, (2, 7))
    r = times * lm.embedding.weight[tokens]
    for layer in lm.layers:
        r = layer(r)[0]
    x = r / (r.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(lm(tokens)[0], F.linear(x, lm.embedding.weight), rtol=1e-12, atol=1e-12)


def test_the_seed_shell_draws_projections_from_a_normal():
    seed, common = model("e74", 64, 1), model("common", 64, 1)
    for name in ("in_proj", "out_proj"):
        drawn, xavier = (getattr(lm.layers[0], name).weight for lm in (seed, common))
        assert drawn.std().item() == pytest.approx(0.02, rel=0.1)
        assert drawn.abs().max() > 0.05
        assert xavier.abs().max() <= (6 / 128) ** 0.5


def test_both_shells_count_the_same():
    counts = [counted_params(model(shell)) for shell in ("common", "e74")]
    assert counts[0] == counts[1] == lm_n_params(Cell, ProjectedConfig(dim=D), LMConfig(depth=DEPTH, shell="e74"))


def test_a_section_sets_the_shell_and_a_table_keeps_it():
    section = ModelSection(name="e74", depth=2, shell="e74", fields={"dim": 16, "n_state": 8, "activation": "none"})
    spec = model_spec(section, registry())
    assert spec.lm_cfg.shell == spec.table()["shell"] == "e74"
    assert "shell" not in model_spec(ModelSection(name="e74", fields={"dim": 16}), registry()).table()


def test_the_seed_shell_has_no_layer_norm_with_bias():
    with pytest.raises(ConfigError, match="takes no norm = layer"):
        model_spec(ModelSection(name="e74", norm="layer", shell="e74", fields={"dim": 16}), registry())
