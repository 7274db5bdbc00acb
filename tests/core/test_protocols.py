"""Protocol files: what they may say, what is refused, and that those shipped can be run."""

from pathlib import Path

import pytest
from rnn_lab.comparison.external import external_rows, printed_loss, printed_rate
from rnn_lab.config import Layer, resolve
from rnn_lab.errors import ConfigError
from rnn_lab.modelspec import model_spec
from rnn_lab.presets import find_preset
from rnn_lab.protocol import Protocol, find_protocol, slug
from rnn_lab.registry import registry

SHIPPED = sorted(registry().protocols)


@pytest.fixture
def written(tmp_path):
    """`written(text)`: the protocol in a file of that text."""

    def read(text: str, name: str = "own") -> Protocol:
        path = tmp_path / f"{name}.toml"
        path.write_text('description = "A test\'s."\n' + text)
        return find_protocol(str(path), registry())

    return read


def test_the_issues_protocols_are_shipped():
    assert set(SHIPPED) == {
        "standard-50m", "ladder-50m", "bench-100m-10min", "study-500m-30min", "e5-dims", "e1-depth-width", "micro",
    }  # fmt: skip


def test_shipped_protocols_hold_what_the_seeds_say():
    found = registry()
    train = {name: find_protocol(name, found).train for name in SHIPPED}
    assert [(train[n].batch_size, train[n].seq_len, train[n].steps, train[n].minutes) for n in SHIPPED] == [
        (32, 512, None, 10.0), (256, 512, 1000, None), (256, 512, 1000, None), (32, 512, 1000, None),
        (8, 64, 400, None), (256, 512, 1000, None), (16, 512, None, 30.0),
    ]  # fmt: skip
    for name in set(SHIPPED) - {"micro"}:
        optimizer = find_protocol(name, found).optimizer
        assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("schedulefree", 3e-4, 0.1)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "study-500m-30min" else n for n in SHIPPED]
)
def test_every_run_of_a_shipped_protocol_has_its_size(name):
    found = registry()
    protocol = find_protocol(name, found)
    assert protocol.entries()
    for entry in protocol.entries():
        layers = [protocol.layer(name), Layer("run", entry.sections)]
        if entry.preset:
            layers.insert(1, find_preset(entry.preset, found).layer())
        spec = model_spec(resolve(layers).config.model, found)  # raises further than 0.5 % from a target
        assert (spec.certificate.target is None) == bool(entry.preset), entry.named


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"micro"}))
def test_published_figures_stand_beside_every_run_that_has_some(name):
    found = registry()
    protocol = find_protocol(name, found)
    rows, notes = external_rows(protocol, protocol.entries(), found)
    labels = [entry.named for entry in protocol.entries() if entry.part != "explore"]
    assert notes == [] and set(labels) <= {row["run"] for row in rows}
    assert all(row["label"] and row["document"] for row in rows)


def test_published_figures_are_read_from_the_presets():
    found = registry()
    protocol = find_protocol("e5-dims", found)
    rows, _ = external_rows(protocol, protocol.entries(), found)
    widest = next(row for row in rows if row["run"] == "e5_d6144_r65")
    assert (widest["loss"], widest["tokens_per_s"], widest["params"]) == (2.4897, 23000.0, 49_876_992)
    assert "a quarter of the bytes" in widest["caveat"] and "64 x 512 bytes" in widest["history"]
    assert [row["loss"] for row in rows] == [1.4455, 1.4554, 1.6225, 1.9002, 2.4897], "of its own table only"


def test_only_figures_of_the_chosen_runs_and_of_no_run():
    found = registry()
    protocol = find_protocol("bench-100m-10min", found)
    e61 = [entry for entry in protocol.entries() if entry.named == "e61"]
    rows, _ = external_rows(protocol, e61, found)
    assert [(row["run"], row["loss"]) for row in rows] == [("e61", 1.351), (None, None)]


@pytest.mark.parametrize(
    ("text", "nats"),
    [("1.4463", 1.4463), ("1.686 (last 10)", 1.686), ("~1.5", 1.5), ("NaN", None), ("worse", None), (None, None)],
)
def test_printed_losses_become_numbers(text, nats):
    assert printed_loss(text) == nats


@pytest.mark.parametrize(
    ("text", "rate"), [("~104K", 104e3), ("78,657", 78657.0), ("366K", 366e3), ("fast", None), (None, None)]
)
def test_printed_rates_become_numbers(text, rate):
    assert printed_rate(text) == rate


