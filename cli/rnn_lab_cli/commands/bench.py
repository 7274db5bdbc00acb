"""`rnn-lab bench`: the group; its commands are files of their own."""

import click

from rnn_lab_cli.lazy import LazyGroup


@click.group(cls=LazyGroup)
def bench() -> None:
    """Measure speed beside the peers that are installed, every implementation checked first."""


assert isinstance(bench, LazyGroup)
bench.add_lazy(
    "kernels", "rnn_lab_cli.commands.bench_kernels:kernels", help="Operations: every backend, the plain loop, peers."
)
bench.add_lazy("train", "rnn_lab_cli.commands.bench_train:train", help="Whole training steps of models and peers.")
bench.add_lazy("decode", "rnn_lab_cli.commands.bench_decode:decode", help="Generation with carried state.")
