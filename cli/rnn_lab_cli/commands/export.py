"""`rnn-lab export`."""

from pathlib import Path

import click

from rnn_lab_cli.output import emit_json, json_option, note, pairs


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(0), metavar="N", help="Checkpoint of that step; default: the newest.")
@json_option
def export(run: Path, folder: Path, step: int | None, as_json: bool) -> None:
    """Write a checkpoint of RUN to FOLDER/step_N as one process writes it: a file per group of tensors.

    A run over several GPUs has a file per GPU instead, which `resume`, `sample` and the like read as well. The files
    are safetensors with the weights that training goes on from; nothing of RUN changes.
    """
    from rnn_lab.errors import ConfigError
    from rnn_lab.train.checkpoint import load_checkpoint, load_latest, save_checkpoint
    from rnn_lab.train.rundir import RunDir, list_checkpoints

    found = dict(list_checkpoints(RunDir.open(run).checkpoints))
    if not found:
        raise ConfigError(f"{run} has no checkpoint yet: `rnn-lab resume {run}` trains it")
    if step is not None and step not in found:
        raise ConfigError(f"{run} has no checkpoint of step {step}: there are {', '.join(map(str, found))}")
    saved = load_latest(RunDir.open(run).checkpoints, note) if step is None else load_checkpoint(found[step])
    assert saved is not None
    if (folder / f"step_{saved.step}").exists():  # only now is known which of them is intact
        raise ConfigError(f"{folder} has a checkpoint of step {saved.step} already: choose another folder")
    saved.state.pop("ranks", None)
    path = save_checkpoint(folder, saved, keep=10**6)
    page = {"step": saved.step, "path": str(path), "tensors": {name: len(t) for name, t in saved.tensors.items()}}
    if as_json:
        emit_json(page)
    else:
        pairs([("step", saved.step), ("where", str(path))])
