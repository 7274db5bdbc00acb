"""`rnn-lab bench backward`."""

import click
from rnn_lab.registry import registry

from rnn_lab_cli.bench_options import Finite, check_out, device_option, dtype_option, keep, out_option
from rnn_lab_cli.names import complete_model
from rnn_lab_cli.output import emit_json, json_option, note, pairs


@click.command()
@click.option("--model", default="e61", shell_complete=complete_model, metavar="NAME", help="Model or alias.")
@click.option("--dim", type=click.IntRange(1), default=1024, show_default=True, metavar="N", help="Width.")
@click.option("--depth", type=click.IntRange(1), default=4, show_default=True, metavar="N", help="Number of layers.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, metavar="N", help="Sequences.")
@click.option("--seq-len", type=click.IntRange(1), default=512, show_default=True, metavar="N", help="Bytes.")
@click.option(
    "--sparsity",
    type=Finite(0, 1, max_open=True),
    default=0.35,
    show_default=True,
    metavar="S",
    help="Share of the positions that is filtered.",
)
@dtype_option
@device_option
@json_option
@out_option
def backward(
    model: str, dim: int, depth: int, batch_size: int, seq_len: int, sparsity: float, dtype: str, device: str,
    as_json: bool, out: str | None,
) -> None:  # fmt: skip
    """Measure a whole model's backward pass with and without Collider, and forward beside it.

    On a GPU both are CUDA graphs where the model can be captured.
    """
    from rnn_lab.config import ModelSection
    from rnn_lab.e3.backward import measure
    from rnn_lab.train.device import pick_device, pick_dtype

    check_out(out)
    chosen = pick_device(device)
    section = ModelSection(name=model, depth=depth, fields={"dim": dim})
    found = measure(
        section, registry(), batch_size=batch_size, seq_len=seq_len, sparsity=sparsity,
        dtype=pick_dtype(dtype, chosen), device=chosen,
    )  # fmt: skip
    keep(found, out)
    if out is not None:
        note(f"where: {out}")
    if as_json:
        emit_json(found)
        return
    rows = [("model", f"{found['model']}, dim {dim}, depth {depth}, {found['params']:,} parameters")]
    rows += [("batch", f"{batch_size} x {seq_len} bytes, {found['dtype']}, {found['gpu'] or found['device']}")]
    for kind in ("dense", "filtered"):
        one = found[kind]
        rows.append((kind, f"forward {one['forward_ms']:.3f} ms, backward {one['backward_ms']:.3f} ms"))
    for name in ("backward", "step"):
        one = found[f"{name}_reduction"]
        rows.append((f"less {name} time", f"{one['value']:.1%} ({one['low']:.1%} to {one['high']:.1%})"))
    pairs([*rows, ("CUDA graph", found["graph"]["reason"] or "used")])
