"""The main job as a user does it, through the command line: train, lose power, resume, look, sample."""

import json
import math
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.facts import facts

CLI = [sys.executable, "-m", "rnn_lab_cli"]
SHAPE = "--model e74 --n-state 16 --dim 64 --depth 2"
FIT = f"fit {SHAPE} --seq-len 32 --batch-size 16 --steps 120 --lr 3e-3 --checkpoint-every 25 --eval-every 40".split()
pytestmark = pytest.mark.slow


def cli(*args: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run([*CLI, *args], capture_output=True, text=True, check=check, timeout=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    cli(*FIT, "--out", str(out))
    return out


def test_the_loss_falls_below_the_order_0_entropy_of_the_corpus(whole):
    described = json.loads(cli("data", "info", "--json").stdout)
    order_0 = described["entropies"][0] * math.log(2)
    lines = facts(whole)
    assert lines[0]["loss"] > 5 and lines[-1]["val_loss"] < order_0 and lines[-1]["last100"] is not None


def test_killed_at_a_random_moment_and_resumed_it_is_the_same_run(whole, tmp_path):
    child = subprocess.Popen([*CLI, *FIT, "--out", str(tmp_path / "r"), "--quiet"], env=os.environ)
    metrics, until = tmp_path / "r" / "metrics.jsonl", random.randint(1, 110)
    while child.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= until):
        time.sleep(0.02)
    child.kill()
    child.wait()
    listed = json.loads(cli("runs", str(tmp_path), "--json").stdout)
    assert [row["status"] for row in listed] == ["killed"], f"killed after step {until}"
    result = json.loads(cli("resume", str(tmp_path / "r"), "--json").stdout)
    assert facts(tmp_path / "r") == facts(whole), f"killed after step {until}"
    assert result["data_chain"] == json.loads((whole / "result.json").read_text())["data_chain"]


def test_sample_prints_text_and_repeats_it_for_a_seed(whole):
    texts = [cli("sample", str(whole), "--bytes", "80", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert len(texts[0]) > 40 and texts[0] == texts[1] != texts[2]


def test_tensorboard_serves_scalars_and_hparams(whole):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*CLI, "tensorboard", str(whole.parent), "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        tags = wait_for_json(f"http://127.0.0.1:{port}/data/plugin/scalars/tags")
        assert {"loss/ce", "training/grad_norm", "throughput/tokens_per_sec", "eval/ce"} <= set(tags[whole.name])
        url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run={whole.name}&tag=loss%2Fce"
        served = [value for _, _, value in wait_for_json(url)]
        assert served == pytest.approx([line["loss"] for line in facts(whole)], rel=1e-5)
        body = json.dumps({"experimentName": ""}).encode()
        hparams = wait_for_json(f"http://127.0.0.1:{port}/data/plugin/hparams/experiment", body)
        names = {info["name"] for info in hparams["hparamInfos"]}
        assert {"model.n_state", "optimizer.lr"} <= names
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def wait_for_json(url: str, body: bytes | None = None):
    for _ in range(150):
        try:
            request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=10) as response:
                found = json.loads(response.read())
            if found:
                return found
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"{url} did not answer")
