"""The default's values are tried once, first, and count as the default's."""

from rnn_lab.search.run import run_search
from rnn_lab.search.study import make_pruner, open_study


def test_of_two_queued_defaults_the_first_counts(plan, worker):
    made, who = plan("lr=1e-4:1e-1:log"), worker()
    run_search(made, who, 1)
    study = open_study(who.storage, made.name, made.sampler, make_pruner(made.pruner, 1), made.seed)
    study.enqueue_trial(made.default_point(), user_attrs={"default": True})
    assert [row.default for row in run_search(made, who, 2)] == [True, False]
