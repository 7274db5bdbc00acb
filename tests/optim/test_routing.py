"""Who updates what: by declared role, never by shape."""

import pytest
import torch
from rnn_lab.config import ModelSection
from rnn_lab.errors import PluginError
from rnn_lab.modelspec import model_spec
from rnn_lab.optim.routing import Piece, routes, routing_table
from rnn_lab.registry import registry
from torch import nn

from .small import Small


def of(name, **fields):
    depth = fields.pop("depth", 2)
    spec = model_spec(ModelSection(name=name, fields={"dim": 256, **fields}, depth=depth), registry())
    with torch.device("meta"):
        return routes(spec.build())


def test_matrices_of_256_rows_are_matrices_and_the_embedding_is_none():
    found = of("e61", expansion=1.0)
    assert found["layers.0.leak.weight"].shape == found["embedding.weight"].shape == (256, 256)
    assert found["layers.0.leak.weight"].pieces == (Piece(0, 1, 256, 256),)
    assert found["embedding.weight"].pieces == () == found["layers.0.leak.bias"].pieces
    assert found["embedding.weight"].reason == "outside the layers"


@pytest.mark.parametrize("name", sorted(registry().models))
def test_every_model_declares_its_matrices(name):
    found = of(name, dim=64, depth=1)
    matrices = {each: route for each, route in found.items() if route.pieces}
    assert matrices and all(each.startswith("layers.") for each in matrices)
    assert all(sum(p.count * p.rows * p.columns for p in route.pieces) == route.numel for route in matrices.values())
    for each, route in found.items():
        assert not route.pieces or not each.endswith(("bias", "A_log", "dt_bias", "conv.weight", "norm", "norm_weight"))


def test_stacked_maps_are_matrices_of_their_own():
    assert [p.rows for p in of("gdn")["layers.0.qkv_proj.weight"].pieces] == [256, 256, 512]
    assert [p.rows for p in of("mamba2", depth=1)["layers.0.in_proj.weight"].pieces][:2] == [512, 512]
    lstm = of("lstm")
    assert [p.start for p in lstm["layers.1.W_hh"].pieces] == [0, 512, 1024, 1536]
    assert of("e63")["layers.0.W_h"].reason == "a matrix"


def test_what_is_not_trained_has_no_route():
    assert not any(name.endswith("decay") for name in of("e70"))
    assert of("e74d")["layers.0.in_proj.weight"].pieces


def test_the_default_rule_is_the_module():
    found = routes(Small())
    assert found["layers.0.up.weight"].reason == "a linear map's weight"
    assert [found[f"layers.0.{name}"].pieces for name in ("decay", "heads", "up.bias")] == [(), (), ()]


def test_a_declaration_that_does_not_fit_is_an_error():
    class Part:
        def __init__(self):
            self.matrices = {"weight": (3, 4)}

    class Wrong(nn.Linear):
        cfg = None

        @classmethod
        def parts(cls, cfg):
            return {"inner": Part()}

    model = nn.Module()
    layer = Wrong(2, 2)
    layer.inner = nn.Linear(5, 6)
    model.layers = nn.ModuleList([layer])
    with pytest.raises(PluginError, match=r"layers.0.inner.weight.*\(3, 4\).*\(6, 5\)"):
        routes(model)


def test_the_table_has_one_row_for_what_layers_share():
    found = of("e61", depth=3)
    rows = routing_table((route, "Muon" if route.pieces else "AdamW", route.reason) for route in found.values())
    assert ("layers.*.in_proj.weight", "3 of 512 x 256", 3 * 512 * 256, "Muon", "a matrix") in rows
    assert sum(row[2] for row in rows) == sum(route.numel for route in found.values())


def test_pieces_are_views():
    t = torch.arange(24.0).view(6, 4)
    piece = Piece(1, 1, 5, 4)
    assert piece.shape == (1, 4, 5) and piece.view(t).shape == (1, 4, 5)
    piece.view(t).zero_()
    assert t[0].any() and not t[1:].any()