def test_a_grid_is_every_combination(written):
    protocol = written(
        '[[run]]\nmodel = { name = "e61", depth = 2 }\ngrid = { "model.dim" = [16, 32], "optimizer.lr" = [0.1, 0.2] }\n'
    )
    entries = protocol.entries()
    assert [entry.named for entry in entries] == [f"e61 dim={d} lr={lr}" for d in (16, 32) for lr in (0.1, 0.2)]
    assert entries[2].sections == {"model": {"name": "e61", "depth": 2, "dim": 32}, "optimizer": {"lr": 0.1}}
    assert protocol.run[0].model == {"name": "e61", "depth": 2}


def test_a_base_lends_sections_and_series_but_no_runs(written):
    protocol = written('base = "micro"\n[train]\nsteps = 7\n[series]\nseeds = 5\n[[run]]\nmodel = { name = "e1" }\n')
    assert (protocol.train.steps, protocol.train.batch_size, protocol.model["target"]) == (7, 8, "99K")
    assert (protocol.series.seeds, protocol.series.stall_minutes) == (5, 3.0)
    assert [entry.named for entry in protocol.entries()] == ["e1"] and protocol.external == ()


def test_the_layer_is_what_the_file_says_and_no_more(written):
    protocol = written('[train]\nsteps = 3\n[model]\ntarget = "1M"\n[[run]]\nmodel = { name = "e1" }\n')
    assert protocol.layer("own") == Layer("protocol own", {"model": {"target": "1M"}, "train": {"steps": 3}})


def test_the_fingerprint_follows_the_sections_only(written):
    first = written("[train]\nsteps = 3\n", "a").fingerprint()
    assert first == written('[train]\nsteps = 3\n[[run]]\nmodel = { name = "e1" }\n', "b").fingerprint()
    assert first != written("[train]\nsteps = 4\n", "c").fingerprint()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[trian]\nsteps = 3", "trian: unknown key. Did you mean 'train'"),
        ("[train]\nstep = 3", "train.step: unknown key. Did you mean 'steps'"),
        ("[train]\nsteps = -3", "train.steps"),
        ("[series]\nseeds = 0", "series.seeds = 0"),
        ("[[run]]\nlabel = 'x'", "a run has either a preset or a model with a name"),
        ("[[run]]\npreset = 'a/b'\nmodel = { name = 'e1' }", "either a preset or a model"),
        ("[[run]]\nmodle = { name = 'e1' }", "run.0.modle: unknown key. Did you mean 'model'"),
        ("[[run]]\nmodel = { name = 'e1' }\ngrid = { 'dim' = [1] }", "grid: 'dim' is no `model.key`"),
        ("[[run]]\nmodel = { name = 'e1' }\ngrid = { 'model.dim' = [] }", "with values"),
        ("[[run]]\nmodel = { name = 'e1' }\n[[run]]\nmodel = { name = 'E1' }", "two runs are called"),
        ("[[external]]\nloss = 1.0", "need a label and a document"),
        ("[[external]]\nlabel = 'x'\ndocument = 'y'\nrun = 'e1'", "no run is called 'e1'"),
        ("[[external]]\nlabel = 'x'\ndocument = 'y'\nloss = nan", "loss"),
        ("base = 'nix'", "unknown protocol 'nix'"),
        ("[train", "not valid TOML"),
    ],
)
def test_what_a_protocol_may_not_say(written, text, says):
    with pytest.raises(ConfigError) as error:
        written(text)
    assert says in str(error.value) and ("own.toml" in str(error.value) or "nix" in text)


def test_bases_in_a_circle(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.toml").write_text(f'description = "x"\nbase = "{tmp_path / other}.toml"\n')
    with pytest.raises(ConfigError, match="in no circle"):
        find_protocol(str(tmp_path / "a.toml"), registry())


def test_an_unknown_preset_costs_its_figures_only(written):
    protocol = written("[[run]]\nmodel = { name = 'e61' }\nexternal = ['seed004/nix', 'seed004/e61']\n")
    rows, notes = external_rows(protocol, protocol.entries(), registry())
    assert [row["loss"] for row in rows] == [1.351] and "unknown preset 'seed004/nix'" in notes[0]


@pytest.mark.parametrize(("text", "name"), [("e88 n_state=16", "e88-n_state-16"), ("../x", "x"), ("é", "run")])
def test_labels_become_file_names(text, name):
    assert slug(text) == name and Path(name).name == name
