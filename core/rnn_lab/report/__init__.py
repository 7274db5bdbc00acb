"""Reports on a folder of runs: facts first, pages as renderings of them, and a check that computes all again."""

from importlib.util import find_spec

from rnn_lab.errors import ConfigError

LIBRARIES = ("jinja2", "matplotlib", "scipy")


def require_libraries() -> None:
    """See whether what draws and renders is installed.

    Raises:
        ConfigError: it is not; says what to install.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"reports need {', '.join(missing)}: pip install 'rnn-lab-core[report]'")
