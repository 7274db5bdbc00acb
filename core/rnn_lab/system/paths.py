"""Where rnn-lab keeps files of the user, whatever folder it runs in."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for caches: `$RNN_LAB_CACHE`, else `$XDG_CACHE_HOME/rnn-lab`, else `~/.cache/rnn-lab`.

    The folder is not created. An empty variable counts as unset, `~` is expanded.
    """
    if own := os.environ.get("RNN_LAB_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "rnn-lab"


def data_dir() -> Path:
    """Folder for what was measured and is worth keeping.

    `$RNN_LAB_DATA`, else `$XDG_DATA_HOME/rnn-lab`, else `~/.local/share/rnn-lab`. The folder is not created. An empty
    variable counts as unset, `~` is expanded.
    """
    if own := os.environ.get("RNN_LAB_DATA"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_DATA_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".local" / "share") / "rnn-lab"
