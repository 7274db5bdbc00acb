"""`rnn-lab show`."""

from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click
from rnn_lab.registry import ModelRef, registry

from rnn_lab_cli.names import complete_model
from rnn_lab_cli.output import emit_json, heading, json_option, pairs, table

if TYPE_CHECKING:
    from rnn_lab.modelspec import ModelSpec

TARGETS = (50_000_000, 100_000_000, 500_000_000)
REFERENCE_TARGET = 100_000_000
SEQ_LEN = 512


@click.command()
@click.argument("model", shell_complete=complete_model)
@json_option
def show(model: str, as_json: bool) -> None:
    """Show one MODEL: mathematics, fields, state shapes, sizes, kernels usable here, seed rows."""
    ref, preset = registry().find_model(model)
    page = describe(ref, preset)
    if as_json:
        emit_json(page)
    else:
        _print(page)


def describe(ref: ModelRef, preset: dict[str, Any]) -> dict[str, Any]:
    """What `show --json` prints."""
    from rnn_lab.config import ModelSection
    from rnn_lab.modelspec import model_spec

    from rnn_lab_cli.commands.presets import presets_of

    found = registry()
    layer_cls = ref.load()
    specs = {
        target: model_spec(ModelSection(name=ref.name, target=target, fields=preset), found, must_reach=False)
        for target in TARGETS
    }
    spec = specs[REFERENCE_TARGET]
    forward = spec.flops_per_token(SEQ_LEN)
    return {
        "name": ref.name,
        "family": ref.family,
        "plugin": ref.plugin,
        "path": str(ref.path),
        "equation": ref.doc.equation,
        "text": ref.doc.text,
        "parent": ref.doc.parent,
        "parameters": ref.doc.parameters,
        "source": ref.doc.source,
        "aliases": ref.doc.aliases,
        "fields": _fields(layer_cls.Config),
        "state_shapes": {k: list(v) for k, v in layer_cls.state_shapes(spec.layer_cfg).items()},
        "state_bytes": layer_cls.state_bytes(spec.layer_cfg, SEQ_LEN),
        "derived": spec.layer_cfg.derived(),
        "sizes": [_size_row(s) for s in specs.values()],
        "kernels": _kernels(layer_cls, preset),
        "flops_per_token": {
            "target": REFERENCE_TARGET,
            "seq_len": SEQ_LEN,
            "forward": forward,
            "training": 3 * forward,
        },
        "presets": presets_of(ref.name, found),
    }


def _size_row(spec: "ModelSpec") -> dict[str, Any]:
    proof = spec.certificate
    shape = {"dim": spec.layer_cfg.dim, "depth": spec.lm_cfg.depth}
    return {"target": proof.target, "params": proof.params, "deviation": proof.deviation, **shape}


def _kernels(layer_cls: Any, preset: dict[str, Any]) -> list[dict[str, Any]]:
    """What would run here, judged on a small layer."""
    from rnn_lab.errors import KernelUnavailable
    from rnn_lab.train.device import pick_device, pick_dtype

    from rnn_lab_cli.backends import probe_backends

    device = pick_device("auto")
    try:
        cfg = layer_cls.Config(**preset)
        return probe_backends(layer_cls, cfg, device, pick_dtype("auto", device), batch=2, seq_len=16)
    except KernelUnavailable as error:
        return [{"op": "-", "backend": "none", "refused": {"all": str(error)}}]


def _fields(config: Any) -> list[dict[str, Any]]:
    defaults = config().model_dump(mode="json")
    return [
        {
            "name": name,
            "type": type_name(info.annotation),
            "default": defaults[name],
            "description": info.description or "",
        }
        for name, info in config.model_fields.items()
    ]


def type_name(annotation: Any) -> str:
    """`int`, `tanh | linear`, `int | None`."""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(type_name(part) for part in get_args(annotation))
    if annotation is NoneType:
        return "None"
    return str(annotation.__name__) if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _print(page: dict[str, Any]) -> None:
    click.secho(f"{page['name']}: {page['equation']}", bold=True)
    click.echo(f"\n{page['text']}")
    heading("about")
    aliases = "; ".join(_alias(name, fields) for name, fields in page["aliases"].items())
    keys = ("family", "plugin", "path", "parent", "parameters", "source")
    pairs([*((key, page[key]) for key in keys), ("aliases", aliases)])
    heading("fields")
    columns = ("name", "type", "default", "description")
    table(columns, [[str(field[c]) for c in columns] for field in page["fields"]])
    heading("sizes")
    shape = ("target", "params", "deviation", "dim", "depth")
    table(shape, [[f"{r[c]:+.3%}" if c == "deviation" else r[c] for c in shape] for r in page["sizes"]])
    heading(f"at {REFERENCE_TARGET:,} parameters")
    flops = page["flops_per_token"]
    shapes = ", ".join(f"{name} {shape}" for name, shape in page["state_shapes"].items())
    pairs(
        [
            ("state of a layer and sequence", f"{shapes}: {page['state_bytes']:,} bytes"),
            ("forward FLOPs per token", flops["forward"]),
            ("training FLOPs per token", flops["training"]),
            *page["derived"].items(),
        ]
    )
    heading("kernels usable here")
    rows = [
        [k["op"], k["backend"], "; ".join(f"{n}: {why}" for n, why in k["refused"].items())] for k in page["kernels"]
    ]
    table(("operation", "backend", "why no faster one"), rows)
    if page["presets"]:
        heading("seed rows (external figures, as printed)")
        known = ("name", "params", "match", "printed_params", "loss", "tok_s", "reason")
        table(known, [[row[c] for c in known] for row in page["presets"]])


def _alias(name: str, fields: dict[str, str]) -> str:
    settings = ", ".join(f"{key} = {value}" for key, value in fields.items())
    return f"{name} ({settings})" if settings else name
