"""Every bad input is refused before anything is written, with the right exit code and a line that helps."""

import pytest

from .helpers import TINY


@pytest.fixture
def fit(rnn_lab, corpus, tmp_path):
    """A tiny fit that works unless its further arguments spoil it; nothing may be left in its folder."""

    def call(*args: str, out=None):
        out = out or tmp_path / "run"
        base = ["fit", "--model", "e61", *TINY, "--data", str(corpus), "--out", str(out), "--quiet"]
        done = rnn_lab(*base, *args)
        assert "Traceback" not in done.err and "internal error" not in done.err
        assert not (tmp_path / "run").exists() or done.code == 0
        return done

    return call


def refused(done, *parts: str, code: int = 2) -> None:
    assert done.code == code, done.err
    line = next(line for line in done.err.splitlines() if line.startswith("error: "))
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("option", ["--data", "--val-data"])
def test_data_missing_empty_or_a_folder(fit, tmp_path, option):
    (tmp_path / "empty").touch()
    refused(fit(option, str(tmp_path / "nix")), "nix", "does not exist")
    refused(fit(option, str(tmp_path / "empty")), "is empty")
    refused(fit(option, str(tmp_path)), "is a folder")
    refused(fit(option, ""), f"= '' (from option {option})")


def test_data_shorter_than_a_window(fit, tmp_path):
    (tmp_path / "short").write_bytes(b"x" * 20)
    refused(fit("--data", str(tmp_path / "short")), "short", "too few")
    refused(fit("--val-data", str(tmp_path / "short")), "shorter than one window")
    refused(fit("--seq-len", "10M"), "train.seq_len")
    refused(fit("--seq-len", "10000000"), "a smaller seq_len")


def test_out_in_the_way(fit, trained, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    refused(fit(out=tmp_path / "file"), "cannot write there")
    refused(fit(out=tmp_path / "file" / "below"), "cannot write there")
    refused(fit(out=tmp_path / "full"), "not empty")
    before = (trained / "result.json").read_bytes()
    done = fit("--json", out=trained)
    refused(done, "already a run", "resume")
    assert done.out == "" and (trained / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    "command", [["bench", "e3", "--tiny"], ["protocol", "run", "micro"], ["fit", "-o", "model.name=e61"]]
)
def test_out_of_a_suite_or_series_in_the_way(rnn_lab, tmp_path, command):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300), "/proc/nix/below"):
        refused(rnn_lab(*command, "--out", str(out)), f"--out {out}: cannot write there")
    assert (tmp_path / "file").read_text() == "x"
    refused(rnn_lab(*command, "--out", ""), "--out", "empty")


@pytest.mark.parametrize(("option", "value", "told"), [
    ("--target", "50X", "--target: expected a count"), ("--target", "1e999", "--target: '1e999' is too large"),
    ("--minutes", "nan", "--minutes nan: expected a finite number"), ("--minutes", "inf", "--minutes inf"),
])  # fmt: skip
def test_a_suite_names_the_option_that_is_wrong(rnn_lab, tmp_path, option, value, told):
    refused(rnn_lab("bench", "e3", "--tiny", option, value, "--out", str(tmp_path / "e3")), told)
    assert not (tmp_path / "e3").exists()


