"""`rnn-lab sample`."""

import codecs
from pathlib import Path

import click
from rnn_lab.registry import registry

from rnn_lab_cli.output import emit_json, json_option, note, on_terminal


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", default="", metavar="TEXT", help="Where the text starts; default: a new document.")
@click.option("--bytes", "length", type=click.IntRange(min=0), default=300, show_default=True, help="How many bytes.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="0: the likeliest byte.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Draw among the K likeliest bytes only.")
@click.option("--seed", type=click.IntRange(min=0, max=2**63 - 1), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@json_option
def sample(
    run: Path,
    prompt: str,
    length: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Write text from the newest checkpoint of the run in folder RUN: the prompt, then what follows."""
    import torch
    from rnn_lab.generate import generate
    from rnn_lab.train.run import load_trained

    model, _, step = load_trained(run, registry(), device, note)
    generator = torch.Generator().manual_seed(seed)
    start = prompt.encode(errors="surrogateescape")
    drawn = generate(model, start, length, temperature, top_k, generator)
    if as_json:
        text = bytes(drawn).decode(errors="replace")
        emit_json({"run": str(run), "step": step, "seed": seed, "prompt": prompt, "text": text})
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    click.echo(decoder.decode(start), nl=False)
    for byte in drawn:
        click.echo(decoder.decode(bytes([byte])), nl=False)
    click.echo(decoder.decode(b"", final=True), nl=on_terminal())
