"""`k2 dlq`: list, show and replay messages that could not be decoded."""

import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from k2cli.commands.groups import AnswerOptions, takes_groups
from k2cli.commands.kafka import kafka_settings, registry_settings
from k2cli.commands.options import (
    TIMEOUT_S,
    HomeOpt,
    KafkaOpt,
    LimitOpt,
    RegistryOpt,
    TextOrJson,
    TextOrJsonOpt,
    TimeoutOpt,
    dry_run_option,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.commands.terminal.events import RunLog
from k2cli.commands.terminal.output import Summary
from k2cli.commands.terminal.plain import printable
from k2cli.commands.terminal.signals import stopped_by_signals
from k2cli.commands.terminal.streams import note
from k2cli.errors import ConfigError, UsageError
from k2cli.files import open_input
from k2cli.iso import iso_utc, iso_utc_ms
from k2cli.query.formats import Format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from k2cli.config import Settings
    from k2cli.ingestion.kafka.letters import Letter, LetterId, LetterReader
    from k2cli.ingestion.kafka.registry import Registry
    from k2cli.ingestion.kafka.replay import ReplayChoice
    from k2cli.ingestion.kafka.values import ValueInfo

dlq_app = typer.Typer(
    help="Inspect and replay dead letters: messages that were rejected.",
    no_args_is_help=True,
)

_TABLE_ROWS: Final = 1_000
_TEXT_CHARS: Final = 4_096

TopicOpt = Annotated[
    str,
    typer.Option(
        "--topic",
        "-t",
        help="Source topic of the messages; their dead letters are on TOPIC.dlq.",
        show_default=False,
    ),
]
LettersArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PARTITION/OFFSET",
        help="Dead letters as PARTITION/OFFSET, as k2 dlq list shows them: 0/17.",
        show_default=False,
    ),
]


@dlq_app.command("list")
@takes_groups
def list_letters(
    *,
    topic: TopicOpt,
    limit: LimitOpt = None,
    out: AnswerOptions,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    home: HomeOpt = None,
) -> None:
    """List dead letters, newest last, with reason, origin and whether they were replayed.

    --limit shows the newest; a table shows 1000 by default.

    Example: k2 dlq list --topic market.crypto.trades --limit 20
    """
    from k2cli.ingestion.kafka.letters import list_letters as list_rows
    from k2cli.ingestion.kafka.letters import open_letters

    chosen = out.choose()
    newest = limit or (_TABLE_ROWS if chosen.format is Format.TABLE else None)
    options = kafka_settings(settings(home), kafka)
    with (
        open_letters(options, topic, timeout_s=timeout or TIMEOUT_S) as reader,
        tempfile.TemporaryDirectory(prefix="k2-") as folder,
    ):
        rows = list_rows(reader, Path(folder) / "letters.arrow", newest=newest)
        if reader.is_missing:
            note(_none(reader))
        elif limit is None and rows.num_rows == newest:
            note(f"showing the newest {newest}; use --limit for more, or --format csv for all")
        details = ("size_bytes", "key", "offset", "partition", "topic", "time")
        output.print_rows(chosen, rows, details=details)


