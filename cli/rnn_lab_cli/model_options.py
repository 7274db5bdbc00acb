"""Fields of the chosen model's own Config as options: `--n-state 32`.

The command line names the model, so its options are known only once the arguments are seen. A first pass over
them finds the name; the second, click's own, then knows the fields too.
"""

from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click
from rnn_lab.errors import ConfigError
from rnn_lab.registry import Registry, registry

from rnn_lab_cli.layers import protocol_layer

_OPTIONS = "rnn_lab_cli.model_options"
_VALUES = "rnn_lab_cli.model_values"
_TITLE = "rnn_lab_cli.model_title"
_SCALARS = {int: "INTEGER", float: "FLOAT", str: "TEXT"}


class ModelCommand(click.Command):
    """Command that takes the fields of the model that its arguments name.

    The model is the value of `--model`, or what `-o model.name=`, `--config`, `--preset` or `--protocol` say; in a
    command with an argument called `model` it is that argument, where one is given.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the model, then parse with its fields among the options."""
        model = None if ctx.resilient_parsing else self._named_model(ctx, args)
        if model is not None:
            ref, _ = registry().find_model(model)
            layer_cls = ref.load()
            taken = {flag for param in self.params for flag in (*param.opts, *param.secondary_opts)}
            ctx.meta[_OPTIONS] = field_options(layer_cls, taken)
            ctx.meta[_TITLE] = f"Fields of {ref.name}"
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if model is not None:
                raise
            text = f"{error.format_message()} Fields of a model are options once the model is named."
            raise click.UsageError(text, ctx) from error

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then the model's fields."""
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, [])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options of the command and of the model in two sections."""
        fields: list[click.Option] = ctx.meta.get(_OPTIONS, [])
        own = [param for param in self.get_params(ctx) if param not in fields]
        for title, params in (("Options", own), (ctx.meta.get(_TITLE, ""), fields)):
            records = [param.get_help_record(ctx) for param in params if isinstance(param, click.Option)]
            rows = [row for row in records if row is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if not fields:
            with formatter.section("Fields of the model"):
                formatter.write_text("Name the model before --help to see its fields as options.")

    def _named_model(self, ctx: click.Context, args: list[str]) -> str | None:
        probe = click.Context(self, parent=ctx.parent, resilient_parsing=True, ignore_unknown_options=True)
        parser = click.Command("probe", params=[p for p in self.params if isinstance(p, click.Option)])
        given, rest, _ = parser.make_parser(probe).parse_args(list(args))
        found = registry()
        model = given.get("model")
        if any(isinstance(param, click.Argument) and param.name == "model" for param in self.params):
            model = _first_model(rest, found)
        return model_named_by(model, given, found)


def _first_model(rest: list[str], found: Registry) -> str | None:
    """The positional argument among `rest`, which also holds unknown options and their values."""
    words = [(i, word) for i, word in enumerate(rest) if not word.startswith("-")]
    sure = [word for i, word in words if i == 0 or not rest[i - 1].startswith("-") or "=" in rest[i - 1]]
    known = [word for word in [*sure, *(w for _, w in words)] if word.lower() in found.models | found.aliases]
    return next(iter(known or sure), None)


def model_named_by(model: str | None, given: Mapping[str, Any], found: Registry) -> str | None:
    """Name of the model, the strongest layer of the `given` options first; None when nothing names one.

    Raises:
        ConfigError: a preset is given, and something stronger names another model than its own.

    """
    from rnn_lab.config import parse_override
    from rnn_lab.e3.files import read_layers, tables_of
    from rnn_lab.presets import find_preset

    tables: list[Mapping[str, Any]] = [parse_override(text) for text in reversed(list(given.get("override") or ()))]
    if model is not None:
        tables.append({"model": {"name": model}})
    if (config := given.get("config")) is not None:
        tables.append(tables_of(read_layers(config).layers))
    stronger = _model_in(tables)
    if (preset := given.get("preset")) is not None:
        tables.append(find_preset(preset, found).layer().values)
        own = _model_in(tables[-1:])
        if stronger is not None and own is not None and found.find_model(stronger) != found.find_model(own):
            raise ConfigError(
                f"preset {preset} is of model {own}, and {stronger} is another: leave out one of the two "
                f"(`rnn-lab show {stronger}` lists the presets of that one)"
            )
    if (protocol := given.get("protocol")) is not None:
        tables.append(protocol_layer(protocol, found).values)
    return _model_in(tables)


def _model_in(tables: Iterable[Mapping[str, Any]]) -> str | None:
    """The first name of a model in tables of sections."""
    sections = (table.get("model") for table in tables)
    names = (section.get("name") for section in sections if isinstance(section, Mapping))
    return next((name for name in names if isinstance(name, str)), None)


def field_values(ctx: click.Context) -> dict[str, Any]:
    """Fields of the model that options set, by field name."""
    values: dict[str, Any] = ctx.meta.get(_VALUES, {})
    return values


def field_options(layer_cls: Any, taken: set[str]) -> list[click.Option]:
    """One option per field of the model's Config whose flag is not in `taken`."""
    defaults = layer_cls.Config()
    solved = {"dim", *layer_cls.search_space(defaults).choices}
    options = []
    for name, info in layer_cls.Config.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in taken:
            continue
        fallback = "found for --target" if name in solved else getattr(defaults, name)
        text = f"{info.description or ''}  [default: {fallback}]".strip()
        options.append(_option(name, flag, text, info.annotation))
    return options


def _option(name: str, flag: str, text: str, annotation: Any) -> click.Option:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    if get_origin(annotation) is not Literal and len(kinds) == 1 and NoneType in get_args(annotation):
        annotation = kinds[0]
    choices = {str(value): value for value in get_args(annotation)} if get_origin(annotation) is Literal else {}

    def store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.meta.setdefault(_VALUES, {})[name] = _value(name, value, annotation, choices)

    shape: dict[str, Any] = {"metavar": _SCALARS.get(annotation, "VALUE")}
    if annotation is bool:
        flag, shape = f"{flag}/--no-{flag[2:]}", {"default": None}
    elif choices:
        shape = {"type": click.Choice(list(choices))}
    return click.Option([flag, f"field_{name}"], help=text, expose_value=False, callback=store, **shape)


def _value(name: str, text: Any, annotation: Any, choices: Mapping[str, Any]) -> Any:
    """What the configuration is given: pydantic reads plain scalars itself, anything richer is TOML."""
    if choices:
        return choices[text]
    if annotation in (bool, *_SCALARS):
        return text
    from rnn_lab.config import parse_override

    try:
        return parse_override(f"field={text}")["field"]
    except ConfigError as error:
        raise ConfigError(f"--{name.replace('_', '-')} {text}: not a TOML value") from error
