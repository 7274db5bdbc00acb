"""`rnn-lab completion`."""

import click
from click.shell_completion import get_completion_class

from rnn_lab_cli.output import note

PROGRAM = "rnn-lab"
VARIABLE = "_RNN_LAB_COMPLETE"
USAGE = {
    "bash": 'add to ~/.bashrc: eval "$(rnn-lab completion bash)"',
    "zsh": 'add to ~/.zshrc: eval "$(rnn-lab completion zsh)"',
    "fish": "rnn-lab completion fish > ~/.config/fish/completions/rnn-lab.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(USAGE)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes rnn-lab's commands, options and models in SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
    note(USAGE[shell])
