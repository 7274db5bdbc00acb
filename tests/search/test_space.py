"""The space follows from the model; every point of it has a shape on target or a reason."""

import random

import pytest
from rnn_lab.config import Layer, resolve
from rnn_lab.errors import ConfigError
from rnn_lab.modelspec import model_spec
from rnn_lab.registry import registry
from rnn_lab.search.shapes import Infeasible, Wish, nearest_shape
from rnn_lab.search.space import parse_spec, read_space
from rnn_lab.sizing import shapes_on_target


def keys(plan):
    return [dimension.key for dimension in plan.space]


def point(plan, rng):
    """A point drawn evenly."""
    values = {}
    for d in plan.space:
        if d.kind == "choice":
            values[d.key] = rng.choice(d.values)
        else:
            value = rng.uniform(d.low, d.high)
            values[d.key] = round(value) if d.kind == "int" else value
    return values


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("e61", ["model.depth", "model.expansion"]),
        ("e5", ["model.depth", "model.rank"]),
        ("e74", ["model.depth", "model.expansion", "model.n_state", "model.gate"]),
        ("e88", ["model.depth", "model.n_heads", "model.n_state", "model.gate", "model.write_gate"]),
        ("mamba2", ["model.depth", "model.n_state"]),
    ],
)
def test_the_default_space_is_shape_and_optimizer(plan, model, expected):
    made = plan(model={"name": model, "target": "1M"})
    optimizer = ["lr", "weight_decay", "beta1", "beta2", "warmup_steps"]
    assert keys(made) == expected + [f"optimizer.{name}" for name in optimizer]


def test_held_fields_do_not_move(plan):
    assert keys(plan("shape", model={"expansion": 1.0})) == ["model.depth"]
    assert keys(plan("shape", model={"name": "e74", "target": 5_025_120, "n_state": 16, "depth": 8})) == [
        "model.expansion", "model.gate",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="expansion is held"):
        plan("expansion=1:2", model={"expansion": 1.0})


@pytest.mark.parametrize("model", ["e61", "e5", "e74", "e88", "mamba2", "gdn", "llama", "mingru"])
def test_every_point_is_on_target_or_has_a_reason(plan, model):
    made = plan(model={"name": model, "target": "5M"})
    rng, reached = random.Random(0), 0
    for _ in range(12):
        try:
            candidate = made.candidate(point(made, rng))
        except Infeasible as error:
            assert "5,000,000" in str(error) or "contradictory" in str(error) or "diverge" in str(error)
            continue
        reached += 1
        spec = model_spec(resolve([Layer("trial", candidate.tables)]).config.model, registry())
        assert spec.certificate.params == candidate.params, "counted on the meta device"
        assert abs(candidate.params - 5_000_000) <= 0.005 * 5_000_000
    assert reached >= 6


def test_the_default_point_is_the_default_configuration(plan):
    made = plan("shape", "lr", "beta1", "beta2")
    start = made.default_point()
    assert start["optimizer.lr"] == made.default.resolved.config.optimizer.lr
    assert made.candidate(start).tables == made.default_candidate().tables


def test_betas_are_sampled_by_what_they_leave_out(plan):
    made = plan("beta2=0.9:0.999")
    (dimension,) = made.space
    assert (dimension.low, dimension.high, dimension.log) == (pytest.approx(0.001), pytest.approx(0.1), True)
    assert made.candidate({"optimizer.beta2": 0.05}).tables["optimizer"]["betas"] == [0.9, 0.95]


def test_a_list_is_held_exactly_and_a_range_is_followed(plan):
    exact = plan("depth=3", "expansion=1.0")
    with pytest.raises(Infeasible, match="depth = 3"):
        exact.candidate({"model.depth": 3, "model.expansion": 1.0})
    near = plan("depth=3:12", "expansion=1:2", model={"target": "20M"})
    model = near.candidate({"model.depth": 3, "model.expansion": 1.0}).tables["model"]
    assert 3 <= model["depth"] <= 5 and model["expansion"] <= 1.5


def test_the_nearest_shape_is_the_nearest():
    layer = registry().find_model("e61")[0].load()
    every = shapes_on_target(layer, {}, {}, 100_000_000)
    assert len(every) > 20 and all(abs(shape.params - 1e8) <= 5e5 for shape in every)
    for depth in (6, 13, 30):
        shape = nearest_shape(layer, {}, {}, 100_000_000, {"depth": Wish(depth)})
        assert abs(shape.depth - depth) == min(abs(other.depth - depth) for other in every)
    wide = nearest_shape(layer, {}, {}, 100_000_000, {"depth": Wish(13), "expansion": Wish(2.0)})
    assert wide.fields["expansion"] >= 1.75
    assert wide.fields["dim"] * wide.fields["expansion"] % 8 == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lrr", "no such field.*'lr'"),
        ("lr=1e-2:1e-4", "not below"),
        ("lr=0:1:log", "begins above 0"),
        ("lr=1:2:3", "expected NAME"),
        ("lr=", "expected NAME"),
        ("lr=-1,1", "lr = -1"),
        ("beta1=0.5:1", "1 left out"),
        ("depth=0,2", "whole number"),
        ("gate", "no such field"),
        ("spectral_radius", "no such field"),
        ("optimizer.eps", "no default range"),
        ("shape=1:2", "takes no range"),
        ("form=convex,wrong", "form = 'wrong'"),
    ],
)
def test_wrong_dimensions_are_named(plan, spec, message):
    with pytest.raises(ConfigError, match=message):
        plan(spec)


def test_the_model_comes_before_the_optimizer(plan):
    e70 = {"name": "e70", "target": "5M"}
    assert keys(plan("decay=0.5:0.9", model=e70)) == ["model.decay"]
    assert keys(plan("optimizer.decay", model=e70)) == ["optimizer.decay"]


def test_a_file_says_the_same(tmp_path, plan):
    path = tmp_path / "space.toml"
    path.write_text('[space]\nlr = { low = 1e-4, high = 1e-2, log = true }\nform = ["convex", "tied"]\ndepth = true\n'
                    "optimizer.eps = [1e-8, 1e-6]\n")  # fmt: skip
    specs = read_space(path)
    typed = dict(map(parse_spec, ["lr=1e-4:1e-2:log", "form=convex,tied", "depth", "optimizer.eps=1e-8,1e-6"]))
    assert specs == typed
    for text, message in [("[spaces]\n", "one table"), ("[space]\nlr = 3\n", "expected true"),
                          ("[space]\nlr = { lo = 1 }\n", "unknown key")]:  # fmt: skip
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_space(path)


def test_a_search_is_checked_before_it_begins(plan):
    with pytest.raises(ConfigError, match="needs a parameter target"):
        plan("lr", model={"target": None, "dim": 32})
    with pytest.raises(ConfigError, match="needs 100 steps"):
        plan("lr", metric="last100")
    assert plan("lr", pruner=None).pruner == "median"
    assert plan("lr", pruner=None, train={"steps": None, "minutes": 1}).pruner == "none"


def test_two_searches_that_differ_have_two_names(plan):
    name = plan("lr").name
    assert plan("lr").name == name
    assert plan("lr", train={"device": "auto"}).name == name, "workers may run on different devices"
    others = [plan("lr", seed=1), plan("lr=1e-4:1e-2"), plan("lr", train={"seed": 1}), plan("lr", sampler="tpe")]
    assert len({name, *(other.name for other in others)}) == 5
