"""A suite in a folder: what was asked for is in its files, and its plan is a series like any other."""

import json
import shutil

import pytest
from rnn_lab.config import TrainSection, read_toml
from rnn_lab.e3.suite import ABLATIONS, CONFIGS, Asked, chosen, follow, plan_suite, write_suite
from rnn_lab.errors import ConfigError
from rnn_lab.lab.plan import plan_series
from rnn_lab.lab.series import SeriesDir
from rnn_lab.registry import registry
from rnn_lab.sections import ScheduleSection
from rnn_lab.train.schedule import Schedule


def test_the_baseline_is_always_there_and_first():
    assert chosen(None, False) == list(CONFIGS)
    assert chosen("full,MTP_Only", False) == ["baseline", "full", "mtp_only"]
    assert chosen("full", True) == ["baseline", "full", *ABLATIONS]
    with pytest.raises(ConfigError, match=r"unknown configuration 'ful'.*'full'.*baseline, mtp_only.*a \.toml file"):
        chosen("ful", False)
    with pytest.raises(ConfigError, match="twice"):
        chosen("full,full", False)
    for empty in ("", ",,", " , "):
        with pytest.raises(ConfigError, match="names no configuration"):
            chosen(empty, False)


def test_what_was_asked_for_is_in_the_files(tmp_path):
    asked = Asked(configs=("baseline", "full"), model="e74", target="2M", minutes=1.5, seeds=2)
    protocol = read_toml(write_suite(tmp_path, asked))
    tables = read_toml(tmp_path / "full.toml")
    assert (tables["model"]["family"], tables["model"]["target_params"]) == ("e74", "2M")
    training = tables["training"]
    assert (training["max_minutes"], training["batch_size"], "total_steps" in training) == (1.5, 32, False)
    assert training["schedule_type"] == "constant"
    assert (training["warmup_steps"], training["collider_start_step"]) == (0.1, 100)
    assert protocol["series"]["seeds"] == 2 and [run["label"] for run in protocol["run"]] == ["Baseline", "E3_Full"]
    write_suite(tmp_path, asked)  # again, the same
    with pytest.raises(ConfigError, match="of a suite with other options"):
        write_suite(tmp_path, Asked(configs=("baseline", "full"), model="e74", target="3M"))


def test_files_keep_their_own_schedule_where_that_is_asked_for(tmp_path):
    write_suite(tmp_path, Asked(configs=("baseline", "adamw_schedulefree"), schedule=None, steps=50))
    training = read_toml(tmp_path / "baseline.toml")["training"]
    assert (training["schedule_type"], training["total_steps"], training["warmup_steps"]) == ("wsd", 50, 5)
    assert read_toml(tmp_path / "adamw_schedulefree.toml")["training"]["schedule_type"] == "none"


def test_each_seed_begins_with_another_configuration(tmp_path):
    path = write_suite(
        tmp_path, Asked(configs=("baseline", "full", "galore2"), tiny=True, seeds=2, instead={"full": "e1"})
    )
    jobs = plan_series(str(path), registry(), overrides=["train.device=cpu"]).jobs
    assert [job.name for job in jobs] == [
        "baseline-s42", "e3_full-s42", "galore2-s42", "e3_full-s43", "galore2-s43", "baseline-s43",
    ]  # fmt: skip
    full = jobs[1]
    assert full.model == "e1" and full.part == "main"
    assert full.args[3:] == (
        "--config", str(tmp_path / "full.toml"), "--model", "e1", "-o", "train.device=cpu", "-o", "train.seed=42",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="--instead mtp_only: not among"):
        write_suite(tmp_path / "b", Asked(configs=("baseline",), instead={"mtp_only": "e1"}))


