"""Files of the suite: the documents' keys, what is refused, and the run that they resolve to."""

from types import SimpleNamespace

import pytest
import tomli_w
from rnn_lab.config import Layer, read_toml, resolve
from rnn_lab.e3.advice import advice, needed_bytes
from rnn_lab.e3.files import path_of, read_file, read_layers, shipped, tables_of
from rnn_lab.e3.suite import ABLATIONS, CONFIGS
from rnn_lab.errors import ConfigError
from rnn_lab.registry import registry
from rnn_lab.train.run import plan_run
from rnn_lab.train.schedule import filter_start

FEATURES = {
    "baseline": ("muon", None, False, False, 0, None),
    "mtp_only": ("muon", None, True, False, 0, None),
    "muon_8bit": ("muon8bit", None, True, True, 4, None),
    "galore2": ("galore_muon", None, True, True, 4, None),
    "full": ("galore_muon", 8, True, True, 6, 1),
    "muon_8bit_only": ("muon8bit", None, False, False, 0, None),
    "galore2_only": ("galore_muon", None, False, False, 0, None),
    "collider_only": ("muon", None, False, True, 0, None),
    "collider_random": ("muon", None, False, True, 0, None),
    "async_only": ("muon", None, False, False, 4, None),
    "checkpoint_only": ("muon", None, False, False, 0, 1),
    "adamw_schedulefree": ("schedulefree", None, False, False, 0, None),
}


@pytest.fixture
def written(tmp_path):
    """`written({"training": {...}})`: a file of those tables."""

    def write(tables):
        path = tmp_path / "own.toml"
        path.write_text(tomli_w.dumps({"training": {}, **tables}))
        return str(path)

    return write


def config(text, **later):
    layers = [*read_layers(text, later).layers, Layer("later", later)]
    return resolve(layers).config


def test_the_five_and_the_ablations_are_shipped():
    assert set(shipped()) == {f"e3/{stem}" for stem in (*CONFIGS, *ABLATIONS)} == {f"e3/{stem}" for stem in FEATURES}


@pytest.mark.parametrize("stem", FEATURES)
def test_a_shipped_file_turns_on_what_the_documents_say(stem, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    cfg = config(f"e3/{stem}")
    name, bits, mtp, collider, workers, checkpoint = FEATURES[stem]
    assert (cfg.optimizer.name, cfg.optimizer.bits) == (name, bits)
    assert (cfg.objective.use_mtp, cfg.objective.use_collider) == (mtp, collider)
    assert (cfg.loader.workers, cfg.train.checkpoint_every) == (workers, checkpoint)
    assert (cfg.train.steps, cfg.train.batch_size, cfg.train.seq_len, cfg.train.clip) == (1000, 256, 512, 1.0)
    assert cfg.objective.entropy_weight == 0.01 and cfg.model.target == 50_000_000
    if name != "schedulefree":
        assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.optimizer.muon_momentum) == (0.02, 0.01, 0.95)
        assert cfg.optimizer.aux_lr == 3e-4
        assert (cfg.schedule.type, cfg.schedule.warmup, cfg.schedule.stable_ratio) == ("wsd", 100, 0.8)
    if "galore" in name:
        assert (cfg.optimizer.galore_rank, cfg.optimizer.galore_update_freq) == (256, 200)
    if mtp:
        assert (cfg.objective.mtp_n_tokens, cfg.objective.mtp_weight) == (4, 0.2)
    if collider:
        assert (cfg.objective.collider_threshold, cfg.objective.collider_sparsity) == (0.3, 0.35)
        assert (cfg.objective.collider_scorer == "random") == (stem == "collider_random")
    assert cfg.optimizer.aux_8bit == ("8bit" in stem or stem == "full")


def test_what_is_off_leaves_no_trace():
    tables = tables_of(read_layers("e3/baseline").layers)
    assert "loader" not in tables and set(tables["objective"]) == {"entropy_weight"}
    assert not any(key.startswith(("galore", "bits", "block")) for key in tables["optimizer"])


