"""The rate of every step."""

import pytest
import torch
from rnn_lab.config import TrainSection
from rnn_lab.errors import ConfigError
from rnn_lab.sections import ScheduleSection
from rnn_lab.train.schedule import Schedule, accept_schedule
from schedulefree import AdamWScheduleFree

from .conftest import Recorder, run


def schedule(**values):
    train = {key: values.pop(key) for key in ("steps", "minutes", "tokens") if key in values}
    return Schedule(ScheduleSection(**values), TrainSection(**train))


def test_wsd_has_the_values_of_its_formula():
    wsd = schedule(type="wsd", warmup=100, stable_ratio=0.8, min_lr_ratio=0.1, steps=1000)
    assert [wsd.factor(k, 0) for k in (0, 49, 99, 500, 800)] == [0.01, 0.5, 1, 1, 1]
    assert wsd.factor(900, 0) == pytest.approx(0.55)
    assert wsd.factor(999, 0) == pytest.approx(0.10006, abs=5e-6)


def test_shares_bytes_and_other_forms():
    same = schedule(type="wsd", warmup=0.1, tokens=1000 * 32 * 512)
    assert [same.factor(k, 0) for k in (0, 99, 900)] == pytest.approx([0.01, 1, 0.55])
    cosine = schedule(type="cosine", warmup=10, min_lr_ratio=0.2, steps=110)
    assert [cosine.factor(k, 0) for k in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1, 1, 0.6, 0.2])
    constant = schedule(type="constant", warmup=4, steps=10)
    assert [constant.factor(k, 0) for k in (0, 3, 9)] == [0.25, 1, 1]


def test_minutes_follow_the_training_clock():
    wsd = schedule(type="wsd", warmup=0.1, minutes=10)
    assert [wsd.factor(k, 60.0 * m) for k, m in ((0, 0), (5, 0.5), (9, 5), (20, 9), (30, 10))] == pytest.approx(
        [0.01, 0.5, 1, 0.55, 0.1]
    )
    steps = schedule(type="wsd", warmup=4, minutes=10)
    assert [steps.factor(k, 0.0) for k in (0, 3, 4)] == [0.25, 1, 1]


def test_a_decay_begins_where_a_long_warm_up_ends():
    cosine = schedule(type="cosine", warmup=50, min_lr_ratio=0.2, steps=110)
    wsd = schedule(type="wsd", warmup=50, stable_ratio=0.3, min_lr_ratio=0.2, steps=110)
    for made in (cosine, wsd):
        assert [made.factor(k, 0) for k in (24, 49, 50, 80, 110)] == pytest.approx([0.5, 1, 1, 0.6, 0.2])


def test_a_warm_up_longer_than_the_plateau_is_followed_by_decay():
    wsd = schedule(type="wsd", warmup=0.5, stable_ratio=0.3, minutes=10)
    rise, top, later = (wsd.factor(9, 60 * m) for m in (4.9, 5, 7.5))
    assert rise < 1 and top == pytest.approx(1) and 0.4 < later < 0.7


def test_of_steps_and_minutes_the_one_further_on_counts():
    both = schedule(type="wsd", warmup=0.1, steps=100, minutes=10)
    found = [both.factor(k, 60.0 * m) for k, m in ((50, 5), (90, 5), (50, 9), (4, 5), (99, 9))]
    assert found == pytest.approx([1, 0.55, 0.55, 0.5, both.factor(99, 300.0)]) and found[-1] < 0.11


def test_what_cannot_be_is_refused(tiny):
    with pytest.raises(ConfigError, match="does not end within the budget of 10 steps"):
        tiny(train={"steps": 10}, optimizer={"name": "adamw"}, schedule={"type": "wsd", "warmup": 10})
    with pytest.raises(ConfigError, match=r"schedule\.warmup instead"):
        tiny(optimizer={"name": "adamw", "warmup_steps": 3}, schedule={"type": "cosine"})
    with pytest.raises(ConfigError, match=r"optimizer\.warmup_steps"):
        tiny(schedule={"warmup": 5})
    with pytest.raises(ConfigError, match="whole"):
        tiny(schedule={"type": "wsd", "warmup": 2.5})


def test_averaging_optimizers_follow_none(tiny):
    """Known before anything starts of ours, and of any other once it is made."""
    with pytest.raises(ConfigError, match="averages its weights"):
        tiny(train={"steps": 10}, schedule={"type": "wsd"})
    other = AdamWScheduleFree([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ConfigError, match="averages its weights"):
        accept_schedule(other, torch.ones(()))


def test_the_rate_is_set_before_the_step(tiny, tmp_path):
    seen = Recorder()
    plan = tiny(train={"steps": 10}, optimizer={"name": "adamw", "lr": 0.001}, schedule={"type": "wsd", "warmup": 0.4})
    run(plan, tmp_path / "r", seen)
    rates = [line["lr"] for line in seen.lines]
    assert rates == pytest.approx([0.001 * plan_factor for plan_factor in (0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.55)])
