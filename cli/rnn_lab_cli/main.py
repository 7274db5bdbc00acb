"""`rnn-lab`: the root command, and the one place where errors become lines and exit codes."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click
from rnn_lab.errors import RnnLabError

from rnn_lab_cli import builtin
from rnn_lab_cli.lazy import LazyCommand, LazyGroup
from rnn_lab_cli.ranks import says_its_errors

PROGRAM = "rnn-lab"
INTERRUPTED = 130
_SILENT = ("plugins", "completion")


@dataclass
class Session:
    """What holds for one call of the program, whatever the command."""

    debug: bool = False


class RootGroup(LazyGroup):
    """The built-in commands, then those of plugins, which load only when somebody asks for them."""

    def known(self) -> dict[str, LazyCommand]:
        """Built-in commands first."""
        from rnn_lab_cli.plugin_commands import plugin_commands

        return {**self.references, **plugin_commands()}

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; what it returns is no exit code."""
        super().invoke(ctx)


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.ensure_object(Session).debug = True


def _set_plugins_dir(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ["RNN_LAB_PLUGINS_DIR"] = value


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib import metadata

        click.echo(f"{PROGRAM} {metadata.version('rnn-lab-core')}")
        ctx.exit()


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show tracebacks.")
@click.option(
    "--plugins-dir",
    metavar="DIR",
    is_eager=True,
    expose_value=False,
    callback=_set_plugins_dir,
    help="Folder of single-file models to add.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Easy, fast and honest comparisons of recurrent language models."""
    if ctx.invoked_subcommand not in _SILENT:
        from rnn_lab_cli.plugin_commands import warn_about_plugins

        warn_about_plugins()


assert isinstance(cli, RootGroup)
builtin.register_commands(cli)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: arguments without the program's name; those of this process when None.

    Returns:
        The exit code: 0 ok, 1 failed, 2 usage or configuration, 3 diverged, 4 budget too small,
        130 interrupted.

    """
    session = Session()
    _replace_closed_streams()
    _forgive_encodings()
    try:
        code: Any = cli.main(
            args=None if argv is None else list(argv), prog_name=PROGRAM, standalone_mode=False, obj=session
        )
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        return _report(error, session.debug)
    return code if isinstance(code, int) else 0


def _report(error: BaseException, debug: bool) -> int:
    """Say what went wrong on stderr; the exit code."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # The reader of our output went away; a later flush at exit must not complain either.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    if isinstance(error, RnnLabError):
        if says_its_errors(error):
            click.echo(f"error: {error}", err=True)
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        click.echo(f"error: {error.format_message()}", err=True)
        ctx = getattr(error, "ctx", None)
        if ctx is not None:
            click.echo(f"See `{ctx.command_path} --help`.", err=True)
        return error.exit_code
    hint = "" if debug else "; run with --debug (before the command) for the traceback"
    first = (str(error).strip().splitlines() or [""])[0]
    click.echo(f"internal error: {type(error).__name__}: {first}{hint}", err=True)
    return 1


def _replace_closed_streams() -> None:
    """A stream that was closed before we started (`>&-`) swallows what is written to it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _forgive_encodings() -> None:
    """A terminal that cannot show a character gets a replacement, not an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
