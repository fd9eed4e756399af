"""The Typer app, which turns errors into messages and exit codes."""

import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from typer.core import TyperGroup

from k2cli import __version__
from k2cli.commands.config import config_app
from k2cli.commands.consume import consume
from k2cli.commands.demo import demo
from k2cli.commands.dlq import dlq_app
from k2cli.commands.export import export_app
from k2cli.commands.init import init
from k2cli.commands.load import load_app
from k2cli.commands.options import chosen_profile
from k2cli.commands.produce import produce
from k2cli.commands.query import query_app
from k2cli.commands.schema.registry import schema_app
from k2cli.commands.simulate import simulate_app
from k2cli.commands.status import status
from k2cli.commands.stream import stream_app
from k2cli.commands.table import table_app
from k2cli.commands.terminal import output
from k2cli.commands.terminal.signals import forget_interrupts, interrupted_by_signals
from k2cli.commands.terminal.streams import give_up_stdout, stdout_failure
from k2cli.commands.topic import topic_app
from k2cli.config import is_utf8
from k2cli.errors import K2Error, UsageError

_OF_RICH: Final = 1  # exit code of Rich and Typer if the reader of --help closes the pipe


class K2Group(TyperGroup):
    """Turns a K2Error into `error:` and `hint:` lines on stderr and its exit code."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse the command line, which must be UTF-8: k2 stores and sends only UTF-8."""
        for arg in args:
            if not is_utf8(arg):
                raise typer.BadParameter(f"{arg!r} is not UTF-8")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command. A reader that closes the pipe (`| head`) ends it quietly with 0."""
        try:
            _check_profile_stands_first(ctx.args)
            with interrupted_by_signals():
                return super().invoke(ctx)
        except K2Error as exc:
            output.error(exc)
            raise typer.Exit(exc.exit_code) from exc
        except BrokenPipeError as exc:
            give_up_stdout()
            raise typer.Exit(0) from exc


def run() -> int:
    """Run the command line; return its exit code, with all of stdout written.

    A failed write is one line on stderr and exit code 5; a reader that closes the pipe early (`|
    head`) is not a failure.
    """
    code = _run()
    forget_interrupts()
    if failure := stdout_failure():
        give_up_stdout()
        return 0 if isinstance(failure, BrokenPipeError) and code == _OF_RICH else code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        give_up_stdout()
    except K2Error as exc:
        give_up_stdout()
        output.error(exc)
        return exc.exit_code
    return code


def _run() -> int:
    try:
        app(prog_name="k2")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0
    except K2Error as exc:  # outside of a command, such as --help
        output.error(exc)
        return exc.exit_code
    return 0


def _check_profile_stands_first(args: Sequence[str]) -> None:
    if any(arg == "--profile" or arg.startswith("--profile=") for arg in args):
        raise UsageError("--profile must precede the command", hint="use k2 --profile NAME COMMAND")


app = typer.Typer(
    cls=K2Group,
    name="k2",
    help="Stream and load market data into an Iceberg lakehouse, and query it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"k2 {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            help="Apply this profile of the config file.",
            show_default="$K2_PROFILE",
        ),
    ] = None,
) -> None:
    """Stream and load market data into an Iceberg lakehouse, and query it."""
    chosen_profile.set(profile)


app.command()(demo)
app.add_typer(stream_app, name="stream")
app.command()(init)
app.command()(produce)
app.command()(consume)
app.add_typer(load_app, name="load")
app.add_typer(query_app, name="query")
app.add_typer(export_app, name="export")
app.add_typer(table_app, name="table")
app.add_typer(topic_app, name="topic")
app.add_typer(schema_app, name="schema")
app.add_typer(dlq_app, name="dlq")
app.command()(status)
app.command("doctor", hidden=True)(status)
app.add_typer(config_app, name="config")
app.add_typer(simulate_app, name="simulate")
