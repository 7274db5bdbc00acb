"""What is computed again in backward is what was computed before."""

import pytest
import torch
from rnn_lab.errors import ConfigError
from rnn_lab.remat import Remat

from .conftest import run
from .models import NAMES, assert_equal, carried, filtered, model_of, windows
from .test_resume import facts


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same(name):
    model = model_of(name, depth=3)
    plain = carried(model)
    for remat in (Remat(1), Remat(2, 5)):
        model.walk = remat
        assert_equal(plain, carried(model), atol=1e-9)


def test_less_is_kept():
    def kept(remat):
        model, sizes = model_of(depth=6), []
        model.walk = remat
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            model.loss(windows(T=64))
        return sum(sizes)

    assert kept(Remat(1)) < 0.5 * kept(None)


@pytest.mark.parametrize(("name", "recurrent"), [("e61", "full"), ("e1", "kept")])
def test_a_filter_survives_being_computed_again(name, recurrent):
    plain = filtered(name, recurrent, None)
    assert_equal(plain, filtered(name, recurrent, Remat(1)), atol=1e-12)
    assert_equal(plain, filtered(name, recurrent, Remat(1, 5)), atol=1e-12)


def test_a_run_with_it_is_the_run_without(tiny, tmp_path):
    run(tiny(train={"steps": 3, "carry_state": True}), tmp_path / "a")
    run(tiny(train={"steps": 3, "carry_state": True, "checkpoint_every": 1, "checkpoint_chunk": 6}), tmp_path / "b")
    for one, other in zip(facts(tmp_path / "a"), facts(tmp_path / "b"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    with pytest.raises(ConfigError, match=r"needs train\.checkpoint_every"):
        tiny(train={"checkpoint_chunk": 6})