@pytest.mark.parametrize("out", ["/proc/nix", "/etc/passwd/nix"])
def test_out_of_a_suite_to_take_up_that_is_not_there(rnn_lab, out):
    refused(rnn_lab("bench", "e3", "--tiny", "--resume", "--out", out), out)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[train]\nstepz = 3", ("train.stepz", "run.toml", "'steps'")),
        ("[trian]\nsteps = 3", ("[trian]", "'train'")),
        ('[train]\nclip = "much"', ("train.clip = 'much'", "run.toml")),
        ("[train]\nclip = []", ("train.clip = []",)),
        ('[train]\nclip = "0.5"', ("train.clip = '0.5'", "expected a number, without quotes")),
        ("[train]\ngrad_accum = true", ("train.grad_accum = True", "expected an integer")),
        ('[train]\ncarry_state = "yes"', ("train.carry_state = 'yes'", "expected true or false, without quotes")),
        ("[train]\ncheckpoint_every = true", ("train.checkpoint_every = True", "expected an integer")),
        ('[optimizer]\nbetas = [0.9, "0.99"]', ("optimizer.betas", "expected a number, without quotes")),
        ("[optimizer]\ngalore_rank = true", ("optimizer.galore_rank = True", "expected an integer")),
        ('[model]\nexpansion = "2"', ("model.expansion = '2'", "without quotes")),
        ('[training]\nuse_mtp = "yes"', ("training.use_mtp = 'yes'", "expected true or false, without quotes")),
        ('[training]\nlearning_rate = "0.02"', ("learning_rate = '0.02'", "expected a number, without quotes")),
        ("[training]\ngalore_rank = true", ("training.galore_rank", "expected an integer or 'auto'")),
        ('[training]\nwarmup_steps = "3"', ("training.warmup_steps", "without quotes")),
        ("[training]\nwarmup_steps = nan", ("training.warmup_steps = nan: Input",)),
        ('[training]\ngalore_rank = "half"', ("expected an integer, without quotes, or 'auto'",)),
        ("[training]\ngalore_rank = true", ("expected an integer or 'auto'",)),
        ("training = 3", ("training = 3: expected a table, [training]",)),
        ('[model]\nfamily = "e61"\n[trainin]\nlr = 1', ("run.toml: trainin: unknown key", "'training'")),
        ("[model]\nvocab_size = 300\n[training]", ("run.toml: model: vocab_size = 300: the data are bytes",)),
        ("[train]\nminutes = 1e300", ("train.minutes",)),
        ("[train]\ntokens = 1e300", ("train.tokens",)),
        ("[train]\ntokens = inf", ("train.tokens",)),
        ("[optimizer]\nlr = nan", ("optimizer.lr",)),
        ("[optimizer]\neps = 99999999999999999999999999999999", ("optimizer.eps",)),
        ("[model]\nexpansion = 1e300", ("model.expansion",)),
        ("[model]\nexpansion = 0.001", ("expansion = 0.001 of dim", "leaves no inner channel")),
        ("[model]\nzzzz = 1", ("model.zzzz", "Known:")),
        ("train = 3", ("[train] must be a table",)),
        ("[train\nsteps = 3", ("run.toml", "not valid TOML", "line 1")),
        ("\x00", ("not valid TOML",)),
    ],
)
def test_config_files_that_cannot_be(fit, tmp_path, text, parts):
    file = tmp_path / "run.toml"
    file.write_text(text)
    refused(fit("--config", str(file)), *parts)


def test_config_files_that_cannot_be_read(fit, tmp_path):
    refused(fit("--config", str(tmp_path)), "Is a directory")
    refused(fit("--config", str(tmp_path / "nix.toml")), "No such file")
    (tmp_path / "latin").write_bytes(b'[model]\nname = "\xe9"')
    refused(fit("--config", str(tmp_path / "latin")), "not valid TOML")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ("--steps 0", "train.steps = '0' (from option --steps)"),
        ("--minutes 0", "train.minutes"),
        ("--tokens 0", "train.tokens"),
        ("--steps -1", "train.steps"),
        ("--steps many", "expected a count"),
        ("--steps 1e999", "too large"),
        ("--dim 0", "model.dim"),
        ("--dim x", "model.dim = 'x' (from option --dim)"),
        ("--depth 9999999999999999999", "model.depth"),
        ("--batch-size 3 --grad-accum 2", "does not divide"),
        ("--seed -1", "train.seed"),
        ("--lr 0", "optimizer.lr"),
        ("--device tpu", "expected auto, cpu"),
        ("--device cuda:99", "CUDA devices"),
        ("-o nix", "expected key.path=value"),
        ("-o nix=3", "-o"),
        ("-o =3", "expected key.path=value"),
        ("-o log.trackers=['nix']", "unknown tracker"),
    ],
)
def test_values_that_cannot_be(fit, argv, part):
    refused(fit(*argv.split()), part)


def test_a_token_budget_below_one_step_exits_4(fit):
    refused(fit("--tokens", "31"), "less than one step of 2 x 16", code=4)


def test_a_target_out_of_reach_names_the_nearest(fit):
    refused(fit("--target", "1M"), "cannot reach 1,000,000", "nearest", "--target ")


def test_commands_on_folders_that_are_no_runs(rnn_lab, tmp_path):
    for command in ("sample", "resume"):
        refused(rnn_lab(command, str(tmp_path)), "not a run")
    refused(rnn_lab("runs", str(tmp_path / "nix")), "no such folder")
    refused(rnn_lab("tensorboard", str(tmp_path)), "no TensorBoard events")
