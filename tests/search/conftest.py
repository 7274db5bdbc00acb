"""A search so small that a trial takes seconds, and a fake trainer that takes none."""

import sys
from pathlib import Path

import numpy as np
import pytest
from rnn_lab.config import Layer
from rnn_lab.registry import registry
from rnn_lab.search.plan import plan_search
from rnn_lab.search.run import Worker
from rnn_lab.search.space import parse_spec

pytest.importorskip("optuna")

FAKE = '''
"""Stands in for `rnn-lab fit --config FILE --out DIR`: the loss follows from the learning rate alone."""
import json, math, os, signal, sys, time, tomllib
from pathlib import Path

what, args = sys.argv[1], sys.argv[2:]
out = Path(args[args.index("--out") + 1]) if what == "fit" else Path(args[0])
out.mkdir(parents=True, exist_ok=True)
if what == "fit":
    (out / "config.toml").write_text(Path(args[args.index("--config") + 1]).read_text())
config = tomllib.loads((out / "config.toml").read_text())
with (out / "calls").open("a") as file:
    file.write(what + "\\n")
mode = os.environ.get("FAKE", "")
lr, steps = config["optimizer"]["lr"], config["train"]["steps"]
loss = 1 + abs(math.log10(lr) + 2) + config["train"]["seed"] * 1e-4

def end(status, code, error=None):
    result = {"status": status, "error": error, "model": config["model"]["name"], "params": 99000,
              "val_loss": loss if status == "ok" else None, "last100": None}
    (out / "result.json").write_text(json.dumps(result))
    sys.exit(code)

signal.signal(signal.SIGTERM, lambda number, frame: end("interrupted", 130))
if mode == "crash" or (mode == "crash-once" and what == "fit"):
    print("something broke", file=sys.stderr)
    sys.exit(1)
if mode == "nan":
    end("diverged", 3, "loss is not finite")
if mode == "oom":
    end("oom", 1, "out of memory")
with (out / "metrics.jsonl").open("w") as file:
    for step in range(1, steps + 1):
        file.write(json.dumps({"step": step, "loss": loss + 1 / step}) + "\\n")
        file.flush()
        if mode == "slow":
            time.sleep(0.2)
if mode == "hang":
    time.sleep(60)
if mode == "tail":
    time.sleep(0.5)
end("ok", 0)
'''


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "bytes.bin"
    rng = np.random.default_rng(0)
    words = b"the quick brown fox jumps over the lazy dog".split()
    path.write_bytes(b"\x1e".join(b" ".join(rng.choice(words, size=12)) for _ in range(700)))
    return path


@pytest.fixture
def plan(corpus):
    """`plan("lr=1e-4:1e-1:log", sampler="random")`: a search around an e61 of 99K parameters."""

    def make(*specs, model=None, train=None, found=None, **options):
        layer = Layer(
            "test",
            {
                "model": {"name": "e61", "target": "99K", **(model or {})},
                "data": {"path": str(corpus)},
                "train": {"batch_size": 2, "seq_len": 16, "steps": 20, "device": "cpu", **(train or {})},
                "eval": {"tokens": 64},
                "log": {"trackers": []},
            },
        )
        chosen = {"metric": "val_loss", "sampler": "random", "pruner": "none", "seed": 0, "report_every": None}
        return plan_search([layer], dict(map(parse_spec, specs)), found or registry(), **{**chosen, **options})

    return make


@pytest.fixture
def worker(tmp_path):
    """`worker()`: a worker of a search in `tmp_path/search` that trains by the fake."""
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    notes = []

    def make(real=False, **options):
        out = tmp_path / "search"
        program = (sys.executable, "-m", "rnn_lab_cli") if real else (sys.executable, str(fake))
        chosen = {
            "out": out, "storage": str(out / "journal.log"), "program": program, "timeout": None,
            "checkpoints": "best", "note": notes.append, "ended": lambda row, best: None,
        }  # fmt: skip
        return Worker(**{**chosen, **options})

    make.notes = notes
    return make
