"""Validate a data file of any format against a schema."""

import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from k2cli.avro.builtin import builtin_name
from k2cli.avro.named import NamedSchema
from k2cli.errors import UsageError
from k2cli.files import STDIN, open_input
from k2cli.ingestion.csv.layout import Layout
from k2cli.ingestion.csv.source import CsvOptions
from k2cli.validation.columns import avro_parts, parquet_parts
from k2cli.validation.lines import csv_parts, ndjson_parts
from k2cli.validation.report import FileKind, Parts, Report, gather, kind_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The options of a validation: schema, CSV layout and error limit."""

    expected: NamedSchema | None
    layout: Layout | None
    options: CsvOptions
    max_errors: int

    def kind_of(self, file: str) -> FileKind:
        """Infer the format of a file or stdin.

        Raises:
            UsageError: its suffix is unknown.
        """
        if file == STDIN:
            inferred = FileKind.NDJSON if self.expected else FileKind.AVSC
            return FileKind.CSV if self.layout else inferred
        return kind_of(Path(file))

    def validate(self, file: str) -> Report:
        """Check the rows of a data file.

        Raises:
            UsageError: there is no schema to check it against.
            K2Error: it cannot be checked.
        """
        kind = self.kind_of(file)
        report = Report(file="stdin" if file == STDIN else file, kind=kind)
        with ExitStack() as stack:
            report.schema, parts = self._parts(stack, file, kind)
            gather(report, stack.enter_context(closing(parts)), max_errors=self.max_errors)
        return report

    def _parts(self, stack: ExitStack, file: str, kind: FileKind) -> tuple[str | None, Parts]:
        """Open a file; return the expected schema and the rows."""
        if kind is FileKind.CSV:
            return self._csv_parts(file)
        if kind is FileKind.AVRO:
            return avro_parts(stack.enter_context(open_input(file)), self.expected)
        if self.expected is None:
            raise UsageError(
                f"no schema given for {file}", hint="use --schema, for example --schema trade_v2"
            )
        parts = parquet_parts if kind is FileKind.PARQUET else ndjson_parts
        stream = stack.enter_context(open_input(file))
        return self.expected.name, parts(stream, self.expected)

    def _csv_parts(self, file: str) -> tuple[str | None, Parts]:
        if self.layout is None:
            raise UsageError(
                f"no layout given for {file}",
                hint="use --layout NAME; k2 load layouts lists them",
            )
        source = sys.stdin.buffer if file == STDIN else Path(file)
        inferred = builtin_name(self.layout.record.avro["name"])
        return inferred, csv_parts(source, self.layout, self.options, self.expected)
