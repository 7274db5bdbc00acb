"""`rnn-lab plugins`."""

import click
from rnn_lab.registry import registry

from rnn_lab_cli.output import emit_json, json_option, table
from rnn_lab_cli.plugin_commands import plugin_commands


@click.command()
@click.option("--requirements", is_flag=True, help="NAME==VERSION of every plugin's distribution, for pip.")
@json_option
def plugins(requirements: bool, as_json: bool) -> None:
    """List every plugin: what it brought, how long it took to load, and what is wrong with it."""
    if requirements:
        from rnn_lab_cli.installer import plugin_distributions

        lines = sorted(f"{dist.name}=={dist.version}" for dist in plugin_distributions().values())
        if as_json:
            emit_json(lines)
        else:
            click.echo("".join(f"{line}\n" for line in lines), nl=False)
        return
    from rnn_lab.presets import all_presets

    plugin_commands()
    all_presets(registry())
    rows = [
        {
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "models": info.models,
            "hooks": info.hooks,
            "seconds": round(info.seconds, 4),
            "status": info.status,
            "problems": info.problems,
        }
        for info in registry().plugins
    ]
    if as_json:
        emit_json(rows)
        return
    columns = ("name", "distribution", "version", "models", "hooks", "seconds", "status", "problems")
    table(columns, [[_text(row[column]) for column in columns] for row in rows])


def _text(value: object) -> object:
    if not isinstance(value, list):
        return value
    return "; ".join(value) if any(" " in item for item in value) else " ".join(value)
