"""sample, runs, tensorboard: what reads finished runs."""

import os
import shutil
import sys

import pytest
import torch
from rnn_lab.errors import ConfigError
from rnn_lab.generate import PROMPT_CHUNK, generate
from rnn_lab.registry import registry
from rnn_lab.train.run import load_trained


@pytest.fixture(scope="module")
def model(trained):
    return load_trained(trained, registry(), "cpu", print)[0]


def test_greedy_generation_is_the_argmax_of_the_whole_pass(model):
    prompt = b"the quick brown " * (PROMPT_CHUNK // 8)
    text = prompt + bytes(generate(model, prompt, 12, temperature=0))
    with torch.no_grad():
        logits_BTV, _ = model(torch.tensor([list(text)]))
    expected = logits_BTV[0, len(prompt) - 1 : -1].argmax(-1)
    assert list(text[len(prompt) :]) == expected.tolist()


def test_an_empty_prompt_begins_a_document(model):
    assert list(generate(model, b"", 5, 0)) == list(generate(model, b"\x1e", 5, 0))


def test_a_seed_and_top_k_decide_the_text(model):
    def draw(seed, **how):
        return list(generate(model, b"a", 40, generator=torch.Generator().manual_seed(seed), **how))

    assert draw(1) == draw(1) != draw(2)
    assert draw(1, top_k=1) == list(generate(model, b"a", 40, 0))
    assert draw(1, temperature=1e-30) == list(generate(model, b"a", 40, 0))


@pytest.mark.parametrize("how", [{"n": -1}, {"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}])
def test_generation_refuses_what_cannot_be(model, how):
    with pytest.raises(ConfigError):
        generate(model, b"a", **{"n": 1, **how})


def test_sample_streams_text(rnn_lab, trained):
    done = rnn_lab("sample", str(trained), "--prompt", "über ", "--bytes", "30", "--seed", "3")
    assert done.code == 0 and done.out.startswith("über ") and len(done.out) > 5
    page = rnn_lab("sample", str(trained), "--prompt", "über ", "--bytes", "30", "--seed", "3", "--json").json
    assert done.out == "über " + page["text"] and page["step"] == 3
    assert rnn_lab("sample", str(trained), "--bytes", "0").out == ""
    assert rnn_lab("sample", str(trained), "--temperature", "-1").code == 2
    for temperature in ("inf", "nan"):
        done = rnn_lab("sample", str(trained), "--temperature", temperature)
        assert done.code == 2 and "internal" not in done.err, done.err


@pytest.mark.parametrize("temperature", ["1e-300", "5e-324"])
def test_a_tiny_temperature_takes_the_likeliest_byte(rnn_lab, trained, temperature):
    texts = [rnn_lab("sample", str(trained), "--bytes", "9", "--temperature", t, "--json").json["text"]
             for t in ("0", temperature)]  # fmt: skip
    assert texts[0] == texts[1]


def test_runs_lists_finished_killed_and_broken_runs(rnn_lab, trained, tmp_path):
    for name in ("done", "killed", "torn", "edited", "deep/er"):
        shutil.copytree(trained, tmp_path / name)
    (tmp_path / "killed" / "result.json").unlink()
    (tmp_path / "torn" / "result.json").write_text('{"status": ')
    (tmp_path / "edited" / "config.toml").write_text('[model]\nname = "e61"\n[train]\nstepz = 1')
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "metrics.jsonl").write_text("")
    (tmp_path / "no run").mkdir()
    done = rnn_lab("runs", str(tmp_path), "--json")
    rows = {row["run"].removeprefix(f"{tmp_path}/"): row for row in done.json}
    assert done.code == 0
    assert {name: row["status"] for name, row in rows.items()} == {
        "done": "ok", "killed": "killed", "torn": "broken", "edited": "broken", "deep/er": "ok", "lost": "broken",
    }  # fmt: skip
    assert rows["done"]["steps"] == rows["killed"]["steps"] == 3
    assert rows["done"]["model"] == "e61" and rows["done"]["params"] > 0 and rows["done"]["val_bpb"] > 0
    assert rows["killed"]["loss"] == rows["done"]["loss"] and rows["done"]["bpb"] is None
    assert "stepz" in rows["edited"]["problem"] and "damaged" in rows["torn"]["problem"]
    lines = rnn_lab("runs", str(tmp_path)).out.splitlines()
    assert lines[0].split("\t")[:3] == ["run", "status", "model"] and len(lines) == 7


def test_runs_without_runs_says_so(rnn_lab, tmp_path):
    done = rnn_lab("runs", str(tmp_path))
    assert done.code == 0 and "no runs below" in done.err and rnn_lab("runs", str(tmp_path), "--json").json == []


def test_tensorboard_takes_the_process_over(rnn_lab, tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1").touch()
    calls = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    assert rnn_lab("tensorboard", str(tmp_path), "--port", "0").code == 0
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--port", "0"]
    assert calls == [(sys.executable, command)]
