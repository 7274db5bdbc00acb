"""`rnn-lab tensorboard`."""

import os
import sys
from pathlib import Path

import click
from rnn_lab.errors import ConfigError


@click.command()
@click.argument("folder", metavar="[DIR]", default="runs", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=6006, show_default=True, help="0: any free port.")
def tensorboard(folder: Path, port: int) -> None:
    """Show the curves of every run below DIR (default: runs) in the browser."""
    if next(folder.rglob("events.out.tfevents.*"), None) is None:
        raise ConfigError(f"{folder}: no TensorBoard events there; `rnn-lab fit` writes them to its run's folder")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    # TensorBoard takes this process over, so that Ctrl-C and its exit code are its own.
    os.execv(sys.executable, command)
