"""stdout is for data, stderr for messages. Machine formats never pass through Rich."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from k2cli.commands.terminal.events import RunLog, event_text
from k2cli.commands.terminal.plain import printable_lines
from k2cli.commands.terminal.progress import shown_progress
from k2cli.commands.terminal.streams import note, screen_width
from k2cli.commands.terminal.tables import COMPLETE, DETAILS, write_table
from k2cli.errors import UsageError
from k2cli.events import Observer
from k2cli.files import writing_error
from k2cli.query.destination import FileDestination, Write, choose_file
from k2cli.query.formats import BINARY, Format, write_answer

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

    from k2cli.answers import Answer
    from k2cli.query.protocol import AnyAnswer

PREVIEW_ROWS: Final = 100  # of a table on a terminal, without --limit


def data(line: str) -> None:
    """Print a line of data on stdout; on a terminal, escape control characters."""
    print(printable_lines(line) if sys.stdout.isatty() else line)


def chart(lines: str) -> None:
    """Print a chart on stdout, with its colours."""
    print(lines)


def rich_data(renderable: "RenderableType") -> None:
    """Print a Rich renderable on stdout, with colours on a terminal."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as capture:
        console.print(renderable, soft_wrap=True)
    sys.stdout.write(capture.get())


class Summary(StrEnum):
    """The format of a run's totals: a line on stderr, or one JSON object on stdout."""

    TEXT = "text"
    JSON = "json"


def summary(
    sums: Mapping[str, object],
    form: Summary,
    *,
    is_data_on_stdout: bool,
    log: RunLog | None = None,
) -> None:
    """Report the totals of a run at its end; as a log line if those are JSON."""
    if form is Summary.TEXT and log and log.is_json:
        observe: Observer = log.on_event
        observe("summary", **sums)
        return
    if log:
        record: Observer = log.record
        record("summary", **sums)
    if form is Summary.TEXT:
        note(event_text("summary", dict(sums)))
    elif is_data_on_stdout:
        note(json.dumps(sums))
    else:
        data(json.dumps(sums))


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The destination and format of an answer. Created by `choose_output`."""

    format: Format
    file: FileDestination | None = None  # None is stdout
    has_header: bool = True  # of csv

    @property
    def is_terminal(self) -> bool:
        """Whether the answer is shown to a person directly."""
        return self.file is None and sys.stdout.isatty()

    def write(
        self,
        answer: "Answer",
        *,
        is_limited: bool = False,
        expected: int | None = None,
        details: Sequence[str] = DETAILS,
        complete: str = COMPLETE,
    ) -> int:
        """Run the answer and write it; report on stderr if there are no rows, or more.

        Returns how many rows there are, up to one more than a preview shows.

        `is_limited` means that the user chose the number of rows; `expected` is how many there will
        be, if known. A table on a narrow terminal omits `details` first, with a note that
        `complete` shows everything.
        """
        is_preview = self.is_terminal and self.format is Format.TABLE and not is_limited
        draw = partial(
            write_table,
            limit=PREVIEW_ROWS if is_preview else None,
            width=screen_width() if self.is_terminal else None,
            details=details,
            complete=complete,
        )
        with answer.open() as opened:
            shown = opened.first(PREVIEW_ROWS + 1) if is_preview else opened
            if self.file is None:
                rows = self._print(shown, draw)
            else:
                file = replace(self.file, has_header=self.has_header)
                has_lines = self.format not in BINARY
                progress = partial(shown_progress, has_lines=has_lines, total=expected)
                rows = file.write(shown, draw=draw, progress=progress)
        if rows == 0:
            note("no rows matched")
        elif is_preview and rows > PREVIEW_ROWS:
            note(
                f"showing the first {PREVIEW_ROWS} rows; for all rows use --format csv, or -o FILE"
            )
        return rows

    def _print(self, answer: "AnyAnswer", draw: Write) -> int:
        try:
            sys.stdout.flush()
            sink = sys.stdout.buffer
            if self.format is Format.TABLE:
                rows = draw(answer, sink)
            else:
                rows = write_answer(answer, self.format, sink, has_header=self.has_header)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise writing_error(None, exc) from exc
        return rows


def print_rows(
    out: Output, rows: "pa.Table", *, details: Sequence[str] = (), complete: str = COMPLETE
) -> None:
    """Write existing rows; `details` as in `Output.write`."""
    from k2cli.answers import answer_of

    out.write(answer_of(rows), is_limited=True, details=details, complete=complete)


def choose_output(chosen: Format | None, path: Path | None, *, is_forced: bool) -> Output:
    """Choose format and destination before any work is done.

    Raises:
        UsageError: the file exists, its format is unclear, or bytes would go to a terminal.
        NotFound: the file's directory does not exist.
    """
    if path is None or str(path) == "-":
        return Output(format=_format_for_stdout(chosen))
    file = choose_file(path, chosen, is_forced=is_forced)
    return Output(format=file.format, file=file)


def _format_for_stdout(chosen: Format | None) -> Format:
    is_terminal = sys.stdout.isatty()
    if chosen in BINARY and is_terminal:
        raise UsageError(
            f"{chosen} cannot be written to a terminal",
            hint=f"write it to a file: -o answer.{chosen}",
        )
    return chosen or (Format.TABLE if is_terminal else Format.CSV)
