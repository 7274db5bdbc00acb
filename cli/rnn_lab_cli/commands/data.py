"""`rnn-lab data`: the group; its commands are files of their own."""

import click

from rnn_lab_cli.lazy import LazyGroup


@click.group(cls=LazyGroup)
def data() -> None:
    """Describe, pack or fetch byte corpora."""


assert isinstance(data, LazyGroup)
data.add_lazy("info", "rnn_lab_cli.commands.data_info:info", help="Size, documents, entropies and encoding of a file.")
data.add_lazy("pack", "rnn_lab_cli.commands.data_pack:pack", help="Pack texts, JSON lines or Parquet into one file.")
data.add_lazy("fetch", "rnn_lab_cli.commands.data_fetch:fetch", help="Path of the default corpus, built if need be.")
