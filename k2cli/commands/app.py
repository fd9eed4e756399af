"""The Typer app, which turns errors into messages and exit codes."""

import sys
from collections.abc import Sequence
from copy import copy
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperGroup

from k2cli import __version__
from k2cli.commands.lazy import LazyCommands, described
from k2cli.commands.profile import chosen_profile
from k2cli.commands.terminal.signals import forget_interrupts, interrupted_by_signals
from k2cli.commands.terminal.streams import error, give_up_stdout, note, stdout_failure
from k2cli.errors import K2Error, UsageError
from k2cli.paths import is_utf8

_OF_TYPER: Final = 1  # exit code of Typer if the reader of --help closes the pipe
_OF_PYDANTIC: Final = "Value error, "  # before the message of a ValueError in a parser of an option
# What all wrong command lines raise, which Typer does not export.
_UsageMistake = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


# In the order of --help.
_COMMANDS: Final = {
    "demo": "demo:demo",
    "init": "init:init",
    "produce": "produce:produce",
    "consume": "consume:consume",
    "status": "status:status",
    "doctor": "status:status",
    "stream": "stream:stream_app",
    "load": "load:load_app",
    "query": "query:query_app",
    "verify": "verify:verify_app",
    "export": "export:export_app",
    "table": "table:table_app",
    "topic": "topic:topic_app",
    "schema": "schema.registry:schema_app",
    "dlq": "dlq:dlq_app",
    "config": "config:config_app",
    "simulate": "simulate:simulate_app",
}
_HIDDEN: Final = frozenset({"doctor"})


class K2Group(TyperGroup):
    """k2's commands. A K2Error ends as `error:` and `hint:` lines on stderr and its exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        targets = {name: f"k2cli.commands.{target}" for name, target in _COMMANDS.items()}
        self.commands = LazyCommands(targets, hidden=_HIDDEN)  # type: ignore[assignment]

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Print the help, for which no command is imported."""
        listing = copy(self)
        listing.commands = described("")
        TyperGroup.format_help(listing, ctx, formatter)

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
            error(exc)
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
        return 0 if isinstance(failure, BrokenPipeError) and code == _OF_TYPER else code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        give_up_stdout()
    except K2Error as exc:
        give_up_stdout()
        error(exc)
        return exc.exit_code
    return code


def _run() -> int:
    try:
        code = app(prog_name="k2", standalone_mode=False)
    except SystemExit as exc:
        code = exc.code
    except _UsageMistake as exc:
        exc.message = exc.message.removeprefix(_OF_PYDANTIC)
        exc.show(file=sys.stderr)  # by itself Typer evades k2's stderr if that is not UTF-8
        return exc.exit_code
    except typer.Abort:  # a question without an answer
        note("aborted")
        return 1
    except K2Error as exc:  # outside of a command, such as --help
        error(exc)
        return exc.exit_code
    return code if isinstance(code, int) else 0


def _check_profile_stands_first(args: Sequence[str]) -> None:
    if any(arg == "--profile" or arg.startswith("--profile=") for arg in args):
        raise UsageError("--profile must precede the command", hint="use k2 --profile NAME COMMAND")


app = typer.Typer(
    cls=K2Group,
    name="k2",
    help="Stream and load market data into an Iceberg lakehouse, and query it.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: Rich takes twice the time of everything else
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
