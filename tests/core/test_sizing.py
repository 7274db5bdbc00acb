"""The solver and the certificate, on layers whose count is plain."""

import pytest
from rnn_lab import sizing
from rnn_lab.config import StrictModel
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.layer import SearchSpace
from rnn_lab.lm import LMConfig, lm_n_params
from rnn_lab.registry import registry
from rnn_lab.sizing import Certificate, certify, solve


class Square:
    """One matrix of dim^2 * width parameters."""

    class Config(StrictModel):
        dim: int = 64
        width: int = 1

    @classmethod
    def n_params(cls, cfg):
        return {"W": cfg.width * cfg.dim**2}

    @classmethod
    def normalises_input(cls, cfg):
        return False

    @classmethod
    def search_space(cls, cfg):
        return SearchSpace(choices={"width": (1, 2)})


def count(dim, depth, width=1):
    return sum(lm_n_params(Square, Square.Config(dim=dim, width=width), LMConfig(depth=depth)).values())


def shape(target, fields=None, **lm_fields):
    cfg, lm_cfg = solve(Square, fields or {}, lm_fields, target)
    return cfg.dim, lm_cfg.depth, cfg.width


@pytest.mark.parametrize("depth", [2, 7, 48])
@pytest.mark.parametrize("off", [-100, 0, 100])
def test_the_depth_on_either_side_is_found(depth, off):
    assert shape(count(64, depth) + off, {"dim": 64, "width": 1}) == (64, depth, 1)


def test_depths_stay_within_what_the_model_allows():
    assert sizing._depths({}, (2, 48), 7.4) == {7, 8}
    assert sizing._depths({}, (2, 48), -3.0) == {2}
    assert sizing._depths({}, (2, 48), 99.5) == {48}
    assert sizing._depths({"depth": 60}, (2, 48), 7.4) == {60}


@pytest.mark.parametrize("dim", [16, 1024, 4096])
def test_wide_and_shallow_shapes_are_searched_too(dim):
    assert shape(count(dim, 2), {"width": 1}, depth=2) == (dim, 2, 1)


def test_what_is_held_is_held():
    cfg, lm_cfg = solve(Square, {"width": 2, "dim": 96}, {"depth": 5}, 1_000_000)
    assert (cfg.dim, cfg.width, lm_cfg.depth) == (96, 2, 5)


def test_without_any_shape_the_fields_are_named(monkeypatch):
    monkeypatch.setattr(sizing, "_dims", lambda layer_cls, fields: iter(()))
    with pytest.raises(ConfigError, match=r"no shape of this model fits the fields \{'width': 2\}"):
        solve(Square, {"width": 2}, {}, 1_000_000)


def candidate(target, off=0.0, dim=64, depth=None, rank=0):
    return sizing._Candidate(round(target * (1 + off)), dim, depth or sizing.preferred_depth(target), (), rank)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"off": 0.005}, {"off": 0.0051}),
        ({"off": 0.0049, "depth": 20}, {"depth": 40}),
        ({"off": 0.001}, {"off": -0.0011}),
        ({"off": 0.0025}, {"off": 0.0026}),
        ({"off": 0.0009, "dim": 640}, {"dim": 656}),
        ({"dim": 640, "rank": 1}, {"dim": 656}),
        ({"off": 0.0009}, {"rank": 1}),
        ({"off": 0.0009}, {"depth": 17}),
        ({"off": 0.0001}, {"off": 0.0002}),
        ({"dim": 64}, {"dim": 128}),
    ],
)
def test_candidates_are_ranked_as_documented(better, worse):
    target = 50_000_000
    assert sizing._rank(candidate(target, **better), target) < sizing._rank(candidate(target, **worse), target)


def test_below_50_million_a_width_need_be_no_multiple_of_64():
    small, target = 49_999_999, 50_000_000
    aligned, nearer = {"dim": 640, "off": 0.0009}, {"dim": 656}
    assert sizing._rank(candidate(small, **nearer), small) < sizing._rank(candidate(small, **aligned), small)
    assert sizing._rank(candidate(target, **nearer), target) > sizing._rank(candidate(target, **aligned), target)


@pytest.mark.parametrize(
    ("params", "on_target"),
    [(100_000, True), (100_500, True), (99_500, True), (100_501, False), (99_499, False), (104_000, False)],
)
def test_on_target_is_half_a_percent(params, on_target):
    assert Certificate(100_000, params, {}).on_target is on_target
    assert Certificate(None, params, {}).on_target


@pytest.mark.parametrize("off", [-1, 1])
def test_a_closed_form_that_is_one_off_is_no_certificate(off):
    real = registry().models["e1"].load()

    class Off(real):
        @classmethod
        def n_params(cls, cfg):
            (name, n), *rest = super().n_params(cfg).items()
            return {name: n + off, **dict(rest)}

    cfg, lm_cfg = real.Config(dim=16), LMConfig(depth=1)
    right = certify(real, cfg, lm_cfg, None)
    assert right.params == sum(right.breakdown.values())
    (name, n), *_ = real.n_params(cfg).items()
    with pytest.raises(RnnLabError, match=rf"layers\.{name}: closed form {n + off:,}, counted {n:,}$"):
        certify(Off, cfg, lm_cfg, None)


@pytest.mark.parametrize(
    ("extra", "says"), [({"ghost": 3}, "closed form 3, counted 0"), ({}, "closed form 0, counted")]
)
def test_a_component_that_only_one_side_has_is_no_certificate(extra, says):
    real = registry().models["e1"].load()

    class Off(real):
        @classmethod
        def n_params(cls, cfg):
            parts = super().n_params(cfg)
            return {**parts, **extra} if extra else dict(list(parts.items())[1:])

    with pytest.raises(RnnLabError, match=says):
        certify(Off, real.Config(dim=16), LMConfig(depth=1), None)
