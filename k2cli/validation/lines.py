"""Files of lines against a schema: what would be a reject is a fault."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, BinaryIO, Final

from k2cli.errors import UsageError
from k2cli.flow import Batch, Reject
from k2cli.ingestion.csv.layout import Layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.ingestion.ndjson import read_ndjson
from k2cli.validation.report import Expected, Fault, Part, Parts, shown

# How the reasons of rejects begin: "price '1e5' is not a plain number", "price: is null".
_TEXT: Final = r"'(?:[^'\\]|\\.)*'|\"[^\"]*\""  # as Python writes one
_OF_CSV: Final = re.compile(rf"(?P<field>.+?) (?P<value>{_TEXT}):? (?P<reason>.+)")
_OF_NDJSON: Final = re.compile(r"(?:there is no field |field )?(?P<field>\w+)(?:: | is |$)")


def ndjson_parts(stream: BinaryIO, expected: Expected) -> Parts:
    """Look at the rows of ndjson.

    Raises:
        BadData: the schema has a type that no column has.
    """
    return _parts(read_ndjson(stream, expected.kind()), _ndjson_fault)


def csv_parts(
    source: Path | IO[bytes], layout: Layout, options: CsvOptions, expected: Expected | None
) -> Parts:
    """Look at the rows of a CSV file, which a layout makes records of its kind of.

    Raises:
        NotFound, ConfigError, UsageError: the file cannot be read, or something must be told.
    """
    if expected is not None and expected.avro != layout.record.avro:
        raise UsageError(
            f"the layout makes {layout.kind}, not records of {expected.name}",
            hint="leave --schema out: the layout tells it",
        )
    return _parts(read_csv(source, layout, options), _csv_fault)


def _parts(batches: Iterable[Batch], fault: Callable[[Reject], Fault]) -> Parts:
    for batch in batches:
        yield Part(rows=batch.messages, faults=map(fault, batch.rejects))


def _csv_fault(reject: Reject) -> Fault:
    named = _OF_CSV.fullmatch(reject.reason)
    if named is None:
        value = shown(reject.raw.decode(errors="replace"))
        return Fault(row=reject.position, value=value, reason=reject.reason)
    return Fault(
        row=reject.position,
        field=named["field"],
        value=named["value"][1:-1],
        reason=named["reason"],
    )


def _ndjson_fault(reject: Reject) -> Fault:
    named = _OF_NDJSON.match(reject.reason)
    try:
        row = json.loads(reject.raw)
    except ValueError:
        row = None
    if named is None or not isinstance(row, dict):
        value = shown(reject.raw.decode(errors="replace"))
        return Fault(row=reject.position, value=value, reason=reject.reason)
    value = shown(row.get(named["field"]))
    reason = reject.reason.removeprefix(f"{named['field']}: ")
    return Fault(row=reject.position, field=named["field"], value=value, reason=reason)
