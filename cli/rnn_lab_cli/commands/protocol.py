"""`rnn-lab protocol`: the group; its commands are files of their own."""

import click

from rnn_lab_cli.lazy import LazyGroup


@click.group(cls=LazyGroup)
def protocol() -> None:
    """Comparisons as files: what they hold equal, which models they run, and running them."""


assert isinstance(protocol, LazyGroup)
protocol.add_lazy("list", "rnn_lab_cli.commands.protocol_list:list_", help="Every protocol: size, budget, runs.")
protocol.add_lazy("show", "rnn_lab_cli.commands.protocol_show:show", help="One protocol: runs, settings, figures.")
protocol.add_lazy("run", "rnn_lab_cli.commands.protocol_run:run", help="Run a protocol's series, or go on with it.")