def test_files_go_by_name_and_a_file_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_of("e3_full.toml") == path_of("e3/full") == path_of("e3-full") == shipped()["e3/full"]
    (tmp_path / "e3_full.toml").write_text('[model]\nname = "e61"\n')
    assert path_of("e3_full.toml").name == "e3_full.toml"
    assert read_layers("e3_full.toml").layers[0].values == {"model": {"name": "e61"}}  # of ordinary sections


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"training": {"learning_rat": 1}}, r"training.learning_rat: unknown key.*'learning_rate'"),
        ({"trainin": {}}, r"trainin: unknown key.*'training'"),
        ({"model": {"vocab_size": 32000}}, "vocabulary is 256"),
        ({"training": {"total_steps": 10, "warmup_steps": 10}}, "does not end within total_steps = 10"),
        ({"training": {"collider_sparsity": 1.0}}, "collider_sparsity = 1.0"),
        ({"training": {"collider_threshold": 1.5}}, "collider_threshold = 1.5"),
        ({"training": {"galore_update_freq": 0}}, "galore_update_freq = 0"),
        ({"training": {"use_mtp": True, "mtp_n_tokens": 0}}, "mtp_n_tokens = 0"),
        ({"training": {"galore_layerwise": True}}, "grad_clip = 0"),
        ({"training": {"optimizer_type": "adamw", "use_8bit_optim": True}}, "Muon's momentum"),
        ({"training": {"optimizer_type": "adamw_schedulefree"}}, "schedule_type = none"),
        ({"training": {"lr": 1.0, "learning_rate": 1.0}}, "training.learning_rate is said twice"),
        ({"training": {"seq_length": 512}, "model": {"max_seq_len": 64}}, "exceeds model.max_seq_len = 64"),
        ({"model": {"target_params": "1M", "dim": 8, "depth": 1}}, "give the size, or both"),
    ],
)
def test_refused(written, tables, said):
    with pytest.raises(ConfigError, match=said):
        read_file(written(tables))


def test_names_of_the_source_are_read_and_its_transformer_has_no_effect(written, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    file = written({
        "model": {
            "dim": 16, "n_layers": 2, "num_heads": 12, "ffn_mult": 3.5, "family": "e74", "fields": {"n_state": 8},
        },
        "training": {
            "lr": 0.01, "decay_start_frac": 0.7, "use_async_loader": True, "async_n_workers": 8,
            "async_prefetch_size": 3, "entropy_weight": 0.2,
        },
        "hardware": {"fp16": True},
    })  # fmt: skip
    cfg, said = config(file), "\n".join(read_layers(file).warnings)
    assert (cfg.model.name, cfg.model.depth, cfg.model.fields) == ("e74", 2, {"dim": 16, "n_state": 8})
    assert (cfg.optimizer.lr, cfg.schedule.stable_ratio) == (0.01, 0.7)
    assert (cfg.loader.workers, cfg.loader.prefetch) == (1, 3)
    for text in (
        "num_heads, ffn_mult: of the source's transformer",
        "bf16 takes its place",
        "entropy_weight = 0.2",
        "1 here",
    ):
        assert text in said
    assert "n_state" not in config(file, model={"name": "e61"}).model.fields


def test_a_budget_given_elsewhere_takes_the_files_place():
    shorter = config("e3/baseline", train={"steps": 20})
    assert (shorter.train.steps, shorter.schedule.warmup) == (20, 2)
    timed = config("e3/baseline", train={"minutes": 1.0})
    assert (timed.train.steps, timed.train.minutes, timed.schedule.warmup) == (None, 1.0, 0.1)
    filtered = config("e3/collider_only", train={"minutes": 1.0})
    assert (filtered.schedule.warmup, filter_start(filtered)) == (0.1, 100)
    assert filter_start(config("e3/collider_only", train={"tokens": 50 * 256 * 512})) == 5
    assert config("e3/baseline", model={"dim": 64, "depth": 2}).model.target is None


def test_every_value_says_which_key_it_is_from():
    layers = [
        *read_layers("e3/full", {"model": {"dim": 64, "depth": 2}}).layers,
        Layer("-o", {"model": {"dim": 64, "depth": 2}}),
    ]
    plan = plan_run([*layers, Layer("-o", {"train": {"device": "cpu"}})], registry())
    assert plan.origins()["optimizer.lr"] == "e3/full, training.learning_rate"
    assert "galore_rank = 256 is half of the width 64 or more" in "\n".join(advice(plan.resolved.config, plan.spec))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"optimizer_type": "adamw", "aux_8bit": True, "muon_momentum": 0.9, "ns_steps": 5},
            "muon_momentum, ns_steps, aux_8bit have no effect with optimizer_type = adamw",
        ),
        ({"optim_block_size": 64}, "optim_block_size has no effect with use_8bit_optim = false"),
        ({"mtp_n_tokens": 2}, "mtp_n_tokens has no effect with use_mtp = false"),
        ({"galore_rank": 8}, "galore_rank has no effect with use_galore = false"),
        ({"collider_sparsity": 0.5}, "collider_sparsity has no effect with use_collider = false"),
        ({"use_collider": True, "collider_threshold": 0.5}, "no effect with collider_mode = topk"),
        ({"schedule_type": "cosine", "stable_ratio": 0.5}, "stable_ratio has no effect with schedule_type = cosine"),
        ({"num_workers": 2}, "num_workers has no effect with use_async_loader = false"),
        ({"checkpoint_every": 2}, "checkpoint_every has no effect with gradient_checkpointing = false"),
    ],
)
def test_keys_without_effect_are_named(written, training, said):
    (warning,) = read_layers(written({"training": training})).warnings
    assert warning.endswith(said)