def test_names_that_meet_and_a_rank_that_saves_nothing(tmp_path):
    own = tmp_path / "full.toml"
    own.write_text("[training]\ntotal_steps = 5\n")
    with pytest.raises(ConfigError, match=r"full\.toml is in the suite already"):
        write_suite(tmp_path / "a", Asked(configs=("baseline", "full", str(own))))
    long = Asked(configs=("baseline", "galore2"), shape={"hidden_dim": 256, "num_layers": 1}, seq_length=4096, steps=4)
    plan = plan_series(str(write_suite(tmp_path / "b", long)), registry(), overrides=["train.device=cpu"])
    assert any("GaLore2: galore_rank = 256 is half of the width 256" in text for text in plan.notes)
    write_suite(tmp_path / "c", Asked(configs=("baseline",), tiny=True, target="1M"))
    assert read_toml(tmp_path / "c" / "baseline.toml")["model"].get("hidden_dim") is None


def test_a_file_of_ones_own_runs_beside_them(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text('[model]\nfamily = "e1"\n[training]\ntotal_steps = 5\n')
    path = write_suite(tmp_path / "suite", Asked(configs=tuple(chosen(str(own), False)), steps=4))
    assert [run["label"] for run in read_toml(path)["run"]] == ["Baseline", "mine"]
    assert read_toml(tmp_path / "suite" / "mine.toml")["training"]["total_steps"] == 4


def test_a_warm_up_keeps_its_share_of_any_budget(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text("[training]\ntotal_steps = 400\nwarmup_steps = 80\nuse_collider = true\n")
    for name, asked, warmup, start in (
        ("a", Asked(configs=("baseline", str(own)), minutes=1), 0.2, 80),
        ("b", Asked(configs=("baseline", str(own)), steps=50), 10, None),
    ):
        write_suite(tmp_path / name, asked)
        training = read_toml(tmp_path / name / "mine.toml")["training"]
        assert (training["warmup_steps"], training.get("collider_start_step")) == (warmup, start)
    train = TrainSection(minutes=1)
    schedule = Schedule(ScheduleSection(type="constant", warmup=0.2), train)
    assert schedule.factor(5, 6.0) == 0.5 and schedule.factor(9, 12.0) == 1.0  # however few steps these are


def test_a_suite_that_was_moved_is_planned_as_it_was(tmp_path):
    asked, said = Asked(configs=("baseline", "full"), tiny=True), ["train.device=cpu"]
    old, new = tmp_path / "old", tmp_path / "new"
    plan = plan_suite(old / "suite", asked, registry(), said)
    SeriesDir.create(old, plan, stall_minutes=10).unlock()
    shutil.move(old, new)
    with pytest.raises(ConfigError, match="other options"):
        plan_suite(new / "suite", asked, registry(), said)
    follow(new)
    again = json.loads(json.dumps(plan_suite(new / "suite", asked, registry(), said).table()))
    kept = json.loads((new / "series.json").read_text())
    assert {key: kept[key] for key in again} == again and str(old) not in (new / "series.json").read_text()
    assert not old.exists()


def test_nothing_is_left_of_a_suite_that_cannot_be_planned(tmp_path):
    own, folder = tmp_path / "mine.toml", tmp_path / "out" / "suite"
    asked = Asked(configs=("baseline", str(own)), tiny=True)
    said = ["train.device=cpu"]
    for text, reason in (
        ("[training]\nuse_mpt = true\n", "mine.toml.*use_mpt"),
        ('[model]\nfamily = "nope"\n[training]\ntotal_steps = 5\n', "nope"),
    ):
        own.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            plan_suite(folder, asked, registry(), said)
        assert not folder.parent.exists()
    own.write_text("[training]\ntotal_steps = 5\nuse_collider = true\nns_steps = 4\noptimizer_type = 'adamw'\n")
    notes = "\n".join(plan_suite(folder, asked, registry(), said).notes)
    assert "mine: ns_steps has no effect with optimizer_type = adamw" in notes
    assert "mine: use_collider: Collider will be off, because the width 64" in notes
    with pytest.raises(ConfigError, match="other options"):  # one that is there stays
        plan_suite(folder, Asked(configs=("baseline", str(own)), steps=3), registry(), said)
    assert (folder / "mine.toml").exists()
