"""Validate ndjson and CSV against a schema: each reject is a problem."""

from collections.abc import Iterable
from pathlib import Path
from typing import IO, BinaryIO

from k2cli.avro.named import NamedSchema
from k2cli.errors import UsageError
from k2cli.flow import Batch
from k2cli.ingestion.csv.layout import Layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.ingestion.ndjson import read_ndjson
from k2cli.rejects import Reject
from k2cli.validation.report import Part, Parts, Problem, problem_of


def ndjson_parts(stream: BinaryIO, expected: NamedSchema) -> Parts:
    """Validate the rows of ndjson.

    Raises:
        BadData: the schema has a type that no column has.
    """
    return _parts(read_ndjson(stream, expected.kind()))


def csv_parts(
    source: Path | IO[bytes], layout: Layout, options: CsvOptions, expected: NamedSchema | None
) -> Parts:
    """Validate the rows of a CSV file, read with a layout.

    Raises:
        NotFound, ConfigError, UsageError: the file cannot be read, or an option is missing.
    """
    if expected is not None and expected.avro != layout.record.avro:
        raise UsageError(
            f"the layout is for {layout.kind}, not for records of {expected.name}",
            hint="omit --schema: the layout determines it",
        )
    return _parts(read_csv(source, layout, options))


def _parts(batches: Iterable[Batch]) -> Parts:
    for batch in batches:
        yield Part(rows=batch.messages, problems=map(_problem, batch.rejects))


def _problem(reject: Reject) -> Problem:
    raw = reject.raw.decode(errors="replace")
    return problem_of(reject.fault, row=reject.position, raw=raw)
