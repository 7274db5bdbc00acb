"""`rnn-lab bench`: the group; its commands are files of their own."""

import click

from rnn_lab_cli.lazy import LazyGroup


@click.group(cls=LazyGroup)
def bench() -> None:
    """Measure speed, every implementation checked first, and what features of training efficiency are worth."""


assert isinstance(bench, LazyGroup)
bench.add_lazy(
    "kernels", "rnn_lab_cli.commands.bench_kernels:kernels", help="Operations: every backend, the plain loop, peers."
)
bench.add_lazy("train", "rnn_lab_cli.commands.bench_train:train", help="Whole training steps of models and peers.")
bench.add_lazy("decode", "rnn_lab_cli.commands.bench_decode:decode", help="Generation with carried state.")
bench.add_lazy("e3", "rnn_lab_cli.commands.bench_e3:e3", help="The E3 suite: features of training efficiency, judged.")
bench.add_lazy("backward", "rnn_lab_cli.commands.bench_backward:backward", help="Backward with and without Collider.")
bench.add_lazy("report", "rnn_lab_cli.commands.bench_report:report", help="The page on a finished E3 suite, again.")