@dlq_app.command()
def show(
    topic: TopicOpt,
    letters: LettersArg = None,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write only the unchanged value of one dead letter.")
    ] = False,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Show dead letters with reason, origin, headers, and the value as far as it decodes.

    Example: k2 dlq show --topic market.crypto.trades 0/17
    """
    from k2cli.ingestion.kafka.letters import open_letters
    from k2cli.ingestion.kafka.values import describe_value

    letter_ids = _parse_ids(letters)
    if not letter_ids:
        raise UsageError(
            "no dead letter given: name one, such as 0/17", hint=f"k2 dlq list --topic {topic}"
        )
    if raw:
        _check_raw(letter_ids)
    config = settings(home)
    timeout_s = timeout or TIMEOUT_S
    with ExitStack() as stack:
        options = kafka_settings(config, kafka)
        reader = stack.enter_context(open_letters(options, topic, timeout_s=timeout_s))
        if raw:
            _write_raw(reader.letter(letter_ids[0]))
            return
        schemas = _schemas(stack, config, registry, timeout_s)
        found = [
            (letter, describe_value(letter.value, schemas))
            for letter in map(reader.letter, letter_ids)
        ]
        topic = reader.topic
    if fmt is TextOrJson.JSON:
        objects = [_object(topic, letter, value) for letter, value in found]
        output.data(json.dumps(objects, default=_plain))
    else:
        output.data("\n\n".join(_description(topic, letter, value) for letter, value in found))


@dlq_app.command()
def replay(
    topic: TopicOpt,
    letters: LettersArg = None,
    every: Annotated[
        bool, typer.Option("--all", help="Replay every dead letter not replayed yet.")
    ] = False,
    value: Annotated[
        Path | None,
        typer.Option(
            "--value",
            help="File with the repaired value for the one given dead letter; - is stdin.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also replay dead letters that were replayed before.")
    ] = False,
    dry_run: Annotated[bool, dry_run_option("what would be sent without sending it")] = False,
    timeout: TimeoutOpt = None,
    summary: Annotated[
        Summary, typer.Option("--summary", help="Summary at the end: text, or JSON on stdout.")
    ] = Summary.TEXT,
    kafka: KafkaOpt = None,
    home: HomeOpt = None,
) -> None:
    """Send dead letters back to the topic and partition that they came from.

    Key, value and headers are those of the message. Each dead letter is sent exactly once, even if
    this is run repeatedly or killed: the messages and the record of the replay are one transaction.

    Example: k2 dlq replay --topic market.crypto.trades --all
    """
    from k2cli.ingestion.kafka.letters import open_letters
    from k2cli.ingestion.kafka.replay import ReplayTotals, open_replay

    choice = _choice(letters, value, is_all=every, is_again=again)
    config = settings(home)
    options = kafka_settings(config, kafka)
    timeout_s = timeout or TIMEOUT_S
    with ExitStack() as stack:
        reader = stack.enter_context(open_letters(options, topic, timeout_s=timeout_s))
        if reader.is_missing and every:
            note(_none(reader))
            output.summary(asdict(ReplayTotals()), summary, is_data_on_stdout=False)
            return
        run = stack.enter_context(
            open_replay(
                reader,
                options,
                timeout_s=timeout_s,
                is_dry_run=dry_run,
                observe=RunLog(run=config.run).on_event,
            )
        )
        with stopped_by_signals(run.stop):
            run.run(choice, on_skipped=_note_skipped)
    if dry_run:
        note("dry run: nothing was sent")
    output.summary(asdict(run.totals), summary, is_data_on_stdout=False)


def _choice(
    letters: list[str] | None, value: Path | None, *, is_all: bool, is_again: bool
) -> "ReplayChoice":
    from k2cli.ingestion.kafka.replay import ReplayChoice

    letter_ids = _parse_ids(letters)
    if bool(letter_ids) == is_all:
        raise UsageError(
            "no dead letters given: name them, or use --all", hint="list them with k2 dlq list"
        )
    if value is not None and len(letter_ids) != 1:
        raise UsageError("--value requires exactly one dead letter")
    repaired = None if value is None else _read(value)
    return ReplayChoice(letters=letter_ids, value=repaired, is_again=is_again)


def _note_skipped(letter_id: "LetterId") -> None:
    note(f"{letter_id} was replayed before; use --again to replay it again")


def _none(reader: "LetterReader") -> str:
    return f"no dead letters: topic {reader.topic} does not exist"


def _parse_ids(texts: list[str] | None) -> "list[LetterId]":
    from k2cli.ingestion.kafka.letters import LetterId

    letter_ids = []
    for text in dict.fromkeys(texts or ()):
        try:
            letter_ids.append(LetterId.parse(text))
        except ValueError as exc:
            raise typer.BadParameter(f"{text!r} is not PARTITION/OFFSET, such as 0/17") from exc
    return letter_ids


def _check_raw(letter_ids: "Sequence[LetterId]") -> None:
    if len(letter_ids) > 1:
        raise UsageError("--raw requires exactly one dead letter")
    if sys.stdout.isatty():
        raise UsageError(
            "--raw cannot be written to a terminal", hint="redirect it to a file: > value.bin"
        )


def _write_raw(letter: "Letter") -> None:
    if letter.value is None:
        note(f"{letter.id} has no value")
        return
    sys.stdout.buffer.write(letter.value)
    sys.stdout.buffer.flush()


def _schemas(
    stack: ExitStack, config: "Settings", registry: list[str] | None, timeout_s: float
) -> "Registry | str":
    """Open the registry, or return why there is none: letters can be shown without it."""
    from k2cli.ingestion.kafka.registry import open_registry

    given = {"max.retries": "0", **registry_settings(config, registry)}
    try:
        return stack.enter_context(open_registry(given, timeout_s=timeout_s))
    except ConfigError as exc:
        return str(exc)


def _object(topic: str, letter: "Letter", value: "ValueInfo") -> "dict[str, Any]":
    from k2cli.ingestion.kafka.letters import as_text

    return {
        "letter": str(letter.id),
        "dlq": topic,
        "time": iso_utc_ms(letter.time_ms),
        "reason": letter.reason,
        "code": letter.code or None,
        "cause": letter.cause or None,
        "field": letter.field or None,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "sent_at": letter.sent_at or None,
        "key": as_text(letter.key),
        "headers": [[name, as_text(held)] for name, held in letter.headers],
        "value": {key: held for key, held in asdict(value).items() if held is not None},
    }


def _description(topic: str, letter: "Letter", value: "ValueInfo") -> str:
    from k2cli.ingestion.kafka.letters import as_text

    come_from = letter.topic if letter.partition is None else f"{letter.topic}/{letter.partition}"
    at = "" if letter.offset is None else f" at offset {letter.offset}"
    sent = f", sent {letter.sent_at}" if letter.sent_at else ""
    size = "none" if value.size_bytes is None else f"{value.size_bytes:,} bytes"
    details: Mapping[str, str | None] = {
        "letter": f"{letter.id} of {topic}",
        "time": iso_utc_ms(letter.time_ms),
        "reason": letter.reason or "unknown: it was not written by k2",
        "cause": letter.cause or None,
        "from": f"{come_from}{at}{sent}",
        "key": as_text(letter.key),
        "value": size,
        "schema": _schema_name(value),
        "problem": value.problem,
    }
    lines = [f"{name:8}{printable(text)}" for name, text in details.items() if text is not None]
    if letter.headers:
        lines += ["", "headers"]
        lines += [f"  {name} = {as_text(held)}" for name, held in letter.headers]
    return "\n".join([*lines, *_value_lines(value)])


def _schema_name(value: "ValueInfo") -> str | None:
    if value.schema_id is None:
        return None
    return f"id {value.schema_id}" + (f", {value.schema}" if value.schema else "")


def _value_lines(value: "ValueInfo") -> list[str]:
    from k2cli.ingestion.kafka.values import hex_lines

    lines: list[str] = []
    if value.text:
        cut = value.text[:_TEXT_CHARS]
        lines += ["", *map(printable, cut.split("\n"))]
        if len(cut) < len(value.text):
            lines.append(f"... {len(value.text) - len(cut):,} more characters, use --raw")
    if value.fields:
        text = json.dumps(value.fields, default=_plain, indent=2, ensure_ascii=False)
        lines += ["", text]
    if value.hex:
        lines += ["", *hex_lines(value.hex)]
    return lines


def _plain(value: object) -> str:
    """Convert values without a JSON type to k2's form."""
    match value:
        case Decimal():
            return f"{value:f}"
        case datetime():
            return iso_utc(value)
        case bytes():
            return f"0x{value.hex()}"
        case _:
            return str(value)


def _read(file: Path) -> bytes:
    with open_input(file) as stream:
        return stream.read()