def test_shipped_files_say_nothing_without_effect():
    assert not [text for name in shipped() for text in read_layers(name).warnings if "no effect" in text]


def test_codes_of_eight_bits_are_as_the_file_says(written):
    training = {"use_8bit_optim": True, "optim_block_size": 64, "optim_quant": "dynamic"}
    for projected in (False, True):
        cfg = config(written({"training": {**training, "use_galore": projected}}))
        assert (cfg.optimizer.block_size, cfg.optimizer.quant) == (64, "dynamic")


def test_a_width_that_turns_collider_off_is_named():
    own = {"model": {"dim": 64, "depth": 2}, "train": {"device": "cpu"}}
    for least, told in ((65, True), (64, False)):
        later = {**own, "objective": {"collider_min_dim": least}}
        plan = plan_run([*read_layers("e3/collider_only", later).layers, Layer("-o", later)], registry())
        said = "\n".join(advice(plan.resolved.config, plan.spec))
        assert ("Collider will be off, because the width 64 is below collider_min_dim" in said) == told


def test_checkpointing_lowers_what_activations_are_expected_to_take():
    own = {"model": {"dim": 64, "depth": 8}, "train": {"device": "cpu"}}
    plain, saving = (
        plan_run([*read_layers(f"e3/{stem}", own).layers, Layer("-o", own)], registry())
        for stem in ("baseline", "checkpoint_only")
    )
    assert needed_bytes(saving.resolved.config, saving.spec) < needed_bytes(plain.resolved.config, plain.spec) / 3


def test_activations_have_the_dtype_that_the_run_will_have():
    own = {"model": {"dim": 64, "depth": 8}, "train": {"device": "cpu"}}
    auto, fp32, bf16 = (
        plan_run([*read_layers("e3/baseline", own).layers, Layer("-o", own), Layer("-o", {"train": {"dtype": dtype}})],
                 registry())
        for dtype in ("auto", "fp32", "bf16")
    )  # fmt: skip
    taken = [needed_bytes(plan.resolved.config, plan.spec) for plan in (auto, fp32, bf16)]
    assert taken[0] == taken[1] == 2 * taken[2]


def test_a_setting_that_this_version_lacks_is_refused_by_name(written, monkeypatch):
    from rnn_lab.e3 import translate

    monkeypatch.setattr(translate, "OptimizerSection", SimpleNamespace(model_fields={}))
    file = written({"training": {"use_8bit_optim": True, "optim_stochastic_rounding": True}})
    with pytest.raises(ConfigError, match="optim_stochastic_rounding = True: not available"):
        read_layers(file)


def test_shipped_files_are_read_as_they_are_written():
    for path in shipped().values():
        assert read_toml(path)["model"]["name"] == f"e3-{path.stem.replace('_', '-')}"
