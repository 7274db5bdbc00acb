"""An environment of its own for tests that install something."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

SCRIPT = """#!{python}
import sys

from rnn_lab_cli.main import main

sys.exit(main())
"""


class Lab:
    """A virtual environment that sees the packages of this one, without being able to change them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        (packages,) = folder.glob("lib/python*/site-packages")
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (packages / "_parent.pth").write_text("\n".join(lines) + "\n")
        script = self.bin / "rnn-lab"
        script.write_text(SCRIPT.format(python=self.python))
        script.chmod(0o755)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RNN_LAB_", "PYTEST_"))},
            "PATH": f"{self.bin}{os.pathsep}{os.environ.get('PATH', '')}",
            "VIRTUAL_ENV": str(folder),
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "TMPDIR": str(folder),
        }
        if cache := os.environ.get("RNN_LAB_CACHE"):
            self.environment["RNN_LAB_CACHE"] = cache

    def run(self, *command: str, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the environment; fail unless it ends as expected."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert (done.returncode == 0) == ok, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def lab(self, *arguments: str, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `rnn-lab`."""
        return self.run(str(self.python), "-m", "rnn_lab_cli", *arguments, cwd=cwd, ok=ok)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    if sys.platform == "win32":
        pytest.skip("the environment is laid out as on Unix")
    return Lab(tmp_path / "environment")
