"""`rnn-lab check`."""

import click
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.registry import registry

from rnn_lab_cli.names import complete_model_or_plugin
from rnn_lab_cli.output import emit_json, json_option

WORDS = {"pass": "pass", "fail": "FAIL", "skip": "skip"}


@click.command()
@click.argument("subject", metavar="MODEL|PLUGIN", shell_complete=complete_model_or_plugin)
@click.option("--only", multiple=True, metavar="ID", help="Only this check; may be repeated.")
@click.option("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N: where kernels are held to it too.")
@json_option
@click.pass_context
def check(ctx: click.Context, subject: str, only: tuple[str, ...], device: str, as_json: bool) -> None:
    """Hold a model, or every model of a plugin, to the contract that all models keep."""
    models = _models(subject)
    from rnn_lab.testing import Suite
    from rnn_lab.train.device import pick_device

    where = str(pick_device(device))

    rows = []
    for model in models:
        if len(models) > 1 and not as_json:
            click.echo(f"{model}:")
        for result in Suite(model, device=where).results(only or None):
            rows.append(
                {
                    "model": model,
                    "id": result.id,
                    "status": result.status,
                    "message": result.message,
                    "seconds": round(result.seconds, 3),
                }
            )
            if not as_json:
                click.echo(f"{WORDS[result.status]} {result.id} {result.message}".rstrip())
    if as_json:
        emit_json(rows)
    if any(row["status"] == "fail" for row in rows):
        ctx.exit(1)


def _models(subject: str) -> list[str]:
    """The model of that name, or the models of the plugin or distribution of that name."""
    found = registry()
    if subject.lower() in found.models | found.aliases:
        return [subject]
    plugins: dict[str, list[str]] = {}
    for info in found.plugins:
        for name in {info.name, info.distribution} - {""}:
            plugins[name] = [*plugins.get(name, []), *info.models]
    if plugins.get(subject):
        return plugins[subject]
    if subject in plugins:
        raise ConfigError(f"plugin {subject!r} brings no models: see `rnn-lab plugins`")
    hint = did_you_mean(subject, [*found.models, *found.aliases, *plugins])
    raise ConfigError(f"{subject!r} is neither a model nor a plugin.{hint} See `rnn-lab list-models`.")
