"""What is found in one file, and how that is gathered."""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from k2cli.avro.validation import findings
from k2cli.errors import BadData, K2Error, UsageError
from k2cli.records import TRADES, RecordKind, avro_to_arrow_schema
from k2cli.rejects import Cause, Fault, shown
from k2cli.storage.tables import iceberg_schema


class FileKind(StrEnum):
    """What a file holds."""

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
    """What does not fit; without a row it is the file as a whole, or the schema itself."""

    row: int | None = None  # from 1 on; of CSV and ndjson the line
    field: str | None = None  # of the record; of CSV the column
    value: str | None = None
    code: str | None = None  # of a row that would be rejected, or of a schema that does not fit
    cause: Cause | None = None
    reason: str


def problem_of(fault: Fault, *, row: int | None = None, raw: str | None = None) -> Problem:
    """Describe a fault; `raw` is shown where no field is to blame."""
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
    """Some rows, of which some do not fit."""

    rows: int
    problems: Iterable[Problem] = ()


Parts = Generator[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The schema that rows are held against."""

    name: str
    avro: Mapping[str, Any]

    def kind(self) -> RecordKind:
        """Return a record kind of this schema, for what reads rows of a kind.

        Raises:
            BadData: a field has a type that no column has.
        """
        try:
            arrow = avro_to_arrow_schema(self.avro)
        except ValueError as exc:
            hint = f"k2 schema validate {self.name}"
            raise BadData(f"{self.name}: {exc}", hint=hint) from exc
        return replace(TRADES, name=self.name, avro=self.avro, arrow=arrow)


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found in one file."""

    file: str
    kind: FileKind | None
    schema: str | None = None  # what the rows were held against
    rows: int | None = None  # that were looked at
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    stopped: bool = False  # there are more errors, and rows that were not looked at

    @property
    def valid(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def document(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {**asdict(self), "valid": self.valid}


def kind_of(file: Path) -> FileKind:
    """Tell what a file holds by the end of its name.

    Raises:
        UsageError: the name does not tell.
    """
    for suffix, kind in _SUFFIXES.items():
        if file.name.lower().endswith(suffix):
            return kind
    if file.is_dir():
        raise UsageError(f"{file} is a folder", hint="name the files in it")
    raise UsageError(
        f"the name of {file} does not tell what it holds", hint=f"known are {' '.join(_SUFFIXES)}"
    )


def failed(file: str, kind: FileKind | None, error: K2Error) -> Report:
    """Report a file that could not be looked at."""
    return Report(file=file, kind=kind, errors=[Problem(reason=str(error))])


def validate_schema(avro: Any, file: str, *, is_strict: bool) -> Report:
    """Look at a schema that was parsed: names, docs, logical types, columns in Arrow and Iceberg.

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
            report.errors.append(Problem(reason=f"no Iceberg schema: {exc}"))
    return report


def gather(report: Report, parts: Iterable[Part], *, max_errors: int) -> None:
    """Look at the rows of a file, up to the first error past `max_errors`; 0 is no limit."""
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
        where = f"behind row {report.rows}: " if report.rows else ""
        report.errors.append(Problem(reason=f"{where}{exc}"))
