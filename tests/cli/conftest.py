"""A small corpus, the program in this process, and one run that several tests read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rnn_lab.registry import registry
from rnn_lab_cli.main import main
from rnn_lab_cli.plugin_commands import plugin_commands

from .helpers import TINY, Done

Program = Callable[..., Done]


@pytest.fixture
def rnn_lab(capfd: pytest.CaptureFixture[str]) -> Program:
    """`rnn_lab("size", "e74")`: exit code and output, without a new process."""

    def call(*args: str) -> Done:
        capfd.readouterr()
        code = main(args)
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """`fresh(folder)`: this process finds its plugins anew, those of `folder` among them, for one test."""

    def forget() -> None:
        registry.cache_clear()
        plugin_commands.cache_clear()

    def begin(folder: Path | None = None) -> None:
        if folder is not None:
            monkeypatch.syspath_prepend(str(folder))
        # Set here so that monkeypatch takes away what --plugins-dir sets later.
        monkeypatch.setenv("RNN_LAB_PLUGINS_DIR", "")
        forget()

    yield begin
    forget()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "bytes.bin"
    path.write_bytes(b"\x1e".join(b"the quick brown fox number %d jumps" % i for i in range(500)))
    return path


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run, to be read only."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(["fit", "--model", "e61", *TINY, "--data", str(corpus), "--out", str(out), "--quiet"]) == 0
    return out
