"""Where rnn-lab keeps files that it can make again."""

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
