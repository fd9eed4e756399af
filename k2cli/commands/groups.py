"""Groups of options that several commands share, each declared once as a dataclass."""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

from k2cli.commands.kafka import kafka_settings, registry_settings
from k2cli.commands.options import (
    SIZE,
    TIMEOUT_S,
    KafkaOpt,
    LimitOpt,
    RegistryOpt,
    TimeoutOpt,
    checked_file,
)
from k2cli.commands.terminal.events import LogFormat, RunLog
from k2cli.commands.terminal.logfile import LogFile, Rotation
from k2cli.commands.terminal.output import Output, choose_output
from k2cli.config import Settings
from k2cli.events import Level
from k2cli.query.formats import Format

if TYPE_CHECKING:
    from k2cli.pipelines.produce import ProduceOptions
    from k2cli.query.selection import Selection


class OptionGroup:
    """The base of all groups, which are frozen dataclasses."""

    __slots__ = ()


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Expand the parameters of a command that are option groups into their options.

    A group is a dataclass whose fields are options: `Annotated[type, typer.Option(...)] = default`.
    On the command line the fields are options of the command, in this order; the command receives
    them as one object.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and issubclass(hint, OptionGroup):
            groups[parameter.name] = hint
            parameters += _options_of(hint)
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hint, kind=kind))

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _options_of(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesOptions(OptionGroup):
    """The symbols to select."""

    symbol: Annotated[
        list[str] | None,
        typer.Option("--symbol", "-s", help="Only these symbols, comma-separated or repeated."),
    ] = None
    exchange: Annotated[
        list[str] | None,
        typer.Option("--exchange", help="Only these exchanges, comma-separated or repeated."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionOptions(SeriesOptions):
    """The rows to select."""

    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            help="Start time (inclusive): 2024-08-08T10:30Z, 2024-08, an epoch, -15m, today.",
        ),
    ] = None
    end: Annotated[
        str | None,
        typer.Option("--end", help="End time (exclusive); a date is its midnight in UTC."),
    ] = None
    limit: LimitOpt = None

    def select(self, *, columns: list[str] | None = None, order: str = "asc") -> "Selection":
        """Build the selection.

        Raises:
            UsageError: an empty option, or an invalid time.
        """
        from k2cli.query.selection import selection_of

        return selection_of(
            symbol=self.symbol,
            exchange=self.exchange,
            start=self.start,
            end=self.end,
            columns=columns,
            order="desc" if order == "desc" else "asc",
            limit=self.limit,
            prefix="--",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions(OptionGroup):
    """The file that an answer is written to."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write to this file, completely or not at all, instead of stdout.",
        ),
    ] = None
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output file if it exists.")
    ] = False

    def choose(self, fmt: Format | None = None) -> Output:
        """Choose format and destination. See `choose_output`."""
        return choose_output(fmt, self.output, is_forced=self.force)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions(FileOptions):
    """The format of an answer, and the file that it is written to."""

    fmt: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            help="Output format.",
            show_default="from the file's suffix, else table on a terminal, csv in a pipe",
        ),
    ] = None

    def choose(self, fmt: Format | None = None) -> Output:
        """Choose format and destination. See `choose_output`."""
        return choose_output(fmt or self.fmt, self.output, is_forced=self.force)


_LOG_FILE_BYTES: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions(OptionGroup):
    """The log of a run."""

    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format",
            help="Write events to stderr as log lines, in this format.",
            show_default="text for people",
        ),
    ] = None
    log_level: Annotated[Level, typer.Option("--log-level", help="Minimum level of log lines.")] = (
        Level.INFO
    )
    log_file: Annotated[
        Path | None,
        typer.Option(
            "--log-file",
            help="Also append log lines to this file, in addition to stderr.",
            show_default=False,
            callback=checked_file,
        ),
    ] = None
    log_file_size: Annotated[
        int | None,
        typer.Option(
            "--log-file-size",
            help="Rotate the log file at this size: FILE is renamed to FILE.1, and so on.",
            show_default="10MB",
            **SIZE,
        ),
    ] = None
    log_file_keep: Annotated[
        int, typer.Option("--log-file-keep", min=1, help="Keep this many rotated log files.")
    ] = 5

    def open(self, stack: ExitStack, run: str) -> RunLog:
        """Open the log of a run: on stderr, and in a file if one is given.

        Raises:
            ConfigError: the file cannot be written.
        """
        file = None
        if self.log_file is not None:
            size_bytes = self.log_file_size or _LOG_FILE_BYTES
            rotation = Rotation(max_bytes=size_bytes, keep=self.log_file_keep)
            file = stack.enter_context(LogFile(self.log_file, rotation))
        return RunLog(self.log_format, self.log_level, run=run, file=file)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewLogOptions(LogOptions):
    """The log of a run with a live view."""

    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format",
            help="Write log lines, in this format, instead of the live view.",
            show_default="text, unless stderr is a terminal",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(OptionGroup):
    """The connections to Kafka and the registry."""

    timeout: TimeoutOpt = None
    kafka: KafkaOpt = None
    registry: RegistryOpt = None

    @property
    def timeout_s(self) -> float:
        """How long to wait for an answer, in seconds."""
        return self.timeout or TIMEOUT_S

    def kafka_settings(self, config: Settings) -> dict[str, str]:
        """Merge --kafka-option into [kafka]."""
        return kafka_settings(config, self.kafka)

    def registry_settings(self, config: Settings) -> dict[str, str]:
        """Merge --registry-option into [schema_registry]."""
        return registry_settings(config, self.registry)

    def produce_options(
        self, config: Settings, topic: str | None, *, is_registering: bool
    ) -> "ProduceOptions":
        """Build the options of a producer."""
        from k2cli.pipelines.produce import ProduceOptions

        return ProduceOptions(
            kafka=self.kafka_settings(config),
            registry=self.registry_settings(config),
            timeout_s=self.timeout_s,
            run=config.run,
            topic=topic,
            is_registering=is_registering,
        )
