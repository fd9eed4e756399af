"""The report on one file, and how it is built."""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from k2cli.avro.validation import findings
from k2cli.errors import BadData, K2Error, UsageError
from k2cli.records import avro_to_arrow_schema
from k2cli.rejects import Cause, Fault, shown
from k2cli.storage.tables import iceberg_schema


class FileKind(StrEnum):
    """The format of a file."""

    AVSC = "avsc"
    AVRO = "avro"
    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"


_SUFFIXES: Final[Mapping[str, FileKind]] = {
    ".avsc": FileKind.AVSC,
    ".avro": FileKind.AVRO,
    ".ndjson": FileKind.NDJSON,
    ".jsonl": FileKind.NDJSON,
    ".parquet": FileKind.PARQUET,
    ".csv": FileKind.CSV,
    ".csv.gz": FileKind.CSV,
    ".csv.zst": FileKind.CSV,
    ".zip": FileKind.CSV,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem in a row or, without a row, in the whole file or schema."""

    row: int | None = None  # starting at 1; the line in CSV and ndjson
    field: str | None = None  # of the record; the column in CSV
    value: str | None = None
    code: str | None = None  # of a rejected row, or of a schema that does not fit
    cause: Cause | None = None
    reason: str


def problem_of(fault: Fault, *, row: int | None = None, raw: str | None = None) -> Problem:
    """Describe a fault; `raw` is shown if no field is to blame."""
    field = fault.column or fault.field or None
    return Problem(
        row=row,
        field=field,
        value=shown(raw) if field is None else fault.value,
        code=fault.code,
        cause=fault.cause,
        reason=fault.brief or fault.reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A number of rows, with the problems among them."""

    rows: int
    problems: Iterable[Problem] = ()


Parts = Generator[Part]


@dataclass(slots=True, kw_only=True)
class Report:
    """The report on one file."""

    file: str
    kind: FileKind | None
    schema: str | None = None  # the schema that the rows were checked against
    rows: int | None = None  # rows checked
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    stopped: bool = False  # the check stopped early, at the error limit

    @property
    def valid(self) -> bool:
        """Whether the file has no errors."""
        return not self.errors

    def document(self) -> dict[str, object]:
        """Return the report for JSON."""
        return {**asdict(self), "valid": self.valid}


def kind_of(file: Path) -> FileKind:
    """Infer the format of a file from its suffix.

    Raises:
        UsageError: the suffix is unknown.
    """
    for suffix, kind in _SUFFIXES.items():
        if file.name.lower().endswith(suffix):
            return kind
    if file.is_dir():
        raise UsageError(f"{file} is a directory", hint="name the files in it")
    raise UsageError(
        f"cannot infer the format of {file} from its name", hint=f"use one of {' '.join(_SUFFIXES)}"
    )


def failed(file: str, kind: FileKind | None, error: K2Error) -> Report:
    """Report a file that could not be checked."""
    return Report(file=file, kind=kind, errors=[Problem(reason=str(error))])


def validate_schema(avro: Any, file: str, *, is_strict: bool) -> Report:
    """Check a parsed schema: names, docs, logical types, columns in Arrow and Iceberg.

    With `is_strict`, warnings are errors.
    """
    report = Report(file=file, kind=FileKind.AVSC)
    for each in findings(avro):
        problem = Problem(field=each.path or None, reason=each.reason)
        is_error = is_strict or not each.is_warning
        (report.errors if is_error else report.warnings).append(problem)
    if report.valid:
        try:
            iceberg_schema(avro_to_arrow_schema(avro))
        except ValueError as exc:
            report.errors.append(Problem(reason=f"cannot convert it to an Iceberg schema: {exc}"))
    return report


def gather(report: Report, parts: Iterable[Part], *, max_errors: int) -> None:
    """Check the rows of a file up to the first error past `max_errors`; 0 means no limit."""
    report.rows = 0
    try:
        for part in parts:
            report.rows += part.rows
            for problem in part.problems:
                if max_errors and len(report.errors) == max_errors:
                    report.stopped = True
                    return
                report.errors.append(problem)
    except BadData as exc:
        where = f"after row {report.rows}: " if report.rows else ""
        report.errors.append(Problem(reason=f"{where}{exc}"))
